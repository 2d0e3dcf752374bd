// Package xksproxy is an external key store proxy for tests: AWS's "External Key
// Store Proxy API" version 1 over TLS, with AES keys in memory. It does
// wrong what a test asks for.
package xksproxy

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/transport/sigv4"
)

// What a new proxy is reached and asked with.
const (
	Path        = "/kms/xks/v1"
	TenantPath  = "/tenant" + Path // has the same keys
	AccessKeyID = "XKSTESTPROXYACCESSKEY2"
	Secret      = "test/secret+of/the+external/key+store+proxy="
)

// Operations by the last part of their path.
const (
	Health   = "health"
	Metadata = "metadata"
	Encrypt  = "encrypt"
	Decrypt  = "decrypt"
)

// Proxy is a running proxy. Its methods may be called at any time.
type Proxy struct {
	// Endpoint is https://127.0.0.1:PORT.
	Endpoint string
	server   *httptest.Server

	mu       sync.Mutex
	keys     map[string]*Key
	secrets  map[string]string // by access key id
	faults   map[string]Fault  // by operation
	requests []Request
	version  byte
}

// Key is an external key.
type Key struct {
	Spec     string
	Usages   []string
	Disabled bool
	aead     map[byte]cipher.AEAD // by version
}

// Request is one that was made, and signed as it should be.
type Request struct {
	Operation string
	Key       string
	Region    string // that it was signed for
	Metadata  struct {
		Principal string `json:"awsPrincipalArn"`
		Key       string `json:"kmsKeyArn"`
		Operation string `json:"kmsOperation"`
		RequestID string `json:"kmsRequestId"`
	}
	Plaintext []byte
	AAD       []byte
}

// Start starts a proxy, which ends with the test.
func Start(t testing.TB) *Proxy {
	t.Helper()
	p := &Proxy{
		keys: make(map[string]*Key), faults: make(map[string]Fault), secrets: map[string]string{AccessKeyID: Secret}, version: 1,
	}
	p.server = httptest.NewUnstartedServer(p)
	p.server.EnableHTTP2 = true
	p.server.Config.ErrorLog = log.New(io.Discard, "", 0) // tests cut connections
	p.server.StartTLS()
	p.Endpoint = p.server.URL
	t.Cleanup(func() {
		p.server.CloseClientConnections()
		p.server.Close()
	})
	return p
}

// CA is the certificate to trust, in PEM.
func (p *Proxy) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
}

// Roots is a pool of that certificate alone.
func (p *Proxy) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.server.Certificate())
	return pool
}

// Close stops the proxy before the test ends.
func (p *Proxy) Close() {
	p.server.CloseClientConnections()
	p.server.Close()
}

// AddKey makes an AES key that encrypts and decrypts.
func (p *Proxy) AddKey(id string) {
	p.PutKey(id, &Key{Spec: "AES_256", Usages: []string{"ENCRYPT", "DECRYPT", "WRAP"}})
}

// PutKey makes or changes a key.
func (p *Proxy) PutKey(id string, k *Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if was := p.keys[id]; was != nil {
		k.aead = was.aead
	} else {
		k.aead = make(map[byte]cipher.AEAD)
	}
	p.keys[id] = k
}

// RemoveKey forgets a key.
func (p *Proxy) RemoveKey(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.keys, id)
}

// Rotate has all keys encrypt with new bytes from here on.
func (p *Proxy) Rotate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version++
}

// SetSecret makes or changes a credential; "" withdraws it.
func (p *Proxy) SetSecret(accessKeyID, secret string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.secrets[accessKeyID] = secret
}

// Fail has an operation fail from here on; nil ends that.
func (p *Proxy) Fail(operation string, f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[operation] = f
}

// Requests are those of an operation so far.
func (p *Proxy) Requests(operation string) (all []Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.requests {
		if r.Operation == operation {
			all = append(all, r)
		}
	}
	return all
}

// failure is an answer of the specification.
type failure struct {
	status int
	name   string
}

func (f failure) answer(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(map[string]string{"errorName": f.name, "errorMessage": "the proxy's own words, which callers never see"})
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	rest, ok := strings.CutPrefix(strings.TrimPrefix(r.URL.Path, "/tenant"), Path+"/")
	if !ok {
		failure{http.StatusNotFound, "InvalidUriPathException"}.answer(w)
		return
	}
	operation, key := rest, ""
	if parts := strings.Split(rest, "/"); len(parts) == 3 && parts[0] == "keys" {
		key, operation = parts[1], parts[2]
	}
	region, ok := p.authentic(r, body)
	if !ok {
		failure{http.StatusUnauthorized, "AuthenticationFailedException"}.answer(w)
		return
	}
	var in struct {
		Metadata   json.RawMessage `json:"requestMetadata"`
		AAD        []byte          `json:"additionalAuthenticatedData"`
		Plaintext  []byte          `json:"plaintext"`
		Algorithm  string          `json:"encryptionAlgorithm"`
		Integrity  string          `json:"ciphertextDataIntegrityValueAlgorithm"`
		Ciphertext []byte          `json:"ciphertext"`
		Extra      []byte          `json:"ciphertextMetadata"`
		IV         []byte          `json:"initializationVector"`
		Tag        []byte          `json:"authenticationTag"`
	}
	req := Request{Operation: operation, Key: key, Region: region}
	if json.Unmarshal(body, &in) != nil || json.Unmarshal(in.Metadata, &req.Metadata) != nil || req.Metadata.Operation == "" || req.Metadata.RequestID == "" {
		failure{http.StatusBadRequest, "ValidationException"}.answer(w)
		return
	}
	req.Plaintext, req.AAD = in.Plaintext, in.AAD
	p.mu.Lock()
	p.requests = append(p.requests, req)
	fault, k, version := p.faults[operation], p.keys[key], p.version
	p.mu.Unlock()
	answer := func() (any, *failure) {
		if operation == Health && key == "" {
			return map[string]any{
				"xksProxyFleetSize": 1, "xksProxyVendor": "Conclave", "xksProxyModel": "for tests", "ekmVendor": "Conclave",
				"ekmFleetDetails": []map[string]string{{"id": "1", "model": "memory", "healthStatus": "ACTIVE"}},
			}, nil
		}
		if k == nil {
			return nil, &failure{http.StatusNotFound, "KeyNotFoundException"}
		}
		if operation == Metadata {
			status := "ENABLED"
			if k.Disabled {
				status = "DISABLED"
			}
			return map[string]any{"keySpec": k.Spec, "keyUsage": k.Usages, "keyStatus": status}, nil
		}
		switch {
		case req.Metadata.Principal == "" || req.Metadata.Key == "" || in.Algorithm != "AES_GCM":
			return nil, &failure{http.StatusBadRequest, "ValidationException"}
		case k.Disabled:
			return nil, &failure{http.StatusBadRequest, "InvalidStateException"}
		case !slices.Contains(k.Usages, strings.ToUpper(operation)):
			return nil, &failure{http.StatusBadRequest, "InvalidKeyUsageException"}
		}
		switch operation {
		case Encrypt:
			extra := []byte{version}
			aead := p.aead(k, version)
			iv := make([]byte, aead.NonceSize())
			_, _ = rand.Read(iv)
			sealed := aead.Seal(nil, iv, in.Plaintext, additional(in.AAD, extra))
			at := len(sealed) - aead.Overhead()
			value := sha256.Sum256(slices.Concat(in.AAD, extra, iv, sealed))
			out := map[string]any{"ciphertext": sealed[:at], "authenticationTag": sealed[at:], "initializationVector": iv, "ciphertextMetadata": extra}
			if in.Integrity == "SHA_256" {
				out["ciphertextDataIntegrityValue"] = value[:]
			}
			return out, nil
		case Decrypt:
			if len(in.Extra) != 1 || len(in.IV) != 12 {
				return nil, &failure{http.StatusBadRequest, "InvalidCiphertextException"}
			}
			plaintext, err := p.aead(k, in.Extra[0]).Open(nil, in.IV, slices.Concat(in.Ciphertext, in.Tag), additional(in.AAD, in.Extra))
			if err != nil {
				return nil, &failure{http.StatusBadRequest, "InvalidCiphertextException"}
			}
			return map[string]any{"plaintext": plaintext}, nil
		}
		return nil, &failure{http.StatusNotFound, "InvalidUriPathException"}
	}
	if fault != nil && fault(w, r, answer) {
		return
	}
	out, failed := answer()
	if failed != nil {
		failed.answer(w)
		return
	}
	writeJSON(w, out)
}

func writeJSON(w http.ResponseWriter, out any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

// aead is the cipher of a version of a key, made when it is first asked for.
func (p *Proxy) aead(k *Key, version byte) cipher.AEAD {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k.aead[version] == nil {
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		block, err := aes.NewCipher(key)
		if err != nil {
			panic(err)
		}
		if k.aead[version], err = cipher.NewGCM(block); err != nil {
			panic(err)
		}
	}
	return k.aead[version]
}

// additional is the additional data as the specification puts it together.
func additional(aad, extra []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(aad)))
	b = append(b, aad...)
	b = append(b, byte(len(extra)))
	return append(b, extra...)
}

// verifier reads the signatures of the clients of external key stores.
var verifier = sigv4.NewVerifier("kms-xks-proxy", "Content-Type")

// authentic checks the request's signature, of whatever time it is: tests have clocks
// of their own. It returns the Region of the scope.
func (p *Proxy) authentic(r *http.Request, body []byte) (string, bool) {
	at, err := time.Parse(sigv4.TimeFormat, r.Header.Get(sigv4.HeaderDate))
	if err != nil {
		return "", false
	}
	var c sigv4.Claim
	if err := verifier.Read(&c, r, at); err != nil {
		return "", false
	}
	proof, _, err := c.Proof(nil, r, body)
	if err != nil {
		return "", false
	}
	p.mu.Lock()
	secret := p.secrets[c.AccessKeyID]
	p.mu.Unlock()
	var key [sigv4.KeySize]byte
	proof.Derive(key[:], []byte(secret))
	return c.Region, secret != "" && proof.SignedBy(key[:])
}
