package report

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// An algorithm is what keys of a spec are of.
type algorithm struct {
	name, primitive string // primitive as CycloneDX names it
	parameters      string
	curve           string
	bits            int // of classical security
	level           int // NIST's category of security against quantum computers; 0: none
	quantum         bool
	secret          bool // the key is secret as a whole, and has no public part
	size            int  // of the key, in bits; 0: does not apply
}

// algorithms are those of the specs of keys. The strength of RSA is that of NIST SP 800-57 part 1.
var algorithms = map[string]algorithm{
	"SYMMETRIC_DEFAULT":     {name: "AES-256-GCM", primitive: "ae", parameters: "256", bits: 256, level: 5, quantum: true, secret: true, size: 256},
	"HMAC_224":              {name: "HMAC-SHA-224", primitive: "mac", parameters: "224", bits: 224, level: 3, quantum: true, secret: true, size: 224},
	"HMAC_256":              {name: "HMAC-SHA-256", primitive: "mac", parameters: "256", bits: 256, level: 5, quantum: true, secret: true, size: 256},
	"HMAC_384":              {name: "HMAC-SHA-384", primitive: "mac", parameters: "384", bits: 384, level: 5, quantum: true, secret: true, size: 384},
	"HMAC_512":              {name: "HMAC-SHA-512", primitive: "mac", parameters: "512", bits: 512, level: 5, quantum: true, secret: true, size: 512},
	"RSA_2048":              {name: "RSA-2048", parameters: "2048", bits: 112, size: 2048},
	"RSA_3072":              {name: "RSA-3072", parameters: "3072", bits: 128, size: 3072},
	"RSA_4096":              {name: "RSA-4096", parameters: "4096", bits: 152, size: 4096},
	"ECC_NIST_P256":         {name: "ECC-P-256", parameters: "P-256", curve: "secp256r1", bits: 128, size: 256},
	"ECC_NIST_P384":         {name: "ECC-P-384", parameters: "P-384", curve: "secp384r1", bits: 192, size: 384},
	"ECC_NIST_P521":         {name: "ECC-P-521", parameters: "P-521", curve: "secp521r1", bits: 256, size: 521},
	"ECC_SECG_P256K1":       {name: "ECC-secp256k1", parameters: "secp256k1", curve: "secp256k1", bits: 128, size: 256},
	"ECC_NIST_EDWARDS25519": {name: "Ed25519", parameters: "Ed25519", curve: "edwards25519", bits: 128, size: 256},
	"SM2":                   {name: "SM2", parameters: "SM2", curve: "curveSM2", bits: 128, size: 256},
	"ML_DSA_44":             {name: "ML-DSA-44", primitive: "signature", parameters: "44", bits: 128, level: 2, quantum: true},
	"ML_DSA_65":             {name: "ML-DSA-65", primitive: "signature", parameters: "65", bits: 192, level: 3, quantum: true},
	"ML_DSA_87":             {name: "ML-DSA-87", primitive: "signature", parameters: "87", bits: 256, level: 5, quantum: true},
	"ML_KEM_512":            {name: "ML-KEM-512", primitive: "kem", parameters: "512", bits: 128, level: 1, quantum: true},
	"ML_KEM_768":            {name: "ML-KEM-768", primitive: "kem", parameters: "768", bits: 192, level: 3, quantum: true},
	"ML_KEM_1024":           {name: "ML-KEM-1024", primitive: "kem", parameters: "1024", bits: 256, level: 5, quantum: true},
}

// uses are the primitive and the functions of a usage of keys, as CycloneDX names them.
var uses = map[string]struct {
	primitive string
	functions []string
}{
	"ENCRYPT_DECRYPT":         {"pke", []string{"encrypt", "decrypt"}},
	"SIGN_VERIFY":             {"signature", []string{"sign", "verify"}},
	"GENERATE_VERIFY_MAC":     {"mac", []string{"tag"}},
	"KEY_AGREEMENT":           {"key-agree", []string{"keyderive"}},
	"ENCAPSULATE_DECAPSULATE": {"kem", []string{"encapsulate", "decapsulate"}},
}

// states are the states of keys, as CycloneDX (and NIST SP 800-57) names them. Those that are
// not here are suspended.
var states = map[string]string{
	"Enabled": "active", "Disabled": "suspended", "PendingDeletion": "deactivated", "PendingReplicaDeletion": "deactivated",
	"PendingImport": "pre-activation", "Creating": "pre-activation",
}

// Stock is how many keys of a spec, usage and origin there are.
type Stock struct {
	Spec      string `json:"spec"`
	Algorithm string `json:"algorithm"`
	Usage     string `json:"usage"`
	Origin    string `json:"origin"`
	Keys      int    `json:"keys"`
	Enabled   int    `json:"enabled"`
	// Bits is the classical strength in bits, and Quantum is whether it withstands quantum
	// computers; 0 and false if it is not known.
	Bits    int  `json:"classical_security_bits"`
	Quantum bool `json:"quantum_safe"`
}

// stock counts a key in the inventory.
func (r *Report) stock(k *key) {
	m := k.meta
	spec, usage, origin := cmp.Or(m.GetKeySpec(), "unknown"), cmp.Or(m.GetKeyUsage(), "unknown"), cmp.Or(m.GetOrigin(), "unknown")
	i := slices.IndexFunc(r.Inventory, func(s *Stock) bool { return s.Spec == spec && s.Usage == usage && s.Origin == origin })
	if i < 0 {
		a := algorithms[spec]
		r.Inventory = append(r.Inventory, &Stock{Spec: spec, Algorithm: cmp.Or(a.name, spec), Usage: usage, Origin: origin, Bits: a.bits, Quantum: a.quantum})
		i = len(r.Inventory) - 1
	}
	s := r.Inventory[i]
	s.Keys++
	if m.GetKeyState() == "Enabled" {
		s.Enabled++
	}
}

// The parts of CycloneDX that are used.
type (
	component struct {
		Type       string      `json:"type"`
		Ref        string      `json:"bom-ref"`
		Name       string      `json:"name"`
		Version    string      `json:"version,omitempty"`
		Crypto     *cryptoPart `json:"cryptoProperties,omitempty"`
		Properties []property  `json:"properties,omitempty"`
	}
	cryptoPart struct {
		AssetType string         `json:"assetType"`
		Algorithm *algorithmPart `json:"algorithmProperties,omitempty"`
		Material  *materialPart  `json:"relatedCryptoMaterialProperties,omitempty"`
	}
	algorithmPart struct {
		Primitive  string   `json:"primitive"`
		Parameters string   `json:"parameterSetIdentifier,omitempty"`
		Curve      string   `json:"curve,omitempty"`
		Functions  []string `json:"cryptoFunctions,omitempty"`
		Bits       int      `json:"classicalSecurityLevel,omitempty"`
		Level      int      `json:"nistQuantumSecurityLevel"`
	}
	materialPart struct {
		Type       string `json:"type"`
		ID         string `json:"id"`
		State      string `json:"state"`
		Algorithm  string `json:"algorithmRef,omitempty"`
		Created    string `json:"creationDate,omitempty"`
		Expiration string `json:"expirationDate,omitempty"`
		Size       int    `json:"size,omitempty"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
)

// A cbom writes the inventory of keys as a cryptographic bill of materials: CycloneDX 1.6 in JSON,
// with a component for each key and for each algorithm. Keys are written as they come, so that
// it takes no memory for them.
type cbom struct {
	w     *bufio.Writer
	err   error
	first bool
	used  map[string]component // algorithms, by reference
}

// newCBOM begins the document.
func newCBOM(w io.Writer, r *Report) *cbom {
	b := &cbom{w: bufio.NewWriter(w), first: true, used: make(map[string]component)}
	sum := sha256.Sum256([]byte(r.Account + "\n" + r.Region + "\n" + r.Server + "\n" + r.Generated.Format(time.RFC3339Nano)))
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80 // a UUID of version 8 (RFC 9562)
	b.raw("{\n  \"bomFormat\": \"CycloneDX\",\n  \"specVersion\": \"1.6\",\n  \"serialNumber\": ")
	b.value(fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
	b.raw(",\n  \"version\": 1,\n  \"metadata\": ")
	b.value(map[string]any{
		"timestamp": r.Generated.Format(time.RFC3339),
		"component": component{Type: "application", Ref: "keys-of-" + r.Account, Name: "keys of account " + r.Account, Properties: properties("conclave:account", r.Account, "conclave:region", r.Region, "conclave:version", r.Version)},
	})
	b.raw(",\n  \"components\": [")
	return b
}

// properties returns those that have a value.
func properties(pairs ...string) (list []property) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			list = append(list, property{pairs[i], pairs[i+1]})
		}
	}
	return list
}

func (b *cbom) raw(s string) {
	if b.err == nil {
		_, b.err = b.w.WriteString(s)
	}
}

func (b *cbom) value(v any) {
	raw, err := json.Marshal(v)
	if b.err == nil {
		b.err = err
	}
	b.raw(string(raw))
}

func (b *cbom) add(c component) {
	if !b.first {
		b.raw(",")
	}
	b.first = false
	b.raw("\n    ")
	b.value(c)
}

// key adds a key.
func (b *cbom) key(k *key) {
	m := k.meta
	a, known := algorithms[m.GetKeySpec()]
	if !known {
		a = algorithm{name: cmp.Or(m.GetKeySpec(), "unknown"), primitive: "unknown"}
	}
	use := uses[m.GetKeyUsage()]
	primitive := cmp.Or(a.primitive, use.primitive, "unknown")
	ref := "algorithm-" + strings.ToLower(a.name) + "-" + primitive
	if _, ok := b.used[ref]; !ok {
		functions := use.functions
		if m.GetKeySpec() == "SYMMETRIC_DEFAULT" {
			functions = []string{"encrypt", "decrypt"}
		}
		b.used[ref] = component{Type: "cryptographic-asset", Ref: ref, Name: a.name, Crypto: &cryptoPart{
			AssetType: "algorithm",
			Algorithm: &algorithmPart{Primitive: primitive, Parameters: a.parameters, Curve: a.curve, Functions: functions, Bits: a.bits, Level: a.level},
		}}
	}
	kind := "private-key"
	switch {
	case a.secret:
		kind = "secret-key"
	case !known:
		kind = "key"
	}
	part := &materialPart{Type: kind, ID: m.GetKeyId(), State: cmp.Or(states[m.GetKeyState()], "suspended"), Algorithm: ref, Size: a.size}
	if t := m.GetCreationDate(); t != nil {
		part.Created = t.AsTime().Format(time.RFC3339)
	}
	if t := m.GetValidTo(); t != nil {
		part.Expiration = t.AsTime().Format(time.RFC3339)
	}
	b.add(component{
		Type: "cryptographic-asset", Ref: m.GetArn(), Name: m.GetKeyId(), Crypto: &cryptoPart{AssetType: "related-crypto-material", Material: part},
		Properties: properties("conclave:spec", m.GetKeySpec(), "conclave:usage", m.GetKeyUsage(), "conclave:origin", m.GetOrigin(), "conclave:state", m.GetKeyState()),
	})
}

// close ends the document. Errors: those of all writes.
func (b *cbom) close() error {
	for _, ref := range sorted(b.used) {
		b.add(b.used[ref])
	}
	b.raw("\n  ]\n}\n")
	if b.err != nil {
		return b.err
	}
	return b.w.Flush()
}
