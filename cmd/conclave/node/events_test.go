package node_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/keyengine/ceremony"
)

// receiver is a webhook that passes on the lines that it gets, once it has verified them as
// Standard Webhooks says.
func receiver(t *testing.T, key []byte) (url string, lines <-chan []byte) {
	t.Helper()
	to := make(chan []byte, 1000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		m := hmac.New(sha256.New, key)
		fmt.Fprintf(m, "%s.%s.%s", r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), body)
		if sent := r.Header.Get("webhook-signature"); sent != "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)) {
			t.Errorf("a request is signed with %q", sent)
		}
		for scan := bufio.NewScanner(bytes.NewReader(body)); scan.Scan(); {
			to <- bytes.Clone(scan.Bytes())
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, to
}

// TestAlertWebhook: a receiver that is configured as docs/operate/alerts.md says gets an event
// about each alert, and nothing else, within seconds of the alert's cause. That takes the log no
// more than a few records.
func TestAlertWebhook(t *testing.T) {
	t.Parallel()
	key := bytes.Repeat([]byte{7}, 32)
	url, events := receiver(t, key)
	dir := t.TempDir()
	secret, sinks := filepath.Join(dir, "hook.secret"), filepath.Join(dir, "sinks.json")
	for name, text := range map[string]string{
		secret: base64.StdEncoding.EncodeToString(key),
		sinks: fmt.Sprintf(`{"sinks": [{"name": "pager", "from": "end", "only": ["alerts"], "format": "eventbridge", "webhook": {"url": %q, "secretFile": %q}}]}`,
			url, secret),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := single(t, filepath.Join(dir, "data"))
	cfg.AuditSinks, cfg.Alerts = sinks, []string{"RootUse", "KeyNotUsable"}
	n := start(t, cfg)
	c := sdk(n, found(t, n))
	finalize(t, n)
	// The sink begins where the log ends when it can store that.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		list, err := n.Engine().Sinks.List(0)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 1 && list[0].Node != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sink has not begun: %+v", list)
		}
	}

	next := func(rule string) (ev struct {
		Source, Account string
		DetailType      string `json:"detail-type"`
		Resources       []string
		Detail          struct{ Rule, Subject string }
	}) {
		t.Helper()
		began := time.Now()
		select {
		case line := <-events:
			if err := json.Unmarshal(line, &ev); err != nil {
				t.Fatal(err)
			}
			t.Logf("after %v: %s", time.Since(began).Round(time.Millisecond), line)
		case <-time.After(30 * time.Second):
			t.Fatalf("no event of an alert of %s", rule)
		}
		if ev.Source != "conclave" || ev.DetailType != "Conclave Alert" || ev.Detail.Rule != rule {
			t.Fatalf("the event is %+v, want an alert of %s", ev, rule)
		}
		return ev
	}
	k, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	if ev := next("RootUse"); ev.Account != "000000000000" || !strings.Contains(ev.Detail.Subject, "000000000000") {
		t.Errorf("the event about the root user is %+v", ev)
	}
	for range 200 {
		if _, err := c.GenerateRandom(t.Context(), &kms.GenerateRandomInput{NumberOfBytes: new(int32(8))}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: k.KeyMetadata.KeyId}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: k.KeyMetadata.KeyId, Plaintext: []byte("x")}); err == nil {
		t.Fatal("a disabled key encrypts")
	}
	if ev := next("KeyNotUsable"); len(ev.Resources) != 1 || ev.Resources[0] != *k.KeyMetadata.Arn {
		t.Errorf("the event about the disabled key is %+v", ev)
	}
	if err := n.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	select {
	case line := <-events:
		t.Errorf("the receiver also got %s", line)
	default:
	}
	// One for the beginning, one before the first event and one after each, and the last word.
	if size := n.AuditLog().Size(); size > 203+40 {
		t.Errorf("the log has %d records after about 210 requests", size)
	}
}

// finalize raises the cluster's feature level to the newest one.
func finalize(t *testing.T, n *node.Node) {
	t.Helper()
	to := func(context.Context) (uint32, []string) { return 2, nil }
	if _, _, err := n.Engine().FinalizeUpgrade(t.Context(), ceremony.Operator{Name: "conclave://operator/test"}, to); err != nil {
		t.Fatal(err)
	}
}
