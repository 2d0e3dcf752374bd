package harness

import (
	"bytes"
	"cmp"
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
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Face sends requests to a node's AWS API that no client of AWS's would send.
type Face struct {
	T       *testing.T
	Cluster *Cluster
	Node    *Node
	Roots   *x509.CertPool
	HTTP    *http.Client
	At      time.Time // of signatures; the zero time is now
	As      aws.Credentials
	// Region and Service are what requests are signed for; the package's Region and "kms" if
	// empty.
	Region, Service string
}

// NewFace is the face of a node for the credentials that the cluster was initialised with.
func NewFace(t *testing.T, c *Cluster, n *Node) *Face {
	t.Helper()
	f := &Face{T: t, Cluster: c, Node: n, Roots: RootsOf(t, c), As: aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.Secret()}}
	tr := &http.Transport{TLSClientConfig: f.TLS(), MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	f.HTTP = &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return f
}

// Of is the same face for a test within the test.
func (f *Face) Of(t *testing.T) *Face {
	g := *f
	g.T = t
	return &g
}

// RootsOf are the certificates of the cluster's CA.
func RootsOf(t *testing.T, c *Cluster) *x509.CertPool {
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

// TLS is a configuration that trusts the cluster's CA.
func (f *Face) TLS() *tls.Config {
	return &tls.Config{RootCAs: f.Roots, MinVersion: tls.VersionTLS12}
}

// Request is a request for an operation, not signed yet.
func (f *Face) Request(target, body string) *http.Request {
	f.T.Helper()
	r, err := http.NewRequestWithContext(f.T.Context(), http.MethodPost, "https://"+f.Node.AWS+"/", bytes.NewReader([]byte(body)))
	if err != nil {
		f.T.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	if target != "" {
		r.Header.Set("X-Amz-Target", target)
	}
	return r
}

// Sign signs a request, as it is now, for a body.
func (f *Face) Sign(r *http.Request, body string) *http.Request {
	f.T.Helper()
	at := f.At
	if at.IsZero() {
		at = time.Now()
	}
	region := f.Region
	if region == "" {
		region = Region
	}
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(context.Background(), f.As, r, hex.EncodeToString(sum[:]), cmp.Or(f.Service, "kms"), region, at); err != nil {
		f.T.Fatal(err)
	}
	return r
}

// Signed is a signed request for an operation.
func (f *Face) Signed(target, body string) *http.Request {
	f.T.Helper()
	return f.Sign(f.Request(target, body), body)
}

// Refusal is what came back.
type Refusal struct {
	Type    string      `json:"__type"`
	Message string      `json:"message"`
	Status  int         `json:"-"`
	Body    []byte      `json:"-"`
	Header  http.Header `json:"-"`
}

// Send sends a request and reads what comes back.
func (f *Face) Send(r *http.Request) (Refusal, error) {
	resp, err := f.HTTP.Do(r)
	if err != nil {
		return Refusal{}, err
	}
	defer resp.Body.Close()
	a := Refusal{Status: resp.StatusCode, Header: resp.Header}
	if a.Body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err != nil {
		return Refusal{}, err
	}
	if a.Status != http.StatusOK {
		if err := json.Unmarshal(a.Body, &a); err != nil {
			return a, fmt.Errorf("status %d with no JSON: %q", a.Status, a.Body)
		}
	}
	return a, nil
}

// Refuses sends a request, which has to be refused in this way.
func (f *Face) Refuses(what string, r *http.Request, status int, code string) {
	f.T.Helper()
	a, err := f.Send(r)
	switch {
	case err != nil:
		f.T.Errorf("%s: %v", what, err)
	case a.Status != status || a.Type != code:
		f.T.Errorf("%s: got %d %s (%s), want %d %s", what, a.Status, a.Type, a.Message, status, code)
	case len(a.Header.Get("x-amzn-RequestId")) != 36:
		f.T.Errorf("%s: request id %q", what, a.Header.Get("x-amzn-RequestId"))
	}
}
