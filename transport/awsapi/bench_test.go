package awsapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// echoEngine authenticates everybody and answers Encrypt at once.
type echoEngine struct{ out *kmsapi.EncryptOutput }

func (*echoEngine) AuthenticateSigV4(context.Context, sigv4.Proof) (iam.Identity, error) {
	return iam.Identity{}, nil
}

func (e *echoEngine) Do(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
	return e.out, nil
}

// newEncrypt returns a handler that answers Encrypt of 1 KiB, and such a
// request, signed at the given time.
func newEncrypt(b *testing.B, at time.Time) (f *fixture, r *http.Request, body []byte) {
	const key = "arn:aws:kms:eu-test-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	engine := &echoEngine{&kmsapi.EncryptOutput{CiphertextBlob: make([]byte, 1159), KeyId: ptr(key), EncryptionAlgorithm: ptr("SYMMETRIC_DEFAULT")}}
	f = newFixture(b, func(c *Config) { c.Engine, c.Now = engine, func() time.Time { return at } })
	body = encoded(b, &kmsapi.EncryptInput{KeyId: ptr(key), Plaintext: make([]byte, 1024)})
	r = newRequest("Encrypt", body)
	sign(b, r, body, at)
	return f, r, body
}

// replayed is a body that can be read again for each request.
type replayed struct{ bytes.Reader }

func (*replayed) Close() error { return nil }

// discard discards the answer.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkEncrypt measures the cost of the face itself, without net/http and
// without an engine.
func BenchmarkEncrypt(b *testing.B) {
	f, r, body := newEncrypt(b, testTime)
	ctx, cancel := context.WithCancel(b.Context()) // as the request's own
	defer cancel()
	r = r.WithContext(ctx)
	sent := new(replayed)
	r.Body = sent
	w := &discard{header: make(http.Header)}
	b.ReportAllocs()
	for b.Loop() {
		sent.Reset(body)
		clear(w.header)
		f.ServeHTTP(w, r)
		if w.status != http.StatusOK {
			b.Fatalf("got status %d", w.status)
		}
	}
}

// BenchmarkEncryptHTTPS measures the same over one kept-alive connection on
// loopback, including the client, which allocates nothing.
func BenchmarkEncryptHTTPS(b *testing.B) {
	f, r, _ := newEncrypt(b, testTime)
	var request bytes.Buffer
	if err := r.Write(&request); err != nil {
		b.Fatal(err)
	}
	endpoint, roots, _ := f.serveTLS(b)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(endpoint, "https://"), &tls.Config{RootCAs: roots})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	answer := make([]byte, 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(request.Bytes()); err != nil {
			b.Fatal(err)
		}
		n := 0
		for n == 0 || answer[n-1] != '}' {
			more, err := conn.Read(answer[n:])
			if err != nil {
				b.Fatal(err)
			}
			n += more
		}
		if !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200 OK\r\n")) {
			b.Fatalf("got %s", answer[:n])
		}
	}
}
