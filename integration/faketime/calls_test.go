package faketime

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ask has a node carry out an operation for the account's root user.
func ask[Out any](w *world, n *worldNode, name string, in any) (*Out, error) {
	c := &iam.Caller{Identity: w.root, Region: harness.Region, SourceIP: "192.0.2.1", UserAgent: "test", Transport: "grpc"}
	_, _ = rand.Read(c.RequestID[:])
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	out, err := n.engine().Do(ctx, c, keyengine.OperationNamed(keyengine.KMS, name), in)
	if err != nil {
		return nil, err
	}
	if o, ok := out.(*Out); ok {
		return o, nil
	}
	return nil, nil
}

// mustAsk asks until the answer is no longer that the cluster cannot say.
func mustAsk[Out any](w *world, n *worldNode, name string, in any) *Out {
	w.t.Helper()
	var out *Out
	var err error
	w.poll(name, func() bool {
		out, err = ask[Out](w, n, name, in)
		return !errors.Is(err, kmsapi.ErrUnavailable)
	})
	if err != nil {
		w.t.Fatalf("%s on %s: %v", name, n.id, err)
	}
	return out
}

// logged is a record of the audit log.
type logged struct {
	Name      string `json:"eventName"`
	Error     string `json:"errorCode"`
	Resources []struct{ ARN string }
	Place     struct {
		Index, RaftIndex uint64
	} `json:"conclave"`
	at time.Time // cluster time
}

// records are those of the audit log that concern a key, on a node.
func (w *world) records(n *worldNode, arn string) (list []logged) {
	w.t.Helper()
	var reader *keyengine.AuditReader
	w.poll("reading the audit log", func() bool {
		c := &iam.Caller{Identity: w.root, Transport: "grpc"}
		_, _ = rand.Read(c.RequestID[:])
		var err error
		reader, err = n.engine().ReadAudit(w.t.Context(), c, 0)
		return err == nil
	})
	for {
		i, line, err := reader.Next(w.t.Context())
		if errors.Is(err, io.EOF) {
			return list
		}
		var l logged
		if err == nil {
			err = json.Unmarshal(line, &l)
		}
		if err != nil {
			w.t.Fatalf("record %d: %v", i, err)
		}
		if !slices.ContainsFunc(l.Resources, func(r struct{ ARN string }) bool { return r.ARN == arn }) {
			continue
		}
		e, err := n.server.AuditLog().Read(i, 1, 1<<20)
		if err != nil || len(e) != 1 {
			w.t.Fatalf("audit entry %d: %v", i, err)
		}
		l.at = time.Unix(0, e[0].Time)
		list = append(list, l)
	}
}

// converged waits until all nodes have applied the same, and reports whether they
// came to the same state.
func (w *world) converged() error {
	w.t.Helper()
	w.leader()
	states := make([]*fsm.State, len(w.nodes))
	w.poll("convergence", func() bool {
		for i, n := range w.nodes {
			states[i] = n.cluster.State()
		}
		return states[0].Index() == states[1].Index() && states[0].Index() == states[2].Index()
	})
	if states[0].Hash() != states[1].Hash() || states[0].Hash() != states[2].Hash() {
		return fmt.Errorf("nodes differ at index %d", states[0].Index())
	}
	return nil
}

// cachedKeys is how many keys a node holds in the clear.
func (n *worldNode) cachedKeys() int {
	families, err := n.server.Metrics().Gather()
	if err != nil {
		n.fault("metrics of %s: %w", n.id, err)
	}
	for _, f := range families {
		if f.GetName() == "conclave_cached_keys" {
			return int(f.Metric[0].GetGauge().GetValue())
		}
	}
	n.fault("%s does not say how many keys it holds", n.id)
	return -1
}

// wrapFor wraps material for an import.
func wrapFor(public, material []byte) ([]byte, error) {
	key, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, key.(*rsa.PublicKey), material, nil)
}

// forImport are a key's parameters, with material of one digit wrapped for it.
func (w *world) forImport(n *worldNode, key string, digit byte) (*kmsapi.ImportKeyMaterialInput, *kmsapi.GetParametersForImportOutput) {
	w.t.Helper()
	p := mustAsk[kmsapi.GetParametersForImportOutput](w, n, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
		KeyId: &key, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_2048"),
	})
	b, err := wrapFor(p.PublicKey, bytes.Repeat([]byte{digit}, 32))
	if err != nil {
		w.t.Fatal(err)
	}
	return &kmsapi.ImportKeyMaterialInput{
		KeyId: &key, ImportToken: p.ImportToken, EncryptedKeyMaterial: b, ExpirationModel: new("KEY_MATERIAL_DOES_NOT_EXPIRE"),
	}, p
}

// newKey makes a key and gives its ARN.
func (w *world) newKey(n *worldNode, origin string) string {
	w.t.Helper()
	return *mustAsk[kmsapi.CreateKeyOutput](w, n, "CreateKey", &kmsapi.CreateKeyInput{Origin: &origin}).KeyMetadata.Arn
}

// isDue tells the records of what happens to keys by itself: nothing else may not
// happen before its time.
func isDue(r *fsmpb.Record) bool { return r.NotBefore != 0 && len(r.Changes) > 0 }
