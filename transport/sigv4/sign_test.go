package sigv4

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

func signer(service, headers string) *Signer {
	return &Signer{AccessKeyID: testKeyID, Region: testRegion, Service: service, SignedHeaders: headers, SigningKey: Secret(testSecret)}
}

// TestSignAgainstSDK: a Signer makes the same signature as the SDK's, and the
// Verifier accepts it.
func TestSignAgainstSDK(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range 2000 {
		path := []string{"/", "/kms/xks/v1/keys/a.b-c_D/encrypt", "/a b/%41/é", "/a//../b", ""}[rnd.IntN(5)]
		body := make([]byte, 1+rnd.IntN(300))
		r, err := http.NewRequest("POST", "https://xks.example.com:8443"+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		value := make([]byte, rnd.IntN(12))
		for i := range value {
			value[i] = " \taB,;=%+\""[rnd.IntN(10)]
		}
		for range 1 + rnd.IntN(3) {
			r.Header.Add("X-Value", strings.Trim(string(value), " \t"))
		}
		now := testTime.Add(time.Duration(rnd.Int64N(int64(100 * 24 * time.Hour))))
		again := r.Clone(t.Context())
		if err := v4.NewSigner().SignHTTP(t.Context(), sdkCredentials, again, hashOf(body), "kms-xks-proxy", testRegion, now); err != nil {
			t.Fatal(err)
		}
		if err := signer("kms-xks-proxy", "content-length;content-type;host;x-amz-date;x-value").Sign(r, body, now); err != nil {
			t.Fatal(err)
		}
		if got, want := r.Header.Get("Authorization"), again.Header.Get("Authorization"); got != want {
			t.Fatalf("request %d, %q:\ngot  %s\nwant %s", i, path, got, want)
		}
		v := NewVerifier("kms-xks-proxy", "Content-Type")
		if err := verify(v, r, body, testSecret, now); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if err := verify(v, r, body, testSecret+"x", now); err == nil {
			t.Fatalf("request %d is accepted with another secret", i)
		}
	}
}

func TestSignFails(t *testing.T) {
	locked := errors.New("locked")
	for _, tc := range []struct {
		name, headers string
		change        func(*Signer, *http.Request)
		want          string
	}{
		{"no host", "content-type;x-amz-date", nil, "lack host or x-amz-date"},
		{"no date", "content-type;host", nil, "lack host or x-amz-date"},
		{"out of order", "host;content-type;x-amz-date", nil, "not in alphabetical order"},
		{"upper case", "Content-Type;host;x-amz-date", nil, "not in alphabetical order"},
		{"none", "", nil, "not in alphabetical order"},
		{"a header that is not there", "host;x-amz-date;x-amz-target", func(_ *Signer, r *http.Request) { r.Header.Del("X-Amz-Target") }, "does not have the header 'x-amz-target'"},
		{"a body of unknown length", "content-length;host;x-amz-date", func(_ *Signer, r *http.Request) { r.ContentLength = -1 }, "does not have the header 'content-length'"},
		{"a query string", "host;x-amz-date", func(_ *Signer, r *http.Request) { r.URL.RawQuery = "a=b" }, "query string"},
		{"no key", "host;x-amz-date", func(s *Signer, _ *http.Request) {
			s.SigningKey = func([]byte, string, string, string) error { return locked }
		}, "locked"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, r := signer("kms", tc.headers), newRequest("Encrypt", nil)
			if tc.change != nil {
				tc.change(s, r)
			}
			err := s.Sign(r, nil, testTime)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			if r.Header.Get("Authorization") != "" {
				t.Error("the request has a signature")
			}
		})
	}
}

// TestSecret: the kept key is never used for another scope.
func TestSecret(t *testing.T) {
	key := Secret(testSecret)
	var got, want [KeySize]byte
	for _, s := range [][3]string{
		{"20261123", "eu-test-1", "kms"}, {"20261123", "eu-test-1", "kms"}, {"20261124", "eu-test-1", "kms"},
		{"20261124", "eu-test-2", "kms"}, {"20261124", "eu-test-2", "s3"}, {"20261124", "eu-test-2s", "3"},
	} {
		if err := key(got[:], s[0], s[1], s[2]); err != nil {
			t.Fatal(err)
		}
		if Derive(want[:], []byte(testSecret), s[0], s[1], s[2]); got != want {
			t.Errorf("%q: got %x, want %x", s, got, want)
		}
	}
}

// TestSignedByComparesEverything: a signature with any bit changed is refused.
func TestSignedByComparesEverything(t *testing.T) {
	p := Proof{Date: "20261123", Region: testRegion, Service: "kms", StringToSign: []byte("text")}
	var key [KeySize]byte
	p.Derive(key[:], []byte(testSecret))
	right := appendSignature(nil, key[:], p.StringToSign)
	for i := range 8 * len(right) {
		p.Signature = bytes.Clone(right)
		if !p.SignedBy(key[:]) {
			t.Fatal("the signature is not accepted")
		}
		if p.Signature[i/8] ^= 1 << (i % 8); p.SignedBy(key[:]) {
			t.Errorf("accepted with bit %d changed", i)
		}
	}
	for _, n := range []int{0, 31, 33} {
		if p.Signature = append(bytes.Clone(right), 0)[:n]; p.SignedBy(key[:]) || p.WellFormed() {
			t.Errorf("a signature of %d bytes is accepted", n)
		}
	}
}

// FuzzSign: a signed request is accepted, whatever it contains, and refused with
// another path, value or body.
func FuzzSign(f *testing.F) {
	f.Add("/", "value", []byte("{}"))
	f.Add("/a b/%41", "  a   b ", []byte(nil))
	f.Add("/%2F%2e", "\x00\xff", []byte{0})
	f.Fuzz(func(t *testing.T, path, value string, body []byte) {
		r, err := http.NewRequest("POST", "https://kms.test", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path = "/" + path
		r.Header["X-Amz-Target"] = []string{value}
		if err := signer("kms", "host;x-amz-date;x-amz-target").Sign(r, body, testTime); err != nil {
			t.Fatal(err)
		}
		check := func() error { return verify(kms, r, body, testSecret, testTime) }
		if err := check(); err != nil {
			t.Fatal(err)
		}
		r.URL.Path += "x"
		if check() == nil {
			t.Error("accepted with another path")
		}
		r.URL.Path = "/" + path
		r.Header["X-Amz-Target"] = []string{value + "x"}
		if check() == nil {
			t.Error("accepted with another value")
		}
		r.Header["X-Amz-Target"] = []string{value}
		if body = append(body, 0); check() == nil {
			t.Error("accepted with another body")
		}
	})
}

// TestServiceOf: a service is returned only if it could be a name.
func TestServiceOf(t *testing.T) {
	for _, tc := range []struct{ header, query, want string }{
		{"", "", ""},
		{Algorithm + " Credential=a/b/c/sts/e, SignedHeaders=", "", "sts"},
		{"", "X-Amz-Credential=a%2Fb%2Fc%2Fs3%2Fe", "s3"},
		{Algorithm + " Credential=a/b/c/sts/e", "X-Amz-Credential=a%2Fb%2Fc%2Fs3%2Fe", "sts"},
		{Algorithm + " Credential=a/b/c/<b>/e", "", ""},
		{Algorithm + " Credential=a/b/c//e", "", ""},
		{Algorithm + " Credential=a/b/c/" + strings.Repeat("s", 65) + "/e", "", ""},
		{Algorithm + " Credential=a/sts/e", "", ""},
		{"Bearer a/b/c/sts/e", "", ""},
	} {
		r := httptest.NewRequest("GET", "/?"+tc.query, nil)
		if tc.header != "" {
			r.Header.Set("Authorization", tc.header)
		}
		if got := ServiceOf(r); got != tc.want {
			t.Errorf("%q %q: got %q, want %q", tc.header, tc.query, got, tc.want)
		}
	}
}

// BenchmarkVerify measures what a server does for a request, except for the
// derivation of the signing key, which it keeps.
func BenchmarkVerify(b *testing.B) {
	body := make([]byte, 1500)
	r := newRequest("Encrypt", body)
	if err := signer("kms", "content-length;content-type;host;x-amz-date;x-amz-target").Sign(r, body, testTime); err != nil {
		b.Fatal(err)
	}
	var key [KeySize]byte
	Derive(key[:], []byte(testSecret), testTime.Format(dateFormat), testRegion, "kms")
	var c Claim
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if err := kms.Read(&c, r, testTime); err != nil {
			b.Fatal(err)
		}
		p, _, err := c.Proof(buf, r, body)
		if err != nil || !p.SignedBy(key[:]) {
			b.Fatal("not accepted", err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	body := make([]byte, 1500)
	r, s := newRequest("Encrypt", body), signer("kms", "content-type;host;x-amz-date;x-amz-target")
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Sign(r, body, testTime); err != nil {
			b.Fatal(fmt.Errorf("signing: %w", err))
		}
	}
}
