package keyengine

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/receipt"
	"github.com/conclavekms/conclave/auditlog/witness"
	"github.com/conclavekms/conclave/keyengine/auditwitness"
	"github.com/conclavekms/conclave/keyengine/iam"
)

// witnessState keeps the state of a witness in memory.
type witnessState struct{ b []byte }

func (s *witnessState) Load() ([]byte, error) { return s.b, nil }
func (s *witnessState) Save(b []byte) error   { s.b = b; return nil }

// TestWitnessesAcrossNodes: what the leader has cosigned is in the receipts of all nodes, and a
// node that takes over goes on. Without the witness, receipts have no cosignatures.
func TestWitnessesAcrossNodes(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	c.finalize()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, 32))
	signer, err := checkpoint.NewEd25519Cosigner("witness.example", key, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	w, err := witness.New(witness.Config{
		Signers: []*checkpoint.Cosigner{signer}, Logs: []string{c.engine.VerifierKey()}, Store: &witnessState{witness.EmptyState()}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(w)
	defer server.Close()
	vkey := checkpoint.Ed25519CosignatureKey("witness.example", key.Public().(ed25519.PublicKey))
	known, err := checkpoint.ParseWitness(vkey)
	if err != nil {
		t.Fatal(err)
	}
	lead := func(node string) (end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.engines[node].Witnesses.Lead(ctx)
		}()
		return func() { cancel(); <-done }
	}
	for _, node := range []string{"n1", "n2"} {
		e := c.engines[node]
		l, _ := openLog(t, c)
		e.cfg.Audit = l
		if e.Witnesses, err = auditwitness.New(auditwitness.Config{
			Configuration: &auditwitness.Configuration{Witnesses: []auditwitness.Witness{{URL: server.URL, Keys: []string{vkey}}}},
			Log:           l, LogKey: e.VerifierKey, Leads: e.replica.IsLeader, AskLeader: e.askCosigned, Logger: e.log,
		}); err != nil {
			t.Fatal(err)
		}
		if err := e.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cosigned := func(node string) bool {
		text, err := c.engines[node].RecordReceipt(t.Context(), c.caller(c.root), new(uint64(1)), iam.RequestID{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := receipt.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.Verify(c.engine.VerifierKey()); err != nil {
			t.Fatal(err)
		}
		_, err = known.Cosignatures(r.Checkpoint)
		return err == nil
	}
	if cosigned("n2") {
		t.Error("a receipt is cosigned before anybody has asked the witness")
	}
	end := lead("n1")
	eventually(t, "a cosigned receipt of the leader", func() bool { return cosigned("n1") })
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		c.engines["n2"].Witnesses.Run(ctx)
	}()
	eventually(t, "a cosigned receipt of another node", func() bool { return cosigned("n2") })
	cancel()
	<-followed
	end()

	// The next leader, whose log has grown, and which has asked nobody yet.
	next := c.engines["n2"]
	l, _ := openLog(t, c)
	next.cfg.Audit = l
	if next.Witnesses, err = auditwitness.New(auditwitness.Config{
		Configuration: &auditwitness.Configuration{Witnesses: []auditwitness.Witness{{URL: server.URL, Keys: []string{vkey}}}},
		Log:           l, LogKey: next.VerifierKey, Leads: next.replica.IsLeader, AskLeader: next.askCosigned, Logger: next.log,
	}); err != nil {
		t.Fatal(err)
	}
	next.checkpoint.signed.Store(0)
	if err := next.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	end = lead("n2")
	defer end()
	want := l.Size()
	eventually(t, "a cosignature for the next leader", func() bool {
		_, size, err := covering(next.Witnesses.Newest(), want-1)
		return err == nil && size == want
	})
}
