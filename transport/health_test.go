package transport

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealth(t *testing.T) {
	var (
		active   = Health{Initialised: true, Leader: true, InContact: true}
		standby  = Health{Initialised: true, InContact: true}
		sealed   = Health{Initialised: true, Sealed: true, InContact: true}
		sealedL  = Health{Initialised: true, Sealed: true, Leader: true, InContact: true}
		lost     = Health{Initialised: true}
		newborn  = Health{Sealed: true, InContact: true}
		full     = Health{Initialised: true, InContact: true, DiskFull: true}
		anything = Health{}
	)
	for _, tc := range []struct {
		method, target string
		health         Health
		code           int
		state          string
	}{
		{"GET", "/livez", anything, 200, "alive"},
		{"GET", "/livez", sealed, 200, "alive"},
		{"GET", "/readyz", active, 200, "ready"},
		{"GET", "/readyz", standby, 200, "ready"},
		{"GET", "/readyz", sealed, 503, "sealed"},
		{"GET", "/readyz", sealedL, 503, "sealed"},
		{"GET", "/readyz", lost, 503, "no leader"},
		{"GET", "/readyz", full, 503, "disk full"},
		{"GET", "/livez", full, 200, "alive"},
		{"GET", "/healthz", full, 503, "disk full"},
		{"GET", "/readyz", newborn, 503, "uninitialised"},
		{"GET", "/healthz", active, 200, "active"},
		{"GET", "/healthz", standby, 429, "standby"},
		{"GET", "/healthz", sealed, 503, "sealed"},
		{"GET", "/healthz", sealedL, 503, "sealed"},
		{"GET", "/healthz", lost, 503, "no leader"},
		{"GET", "/healthz", newborn, 501, "uninitialised"},
		{"GET", "/healthz?standbycode=200", standby, 200, "standby"},
		{"GET", "/healthz?standbycode=200", sealed, 503, "sealed"},
		{"GET", "/healthz?sealedcode=204", sealed, 204, ""},
		{"GET", "/healthz?uninitcode=200", newborn, 200, "uninitialised"},
		{"GET", "/healthz?activecode=299", active, 299, "active"},
		{"GET", "/healthz?sealedcode=200", lost, 503, "no leader"},
		{"GET", "/healthz?standbycode=7", standby, 400, "bad standbycode"},
		{"GET", "/healthz?standbycode=x", standby, 400, "bad standbycode"},
		{"HEAD", "/healthz", standby, 429, ""},
		{"POST", "/healthz", active, 405, ""},
		{"GET", "/healthz/", active, 418, ""},
		{"POST", "/", active, 418, ""},
	} {
		t.Run(tc.method+tc.target, func(t *testing.T) {
			next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) })
			w := httptest.NewRecorder()
			HealthHandler(func() Health { return tc.health }, next).ServeHTTP(w, httptest.NewRequest(tc.method, tc.target, nil))
			if w.Code != tc.code {
				t.Errorf("got %d, want %d", w.Code, tc.code)
			}
			want := ""
			if tc.state != "" {
				want = `{"state":"` + tc.state + `"}`
			}
			if got := strings.TrimSpace(w.Body.String()); got != want {
				t.Errorf("got body %q, want %q", got, want)
			}
		})
	}
}
