package node_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestPprofIsOnLoopbackOnly(t *testing.T) {
	cfg := single(t, t.TempDir())
	for _, addr := range []string{"0.0.0.0:6060", "[::]:6060", "10.0.0.1:6060", ":6060", "node-1:6060", "6060"} {
		cfg.PprofAddress = addr
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "pprof address") {
			t.Errorf("profiles at %s: %v", addr, err)
		}
	}
	cfg.PprofAddress, cfg.AllowUnlockedMemory = "127.0.0.1:0", true
	n := start(t, cfg)
	for _, c := range []struct {
		host string
		want int
	}{{"", 200}, {"localhost:6060", 200}, {"127.0.0.1", 200}, {"attacker.example:6060", 403}, {"attacker.example", 403}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+n.Addresses().Pprof+"/debug/pprof/goroutine?debug=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.want || strings.Contains(string(body), "goroutine profile: total") != (c.want == 200) {
			t.Errorf("for host %q: %d, %v\n%.200s", c.host, resp.StatusCode, err, body)
		}
	}
	// The other ports have no profiles.
	resp, err := http.Get("http://" + n.Addresses().Ops + "/debug/pprof/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("profiles on the port for metrics: %d", resp.StatusCode)
	}
}
