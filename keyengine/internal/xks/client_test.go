package xks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// patient is a timeout that a loaded machine keeps.
const patient = 10 * time.Second

func proxyOf(p *xksproxy.Proxy) *Proxy {
	return &Proxy{
		Endpoint: p.Endpoint, Path: xksproxy.Path, Region: "eu-west-1", AccessKeyID: xksproxy.AccessKeyID,
		SigningKey: func(dst []byte, date, region, service string) error {
			sigv4.Derive(dst, []byte(xksproxy.Secret), date, region, service)
			return nil
		},
	}
}

// TestSign: requests are signed as AWS's own signer does it. The proxy of these tests
// checks them with the package that signs them.
func TestSign(t *testing.T) {
	payload := []byte(`{"requestMetadata":{}}`)
	r, err := http.NewRequest(http.MethodPost, "https://xks.example.com:8443/tenant/kms/xks/v1/keys/a.b-c_D/encrypt", bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	now := time.Date(2026, 11, 23, 12, 36, 0, 0, time.UTC)
	want := r.Clone(t.Context())
	sum := sha256.Sum256(payload)
	err = v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: xksproxy.AccessKeyID, SecretAccessKey: xksproxy.Secret}, want,
		hex.EncodeToString(sum[:]), "kms-xks-proxy", "eu-west-1", now)
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(r, proxyOf(&xksproxy.Proxy{}), payload, now); err != nil {
		t.Fatal(err)
	}
	if got, want := r.Header.Get("Authorization"), want.Header.Get("Authorization"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func newClient(t *testing.T, p *xksproxy.Proxy, timeout time.Duration) *Client {
	c := New(Config{AllowPrivate: true, Roots: p.Roots(), Timeout: timeout})
	t.Cleanup(c.Close)
	return c
}

var origin = Origin{Principal: "arn:aws:iam::111122223333:root", Key: "arn:aws:kms:eu-west-1:111122223333:key/x", Operation: "Encrypt", RequestID: "1"}

func TestCalls(t *testing.T) {
	p := xksproxy.Start(t)
	p.AddKey("a.b-c_D")
	c, to := newClient(t, p, patient), proxyOf(p)
	ctx := t.Context()
	if err := c.Health(ctx, to, origin); err != nil {
		t.Errorf("Health: %v", err)
	}
	m, err := c.KeyMetadata(ctx, to, origin, "a.b-c_D")
	if err != nil || !m.Fits() || !m.Enabled {
		t.Errorf("KeyMetadata: %+v, %v", m, err)
	}
	if _, err := c.KeyMetadata(ctx, to, origin, "none"); !errors.Is(err, ErrKeyNotFound) {
		t.Errorf("KeyMetadata of no key: %v", err)
	}
	for _, size := range []int{1, 33, MaxPlaintext} {
		plaintext, aad := bytes.Repeat([]byte{7}, size), []byte("header")
		s, err := c.Encrypt(ctx, to, origin, "a.b-c_D", plaintext, aad)
		if err != nil {
			t.Fatalf("Encrypt of %d bytes: %v", size, err)
		}
		if got, err := c.Decrypt(ctx, to, origin, "a.b-c_D", s, aad); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("Decrypt of %d bytes: %v", size, err)
		}
		if _, err := c.Decrypt(ctx, to, origin, "a.b-c_D", s, []byte("other")); !errors.Is(err, ErrInvalidCiphertext) {
			t.Errorf("Decrypt with other additional data: %v", err)
		}
	}
	for _, size := range []int{0, MaxPlaintext + 1} {
		if _, err := c.Encrypt(ctx, to, origin, "a.b-c_D", make([]byte, size), nil); err == nil {
			t.Errorf("Encrypt takes %d bytes", size)
		}
	}
	r := p.Requests(xksproxy.Encrypt)[0]
	if r.Region != "eu-west-1" || r.Metadata.Principal != origin.Principal || r.Metadata.Key != origin.Key || r.Metadata.Operation != "Encrypt" || r.Metadata.RequestID != "1" {
		t.Errorf("the proxy was told %+v", r)
	}
	if r := p.Requests(xksproxy.Health)[0]; r.Metadata.Principal != "" || r.Metadata.Key != "" {
		t.Errorf("a health request says whose it is: %+v", r)
	}
	to.AccessKeyID = "ANOTHERACCESSKEYIDAAAA"
	if err := c.Health(ctx, to, origin); !errors.Is(err, ErrAuthentication) {
		t.Errorf("with another access key: %v", err)
	}
	to = proxyOf(p)
	to.Path = "/other" + to.Path
	if err := c.Health(ctx, to, origin); !errors.Is(err, ErrInvalidPath) {
		t.Errorf("with another path: %v", err)
	}
}

// TestFaults is everything that a proxy can do wrong, with the failure that it is.
func TestFaults(t *testing.T) {
	p := xksproxy.Start(t)
	p.AddKey("k")
	to := proxyOf(p)
	c := newClient(t, p, patient)
	s, err := c.Encrypt(t.Context(), to, origin, "k", []byte("plaintext"), nil)
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		xksproxy.Health:   func() error { return c.Health(t.Context(), to, origin) },
		xksproxy.Metadata: func() error { _, err := c.KeyMetadata(t.Context(), to, origin, "k"); return err },
		xksproxy.Encrypt:  func() error { _, err := c.Encrypt(t.Context(), to, origin, "k", []byte("plaintext"), nil); return err },
		xksproxy.Decrypt:  func() error { _, err := c.Decrypt(t.Context(), to, origin, "k", s, nil); return err },
	}
	elsewhere := 0
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	defer other.Close()
	b64 := base64.StdEncoding.EncodeToString
	type row struct {
		name  string
		op    string // "" for all
		fault xksproxy.Fault
		want  Failure
	}
	rows := []row{
		{"no JSON", "", xksproxy.Says("<html>"), ErrMalformed},
		{"empty", "", xksproxy.Says(""), ErrMalformed},
		{"empty object", "", xksproxy.Says("{}"), ErrMalformed},
		{"null", "", xksproxy.Says("null"), ErrMalformed},
		{"list", "", xksproxy.Says("[]"), ErrMalformed},
		{"nested deep", "", xksproxy.Says(`{"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}"), ErrMalformed},
		{"oversized", "", xksproxy.Oversized(), ErrMalformed},
		{"error without a known name", "", xksproxy.Status(400, "OtherException"), ErrMalformed},
		{"error with another status", "", xksproxy.Status(500, "KeyNotFoundException"), ErrMalformed},
		{"redirect", "", xksproxy.Redirect(other.URL), ErrMalformed},
		{"reset", "", xksproxy.Reset(), ErrUnreachable},
		{"all managers unavailable", xksproxy.Health, xksproxy.Wrong(map[string]any{"ekmFleetDetails": []map[string]string{{"id": "1", "model": "m", "healthStatus": "UNAVAILABLE"}}}), ErrUnavailable},
		{"unknown health", xksproxy.Health, xksproxy.Wrong(map[string]any{"ekmFleetDetails": []map[string]string{{"id": "1", "model": "m", "healthStatus": "FINE"}}}), ErrMalformed},
		{"no managers", xksproxy.Health, xksproxy.Wrong(map[string]any{"ekmFleetDetails": []string{}}), ErrMalformed},
		{"no fleet", xksproxy.Health, xksproxy.Wrong(map[string]any{"xksProxyFleetSize": 0}), ErrMalformed},
		{"unknown key status", xksproxy.Metadata, xksproxy.Wrong(map[string]any{"keyStatus": "OK"}), ErrMalformed},
		{"eleven usages", xksproxy.Metadata, xksproxy.Wrong(map[string]any{"keyUsage": make([]string, 11)}), ErrMalformed},
		{"wrong integrity value", xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"ciphertextDataIntegrityValue": b64(make([]byte, 32))}), ErrMalformed},
		{"no integrity value", xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"ciphertextDataIntegrityValue": nil}), ErrMalformed},
		{"short tag", xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"authenticationTag": b64(make([]byte, 15))}), ErrMalformed},
		{"vector of 13 bytes", xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"initializationVector": b64(make([]byte, 13))}), ErrMalformed},
		{"much metadata", xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"ciphertextMetadata": b64(make([]byte, 21))}), ErrMalformed},
		{"another ciphertext", xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"ciphertext": b64([]byte("Plaintext"))}), ErrMalformed},
		{"ciphertext is no base64", xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"ciphertext": "Zg=\n="}), ErrMalformed},
		{"member in another case", xksproxy.Decrypt, xksproxy.Says(`{"Plaintext":"` + b64([]byte("plaintext")) + `"}`), ErrMalformed},
		{"member twice", xksproxy.Decrypt, xksproxy.Says(`{"plaintext":"` + b64([]byte("plaintext")) + `","plaintext":"` + b64([]byte("plaintext")) + `"}`), ErrMalformed},
		{"right, and nested deep", xksproxy.Decrypt, xksproxy.Says(`{"plaintext":"` + b64([]byte("plaintext")) + `","x":[[[[[[[[[]]]]]]]]]}`), ErrMalformed},
		{"right, and oversized", xksproxy.Decrypt, xksproxy.Says(`{"plaintext":"` + b64([]byte("plaintext")) + `"}` + strings.Repeat(" ", maxBody)), ErrMalformed},
		{"something behind", xksproxy.Decrypt, xksproxy.Says(`{"plaintext":"` + b64([]byte("plaintext")) + `"}{}`), ErrMalformed},
		{"longer plaintext", xksproxy.Decrypt, xksproxy.Says(`{"plaintext":"` + b64([]byte("plaintext and more")) + `"}`), ErrMalformed},
	}
	for name := range xksproxy.Names {
		rows = append(rows, row{name, "", xksproxy.Named(name), Failure(name)})
	}
	for _, tt := range rows {
		for op, call := range calls {
			if tt.op != "" && tt.op != op {
				continue
			}
			t.Run(tt.name+" "+op, func(t *testing.T) {
				p.Fail(op, tt.fault)
				defer p.Fail(op, nil)
				if err := call(); !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				} else if strings.Contains(err.Error(), "own words") {
					t.Errorf("the error repeats the proxy: %v", err)
				}
			})
		}
	}
	if elsewhere != 0 {
		t.Errorf("a redirect was followed %d times", elsewhere)
	}
	for op, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s after all faults: %v", op, err)
		}
	}
}

func TestTimeout(t *testing.T) {
	p := xksproxy.Start(t)
	p.Fail(xksproxy.Health, xksproxy.Delay(time.Minute))
	if err := newClient(t, p, 50*time.Millisecond).Health(t.Context(), proxyOf(p), origin); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v, want %v", err, ErrTimeout)
	}
	// The caller's context counts too.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newClient(t, p, patient).Health(ctx, proxyOf(p), origin); err == nil {
		t.Error("a call goes on without its caller")
	}
	if New(Config{}).timeout != 250*time.Millisecond {
		t.Error("the timeout is not AWS's")
	}
}

func TestConnections(t *testing.T) {
	p := xksproxy.Start(t)
	to := proxyOf(p)
	for name, tt := range map[string]struct {
		cfg  Config
		end  bool
		want Failure
	}{
		"loopback is not public":    {Config{Roots: p.Roots(), Timeout: patient}, false, ErrAddress},
		"certificate of a stranger": {Config{AllowPrivate: true, Timeout: patient}, false, ErrTLS},
		"nobody there":              {Config{AllowPrivate: true, Roots: p.Roots(), Timeout: patient}, true, ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			to := *to
			if tt.end {
				gone := xksproxy.Start(t)
				to.Endpoint = gone.Endpoint
				gone.Close()
			}
			if err := New(tt.cfg).Health(t.Context(), &to, origin); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	to.Endpoint = strings.Replace(plain.URL, "http:", "https:", 1)
	if err := newClient(t, p, patient).Health(t.Context(), to, origin); !errors.Is(err, ErrTLS) {
		t.Errorf("a server without TLS: %v", err)
	}
	t.Setenv("HTTPS_PROXY", plain.URL)
	if err := newClient(t, p, patient).Health(t.Context(), proxyOf(p), origin); err != nil {
		t.Errorf("with a proxy in the environment: %v", err)
	}
}

// TestIntegrity is the example of the specification's appendix C.
func TestIntegrity(t *testing.T) {
	raw := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	s := &Sealed{Ciphertext: raw("ghxkK1txeDNn3q8Y"), Metadata: raw("a2V5X3ZlcnNpb249MQ=="), IV: raw("HMrlRw85cAJUd5Ax"), Tag: raw("vBxN2ncH1oEkR8WVXpmyYQ==")}
	got := integrity(s, []byte("project=nile,department=marketing"))
	if want := "qHA/ImC9h5HsLRXqCyPmWgYx7tzyoTplzILbP0fPXsc="; base64.StdEncoding.EncodeToString(got[:]) != want {
		t.Errorf("got %x, want %s", got, want)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add(200, []byte(`{"plaintext":"AAAA"}`))
	f.Add(404, []byte(`{"errorName":"KeyNotFoundException","errorMessage":"x"}`))
	f.Add(200, []byte(`{"keySpec":"AES_256","keyUsage":["ENCRYPT","DECRYPT"],"keyStatus":"ENABLED"}`))
	f.Add(200, []byte(`{"xksProxyFleetSize":1,"xksProxyVendor":"","xksProxyModel":"","ekmVendor":"","ekmFleetDetails":[{"id":"","model":"","healthStatus":"ACTIVE"}]}`))
	f.Add(200, []byte(`{"ciphertext":"AA==","initializationVector":"AAAAAAAAAAAAAAAA","authenticationTag":"AAAAAAAAAAAAAAAAAAAAAA==","ciphertextDataIntegrityValue":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Fuzz(func(t *testing.T, status int, answer []byte) {
		var failure Failure
		if err := decodeFailure(status, answer); !errors.As(err, &failure) {
			t.Errorf("failure without a kind: %v", err)
		}
		check := func(err error) {
			if err != nil && !errors.Is(err, ErrMalformed) {
				t.Errorf("refused with %v", err)
			}
		}
		h, err := decodeHealth(answer)
		if check(err); err == nil && (len(h.statuses) < 1 || len(h.statuses) > maxFleet) {
			t.Errorf("health of %d managers", len(h.statuses))
		}
		m, err := decodeKeyMetadata(answer)
		if check(err); err == nil && len(m.Usages) > maxUsages {
			t.Errorf("%d usages", len(m.Usages))
		}
		s, value, err := decodeSealed(answer)
		if check(err); err == nil && (len(s.Ciphertext) > MaxPlaintext || len(s.IV) != 12 && len(s.IV) != 16 || len(s.Tag) != tagSize || len(s.Metadata) > MaxMetadata || len(value) != 32) {
			t.Errorf("sealed: %+v", s)
		}
		p, err := decodePlaintext(answer)
		if check(err); err == nil && (len(p) < 1 || len(p) > MaxPlaintext) {
			t.Errorf("%d bytes of plaintext", len(p))
		}
	})
}
