package node

import (
	"bytes"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/pki"
)

// TestConfiguredCRL: the configured file is read up to a limit, by the same parser as
// the lists that the node keeps. If a file is refused, the earlier list stays in force.
func TestConfiguredCRL(t *testing.T) {
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: "n1", Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(cert, key, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := id.KeepCRLs(filepath.Join(dir, crlFile)); err != nil {
		t.Fatal(err)
	}
	n := &Node{
		identity: id, cfg: Config{CRL: filepath.Join(dir, "configured.pem")}, log: slog.New(slog.DiscardHandler),
		crlNumber: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "number"}, []string{"issuer"}),
	}
	var lists []*pki.CRL
	for i := range int64(3) {
		var before *pki.CRL
		if i > 0 {
			before = lists[i-1]
		}
		c, err := ca.Revoke(before, time.Now(), pki.Revocation{Serial: big.NewInt(100 + i), At: time.Now(), Reason: "superseded"})
		if err != nil {
			t.Fatal(err)
		}
		lists = append(lists, c)
	}
	for _, tt := range []struct {
		name   string
		file   []byte
		refuse bool
		number uint64 // of the list in force after it
	}{
		{"a list", lists[1].PEM(), false, 2},
		{"an older one", lists[0].PEM(), false, 2},
		{"the limit exceeded", append(lists[2].PEM(), bytes.Repeat([]byte{'\n'}, pki.MaxCRLFile)...), true, 2},
		{"a certificate after the list", append(lists[2].PEM(), ca.CertPEM()...), true, 2},
		{"text after the list", append(lists[2].PEM(), "x"...), true, 2},
		{"none", nil, true, 2},
		{"a newer one", lists[2].PEM(), false, 3},
	} {
		if err := os.WriteFile(n.cfg.CRL, tt.file, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.readCRLs(); errors.Is(err, pki.ErrCRL) != tt.refuse || !tt.refuse && err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if in := id.CRLs(); len(in) != 1 || in[0].Number() != tt.number {
			t.Errorf("%s: lists %v in force", tt.name, in)
		}
	}
}
