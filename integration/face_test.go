package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// face sends requests to a node's AWS API that no client of AWS's would send.
type face struct {
	t     *testing.T
	c     *harness.Cluster
	n     *harness.Node
	roots *x509.CertPool
	http  *http.Client
	at    time.Time // of signatures; the zero time is now
	as    aws.Credentials
	// region that requests are signed for; harness.Region if empty.
	region string
}

func newFace(t *testing.T, c *harness.Cluster, n *harness.Node) *face {
	t.Helper()
	f := &face{t: t, c: c, n: n, roots: rootsOf(t, c), as: aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.Secret()}}
	tr := &http.Transport{TLSClientConfig: f.tls(), MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	f.http = &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return f
}

// of is the same face for a test within the test.
func (f *face) of(t *testing.T) *face {
	g := *f
	g.t = t
	return &g
}

func rootsOf(t *testing.T, c *harness.Cluster) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("the CA file has no certificate")
	}
	return pool
}

func (f *face) tls() *tls.Config {
	return &tls.Config{RootCAs: f.roots, MinVersion: tls.VersionTLS12}
}

// request is a request for an operation, not signed yet.
func (f *face) request(target, body string) *http.Request {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), http.MethodPost, "https://"+f.n.AWS+"/", bytes.NewReader([]byte(body)))
	if err != nil {
		f.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	if target != "" {
		r.Header.Set("X-Amz-Target", target)
	}
	return r
}

// sign signs a request, as it is now, for a body.
func (f *face) sign(r *http.Request, body string) *http.Request {
	f.t.Helper()
	at := f.at
	if at.IsZero() {
		at = time.Now()
	}
	region := f.region
	if region == "" {
		region = harness.Region
	}
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(context.Background(), f.as, r, hex.EncodeToString(sum[:]), "kms", region, at); err != nil {
		f.t.Fatal(err)
	}
	return r
}

// signed is a signed request for an operation.
func (f *face) signed(target, body string) *http.Request {
	f.t.Helper()
	return f.sign(f.request(target, body), body)
}

// refusal is what came back.
type refusal struct {
	Type    string `json:"__type"`
	Message string `json:"message"`
	status  int
	body    []byte
	header  http.Header
}

func (f *face) send(r *http.Request) (refusal, error) {
	resp, err := f.http.Do(r)
	if err != nil {
		return refusal{}, err
	}
	defer resp.Body.Close()
	a := refusal{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err != nil {
		return refusal{}, err
	}
	if a.status != http.StatusOK {
		if err := json.Unmarshal(a.body, &a); err != nil {
			return a, fmt.Errorf("status %d with no JSON: %q", a.status, a.body)
		}
	}
	return a, nil
}

// refuses sends a request, which has to be refused in this way.
func (f *face) refuses(what string, r *http.Request, status int, code string) {
	f.t.Helper()
	a, err := f.send(r)
	switch {
	case err != nil:
		f.t.Errorf("%s: %v", what, err)
	case a.status != status || a.Type != code:
		f.t.Errorf("%s: got %d %s (%s), want %d %s", what, a.status, a.Type, a.Message, status, code)
	case len(a.header.Get("x-amzn-RequestId")) != 36:
		f.t.Errorf("%s: request id %q", what, a.header.Get("x-amzn-RequestId"))
	}
}

// records is how many records the audit log has.
func records(t *testing.T, n *harness.Node) uint64 {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.GetAudit().GetSize()
}

// usable checks that a node does its work.
func usable(t *testing.T, n *harness.Node) {
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

// metric reads a number from a node's metrics.
func metric(t *testing.T, n *harness.Node, name string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(opsGet(t, n, "/metrics"))
	if m == nil {
		t.Fatalf("there is no metric %s", name)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// opsClient waits for no answer that does not come.
var opsClient = &http.Client{Timeout: 20 * time.Second}

// opsGet reads a page of a node's port for metrics and health.
func opsGet(t *testing.T, n *harness.Node, path string) []byte {
	t.Helper()
	resp, err := opsClient.Get("http://" + n.Ops + path)
	// Who scrapes is a stranger, and while others crowd the port may have to ask again.
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		resp, err = opsClient.Get("http://" + n.Ops + path)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
