package harness

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// Records is how many records the audit log has.
func Records(t *testing.T, n *Node) uint64 {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.GetAudit().GetSize()
}

// Usable checks that a node does its work.
func Usable(t *testing.T, n *Node) {
	t.Helper()
	key, err := n.KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatalf("CreateKey: %v", err)
	}
	enc, err := n.KMS().Encrypt(t.Context(), &kmspb.EncryptRequest{KeyId: key.GetKeyMetadata().KeyId, Plaintext: []byte("well")})
	if err != nil {
		t.Fatalf("Encrypt: %v", err)
	}
	dec, err := n.KMS().Decrypt(t.Context(), &kmspb.DecryptRequest{CiphertextBlob: enc.GetCiphertextBlob()})
	if err != nil || string(dec.GetPlaintext()) != "well" {
		t.Fatalf("Decrypt: %q, %v", dec.GetPlaintext(), err)
	}
}

// Metric reads a number from a node's metrics.
func Metric(t *testing.T, n *Node, name string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(OpsGet(t, n, "/metrics"))
	if m == nil {
		t.Fatalf("there is no metric %s", name)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// OpsClient waits for no answer that does not come.
var OpsClient = &http.Client{Timeout: 20 * time.Second}

// OpsGet reads a page of a node's port for metrics and health.
func OpsGet(t *testing.T, n *Node, path string) []byte {
	t.Helper()
	get := func() ([]byte, error) {
		resp, err := OpsClient.Get("http://" + n.Ops + path)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		return io.ReadAll(resp.Body)
	}
	b, err := get()
	// Anyone may ask here, so while others crowd the port a connection can be refused or
	// evicted.
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		b, err = get()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// NewSeed is the seed of a test's random choices, printed so that it can be
// looked into again. What the machine decides is not in it.
func NewSeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return seed
}

// Witnessed checks a history against the audit log, and the nodes' states against
// both.
func Witnessed(t *testing.T, c *Cluster, h *History) {
	t.Helper()
	c.NoFaults()
	start := time.Now()
	log := c.Running()[0].ReadLog(0)
	ops := h.Ops()
	read := time.Since(start)
	w := NewWitness()
	if err := errors.Join(w.Check(log, ops), w.Unexplained()); err != nil {
		t.Errorf("the audit log is no witness of what clients saw:\n%v", err)
	}
	definite := 0
	for _, o := range ops {
		if o.Definite() {
			definite++
		}
	}
	c.Converged()
	for _, nd := range c.Running() {
		if n := nd.InProcess(); n != nil {
			if err := w.Spec.SameAs(n.Cluster().State()); err != nil {
				t.Errorf("the state of node %s is not what the log makes:\n%v", nd.ID, err)
			}
		}
	}
	t.Logf("witness: %d records, %d calls, %d of them with a definite answer, of which %d named their record; of the others, %d have a record; read in %v, checked in %v",
		len(log), len(ops), definite, w.Receipts, w.Lost, read.Round(time.Millisecond), (time.Since(start) - read).Round(time.Millisecond))
}
