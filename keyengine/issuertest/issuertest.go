// Package issuertest is an issuer of web identities (OpenID Connect) for tests: it signs valid
// and invalid tokens, and serves the keys to verify them.
package issuertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"
	"github.com/go-jose/go-jose/v4"
)

// Issuer is an issuer with one current key, which Rotate replaces.
type Issuer struct {
	// URL is that of the issuer, with its scheme.
	URL string
	// Requests counts the requests for documents.
	Requests atomic.Int64
	// Hold delays answers until it can be received from, if it is not nil.
	Hold chan struct{}

	t    testing.TB
	http *httptest.Server

	mu      sync.Mutex
	server  oidctest.Server
	key     crypto.Signer
	id, alg string
	keys    int
	broken  bool
}

// New starts an issuer with TLS on loopback, which ends with the test. Its first key is for
// RS256.
func New(t testing.TB) *Issuer { return start(t, true) }

// NewInsecure is New without TLS.
func NewInsecure(t testing.TB) *Issuer { return start(t, false) }

func start(t testing.TB, secure bool) *Issuer {
	t.Helper()
	i := &Issuer{t: t}
	i.http = httptest.NewUnstartedServer(i)
	if secure {
		i.http.StartTLS()
	} else {
		i.http.Start()
	}
	t.Cleanup(i.http.Close)
	i.URL = i.http.URL
	i.server.SetIssuer(i.URL)
	i.Rotate("RS256")
	return i
}

// Name returns the URL without its scheme, which is what the issuer is registered as.
func (i *Issuer) Name() string {
	_, name, _ := strings.Cut(i.URL, "://")
	return name
}

// Certificate returns the certificate of an issuer with TLS.
func (i *Issuer) Certificate() *x509.Certificate { return i.http.Certificate() }

// Roots returns the certificate authorities of an issuer with TLS.
func (i *Issuer) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.Certificate())
	return pool
}

// Rotate replaces the key by a new one for an algorithm: RS256, ES256, ES384, ES512 and so
// on, or EdDSA.
func (i *Issuer) Rotate(algorithm string) {
	i.t.Helper()
	key, err := newKey(algorithm)
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys++
	i.key, i.id, i.alg = key, fmt.Sprintf("key-%d", i.keys), algorithm
	i.server.PublicKeys = []oidctest.PublicKey{{PublicKey: key.Public(), KeyID: i.id, Algorithm: algorithm}}
}

func newKey(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case "ES256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	default:
		return rsa.GenerateKey(rand.Reader, 2048)
	}
}

// Break makes the issuer answer with errors, or no longer.
func (i *Issuer) Break(broken bool) {
	i.mu.Lock()
	i.broken = broken
	i.mu.Unlock()
}

// ServeHTTP serves the issuer's documents.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.Requests.Add(1)
	if i.Hold != nil {
		select {
		case <-i.Hold:
		case <-r.Context().Done():
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.broken {
		http.Error(w, "broken", http.StatusInternalServerError)
		return
	}
	i.server.ServeHTTP(w, r)
}

// Keys returns the public keys as a JWK set.
func (i *Issuer) Keys() []byte {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.id, Algorithm: i.alg, Use: "sig"}}}
	b, err := json.Marshal(set)
	if err != nil {
		i.t.Fatal(err)
	}
	return b
}

// Claims are the claims of a token.
type Claims map[string]any

// With returns the claims with others added or, where they are nil, taken away.
func (c Claims) With(more Claims) Claims {
	c = maps.Clone(c)
	for k, v := range more {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

// Claims returns those of a token that is valid for an hour.
func (i *Issuer) Claims(now time.Time, subject, audience string) Claims {
	return Claims{"iss": i.URL, "sub": subject, "aud": audience, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix()}
}

// Sign returns a token that is signed with the current key.
func (i *Issuer) Sign(c Claims) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.SignWith(i.key, i.id, i.alg, c)
}

// SignWith returns a token that is signed with another key.
func (i *Issuer) SignWith(key crypto.PrivateKey, id, algorithm string, c Claims) string {
	i.t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		i.t.Fatal(err)
	}
	return oidctest.SignIDToken(key, id, algorithm, string(b))
}
