package harness

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// AuditLine is what the tests look at in a rendered record.
type AuditLine struct {
	EventName           string `json:"eventName"`
	EventType           string `json:"eventType"`
	EventSource         string `json:"eventSource"`
	ErrorCode           string `json:"errorCode"`
	ErrorMessage        string `json:"errorMessage"`
	RequestID           string `json:"requestID"`
	SourceIPAddress     string `json:"sourceIPAddress"`
	ReadOnly            bool   `json:"readOnly"`
	RequestParameters   map[string]any
	AdditionalEventData map[string]any
	Resources           []struct{ ARN string }
	UserIdentity        struct {
		Type        string `json:"type"`
		ARN         string `json:"arn"`
		AccessKeyID string `json:"accessKeyId"`
	}
	Raw string `json:"-"`
}

// ReadAudit reads the records from an index on, through the API.
func ReadAudit(t *testing.T, n *Node, from uint64) []AuditLine {
	t.Helper()
	stream, err := n.Audit().Read(t.Context(), &kmspb.ReadAuditRequest{From: from})
	if err != nil {
		t.Fatal(err)
	}
	var all []AuditLine
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(r.GetJson(), "\r\n") {
			t.Errorf("record %d has more than one line: %q", r.GetIndex(), r.GetJson())
		}
		line := AuditLine{Raw: r.GetJson()}
		if err := json.Unmarshal([]byte(line.Raw), &line); err != nil {
			t.Fatalf("record %d: %v: %s", r.GetIndex(), err, line.Raw)
		}
		all = append(all, line)
	}
}

// TrustStores has nodes take the proxies of these tests for external key stores.
func TrustStores(t *testing.T) func(*Node, *node.Config) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "xks-ca.pem") // all proxies have the same certificate
	if err := os.WriteFile(ca, xksproxy.Start(t).CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(_ *Node, cfg *node.Config) {
		cfg.XKSCA, cfg.XKSAllowPrivateEndpoints = ca, true
		cfg.Test.XKSTimeout = 5 * time.Second // the machine is shared
	}
}
