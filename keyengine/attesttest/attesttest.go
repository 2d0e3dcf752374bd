// Package attesttest simulates AWS Nitro Enclaves for tests: a root and hypervisors that
// sign valid and invalid attestation documents, and enclaves that decrypt answers. It
// shares no code with the code under test.
package attesttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync"
	"time"
)

// Authority is a certificate with its key.
type Authority struct {
	Certificate *x509.Certificate
	Key         *ecdsa.PrivateKey
}

// NewAuthority returns a root that is valid for thirty years, beginning an hour before now.
func NewAuthority(name string, now time.Time) (*Authority, error) {
	return (*Authority)(nil).Issue(&x509.Certificate{
		Subject: subject(name), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(30 * 365 * 24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}, elliptic.P384())
}

func subject(name string) pkix.Name {
	return pkix.Name{Country: []string{"US"}, Organization: []string{"Amazon"}, OrganizationalUnit: []string{"AWS"}, CommonName: name}
}

// Issue issues a certificate for a new key. A nil Authority issues a self-signed one.
func (a *Authority) Issue(template *x509.Certificate, curve elliptic.Curve) (*Authority, error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	t := *template
	t.SerialNumber = big.NewInt(time.Now().UnixNano())
	parent, signer := &t, key
	if a != nil {
		parent, signer = a.Certificate, a.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	return &Authority{Certificate: c, Key: key}, err
}

// PEM returns the certificate in PEM.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw})
}

// Chain is a chain of authorities, from the root to the hypervisor.
type Chain []*Authority

// NewChain returns a chain like Nitro's, from a root through Region, zone and instance.
func NewChain(root *Authority, now time.Time) (Chain, error) {
	c := Chain{root}
	for i, name := range []string{"region", "zone", "instance"} {
		next, err := c[i].Issue(&x509.Certificate{
			Subject: subject(name + ".aws.nitro-enclaves"), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
			BasicConstraintsValid: true, IsCA: true, MaxPathLen: 2 - i, MaxPathLenZero: i == 2, KeyUsage: x509.KeyUsageCertSign,
		}, elliptic.P384())
		if err != nil {
			return nil, err
		}
		c = append(c, next)
	}
	return c.With(nil, elliptic.P384(), now)
}

// With returns the chain with a new hypervisor certificate at its end. change, if not nil,
// may make it invalid.
func (c Chain) With(change func(*x509.Certificate), curve elliptic.Curve, now time.Time) (Chain, error) {
	t := &x509.Certificate{
		Subject: subject("i-0123456789abcdef0-enc0123456789abcdef.aws"), NotBefore: now.Add(-3 * time.Second), NotAfter: now.Add(3 * time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(t)
	}
	authorities := c
	if n := len(c); !c[n-1].Certificate.IsCA {
		authorities = c[:n-1]
	}
	leaf, err := authorities[len(authorities)-1].Issue(t, curve)
	return append(authorities[:len(authorities):len(authorities)], leaf), err
}

// Bundle returns the certificates of the authorities, the root first.
func (c Chain) Bundle() []any {
	var list []any
	for _, a := range c[:len(c)-1] {
		list = append(list, a.Certificate.Raw)
	}
	return list
}

// Leaf returns the hypervisor's authority.
func (c Chain) Leaf() *Authority { return c[len(c)-1] }

// Sign returns a signed document with a payload.
func (c Chain) Sign(payload []byte) []byte { return Assemble(Sign1(c.Leaf().Key, Protected, payload)) }

// Protected is the protected header of documents: ECDSA with SHA-384.
var Protected = []byte{0xa1, 0x01, 0x38, 0x22}

// Sign1 returns the four items of a document.
func Sign1(key *ecdsa.PrivateKey, protected, payload []byte) []any {
	digest := sha512.Sum384(Encode([]any{"Signature1", protected, []byte{}, payload}))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		panic(err)
	}
	size := max(48, (key.Curve.Params().BitSize+7)/8) // the size in documents, if it suffices
	signature := make([]byte, 2*size)
	r.FillBytes(signature[:size])
	s.FillBytes(signature[size:])
	return []any{protected, Map{}, payload, signature}
}

// Assemble encodes the items of a document.
func Assemble(items []any) []byte { return Encode(items) }

// Enclave is an enclave, with the key that answers are encrypted to.
type Enclave struct {
	Key      *rsa.PrivateKey
	Chain    Chain
	ModuleID string
	PCRs     map[int][]byte
}

// key is shared by all enclaves of a process, because generating one takes long.
var key = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// NewEnclave returns an enclave with a new root.
func NewEnclave(now time.Time) (*Enclave, error) {
	root, err := NewAuthority("aws.nitro-enclaves", now)
	if err != nil {
		return nil, err
	}
	chain, err := NewChain(root, now)
	if err != nil {
		return nil, err
	}
	k, err := key()
	e := &Enclave{Key: k, Chain: chain, ModuleID: "i-0123456789abcdef0-enc0123456789abcdef", PCRs: make(map[int][]byte)}
	for i := range 16 {
		e.PCRs[i] = make([]byte, 48)
		if i < 3 {
			_, _ = rand.Read(e.PCRs[i])
		}
	}
	return e, err
}

// Root returns the root of the enclave's documents.
func (e *Enclave) Root() *Authority { return e.Chain[0] }

// SPKI returns the public key as documents have it.
func (e *Enclave) SPKI() []byte { return SPKI(&e.Key.PublicKey) }

// SPKI encodes a public key.
func SPKI(key crypto.PublicKey) []byte {
	b, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(fmt.Sprintf("attesttest: %v", err))
	}
	return b
}

// Payload returns the members of a document created at now.
func (e *Enclave) Payload(now time.Time) Map {
	pcrs := Map{}
	for i := range 32 {
		if v := e.PCRs[i]; v != nil {
			pcrs = append(pcrs, Pair{i, v})
		}
	}
	return Map{
		{"module_id", e.ModuleID}, {"digest", "SHA384"}, {"timestamp", now.UnixMilli()}, {"pcrs", pcrs},
		{"certificate", e.Chain.Leaf().Certificate.Raw}, {"cabundle", e.Chain.Bundle()},
		{"public_key", e.SPKI()}, {"user_data", nil}, {"nonce", nil},
	}
}

// OfTPM returns a payload as the NitroTPM of an instance writes it: the measurements have
// another name.
func (m Map) OfTPM() Map {
	out := append(Map(nil), m...)
	for i := range out {
		if out[i].Key == "pcrs" {
			out[i].Key = "nitrotpm_pcrs"
		}
	}
	return out
}

// Document returns a valid document created at now.
func (e *Enclave) Document(now time.Time) []byte { return e.Chain.Sign(Encode(e.Payload(now))) }

// Set returns a copy of a payload with a member set.
func (m Map) Set(key string, value any) Map {
	out := append(Map(nil), m...)
	for i := range out {
		if out[i].Key == key {
			out[i].Value = value
			return out
		}
	}
	return append(out, Pair{key, value})
}

// Without returns a copy of a payload without a member.
func (m Map) Without(key string) Map {
	var out Map
	for _, p := range m {
		if p.Key != key {
			out = append(out, p)
		}
	}
	return out
}
