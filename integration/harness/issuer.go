package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/conclavekms/conclave/cmd/conclave/node"
)

// Audience is that of an Issuer's tokens, as Kubernetes has it for AWS.
const Audience = "sts.amazonaws.com"

// Issuer is an identity provider (OpenID Connect) on loopback, which issues tokens like those
// of Kubernetes for service accounts.
type Issuer struct {
	// URL is the issuer's, as in its tokens.
	URL string

	t    *testing.T
	cert []byte

	mu     sync.Mutex
	signer jose.Signer
	public jose.JSONWebKey
	keys   int // made so far
}

// StartIssuer starts an issuer, which ends with the test.
func StartIssuer(t *testing.T) *Issuer {
	t.Helper()
	i := &Issuer{t: t}
	mux := http.NewServeMux()
	s := httptest.NewUnstartedServer(mux)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		i.answer(w, map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.public}})
	})
	s.StartTLS()
	t.Cleanup(s.Close)
	i.URL = s.URL
	i.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	i.Rotate()
	return i
}

func (i *Issuer) answer(w http.ResponseWriter, doc any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(doc); err != nil {
		i.t.Errorf("the issuer's answer: %v", err)
	}
}

// Rotate replaces the issuer's key. Nothing publishes the old one any more.
func (i *Issuer) Rotate() {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys++
	private := jose.JSONWebKey{Key: key, KeyID: fmt.Sprintf("key-%d", i.keys), Algorithm: string(jose.ES256), Use: "sig"}
	i.public = private.Public()
	if i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: private}, nil); err != nil {
		i.t.Fatal(err)
	}
}

// Token returns a token for a subject that is valid from now for a time, which may be
// negative.
func (i *Issuer) Token(subject string, life time.Duration) string {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now()
	raw, err := jwt.Signed(i.signer).Claims(jwt.Claims{
		Issuer: i.URL, Subject: subject, Audience: jwt.Audience{Audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(life)),
	}).Serialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return raw
}

// Trust has nodes accept the issuer's certificate and its address, for Options.Configure.
func (i *Issuer) Trust() func(*Node, *node.Config) {
	i.t.Helper()
	ca := filepath.Join(i.t.TempDir(), "issuer.pem")
	if err := os.WriteFile(ca, i.cert, 0o600); err != nil {
		i.t.Fatal(err)
	}
	return func(_ *Node, cfg *node.Config) {
		cfg.WebIdentityCA, cfg.WebIdentityAllowPrivate = ca, true
	}
}
