package custodian

import (
	"crypto/fips140"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxKey is the maximum size of a key's text or bytes: those of all custodians fit into one
	// request. An OpenPGP key with many signatures of others can be minimised by gpg
	// --export-options export-minimal.
	MaxKey = 24 << 10
	// MaxName is the maximum length of a custodian's name in bytes.
	MaxName = 64
	// maxMessage is longer than the text of any share.
	maxMessage = 4 << 10
)

// ErrKey is returned for a key that shares cannot be encrypted to. The message says why.
var ErrKey = errors.New("not a usable key of a custodian")

// Kind is a kind of key.
type Kind string

// The kinds of keys.
const (
	Age     Kind = "age"
	OpenPGP Kind = "openpgp"
	HPKE    Kind = "hpke-p256"
)

// Extension returns the ending of the names of files with shares that are encrypted to such a
// key, with the dot.
func (k Kind) Extension() string {
	switch k {
	case Age:
		return ".age"
	case OpenPGP:
		return ".asc"
	}
	return ".pem"
}

// Key is a custodian's public key.
type Key struct {
	kind        Kind
	fingerprint string
	encrypt     func(plaintext []byte) (string, error)
}

// Kind returns the kind of the key.
func (k *Key) Kind() Kind { return k.kind }

// Fingerprint identifies the key. For OpenPGP it is the fingerprint of the primary key, as
// gpg shows it. For the others it is "sha256:" and the hash of the key in its one-line form.
func (k *Key) Fingerprint() string { return k.fingerprint }

// Encrypt encrypts the text of a share. The result is ASCII armour of age or OpenPGP, or a
// PEM block that [PrivateKey.Decrypt] opens. The library for OpenPGP copies the plaintext to
// memory that nobody wipes; the others leave no copy, as TestCustodiansMemory shows.
func (k *Key) Encrypt(share []byte) (string, error) {
	if len(share) == 0 || len(share) > maxMessage {
		return "", fmt.Errorf("a share of %d bytes cannot be encrypted", len(share))
	}
	text, err := k.encrypt(share)
	if err != nil {
		return "", fmt.Errorf("encrypting to the %s key %s: %w", k.kind, k.fingerprint, err)
	}
	return text, nil
}

// Parse reads a public key: a recipient of age in one line, an OpenPGP public key, armoured
// or binary, or a key for HPKE in the form of [PrivateKey.Public] or as PEM. Now is the time
// at which an OpenPGP key must be valid. Errors: ErrKey.
func Parse(text []byte, now time.Time) (*Key, error) {
	if len(text) > MaxKey {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrKey, MaxKey)
	}
	line := strings.TrimSpace(string(text))
	upper := strings.ToUpper(line)
	switch {
	case line == "":
		return nil, fmt.Errorf("%w: it is empty", ErrKey)
	case strings.Contains(upper, "PRIVATE KEY") || strings.Contains(upper, "AGE-SECRET-KEY-"):
		return nil, fmt.Errorf("%w: it has a private key, which must not leave its owner: give the public one", ErrKey)
	case strings.HasPrefix(line, hpkePrefix) || strings.HasPrefix(line, "-----BEGIN PUBLIC KEY-----"):
		return parseHPKE(line)
	case strings.HasPrefix(line, "age1"):
		return parseAge(line)
	case strings.HasPrefix(line, "-----BEGIN PGP") || !utf8.ValidString(line):
		return parseOpenPGP(text, now)
	}
	return nil, fmt.Errorf("%w: it is no recipient of age (age1…), no OpenPGP public key, and no HPKE key (%s…, or PEM)", ErrKey, hpkePrefix)
}

// refusedByFIPS returns an error for kinds of keys that the FIPS module does not implement.
// It comes before their libraries are called, which may fail there in other ways.
func refusedByFIPS(k Kind) error {
	if !fips140.Enforced() {
		return nil
	}
	return fmt.Errorf("%w: only approved algorithms are used in FIPS mode, and those of a key for %s are not: use one for HPKE, which `conclave operator custodian-key` makes", ErrKey, k)
}

func hashOf(canonical string) string {
	sum := sha256.Sum256([]byte(canonical))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// CheckName returns an error unless a custodian can have that name: 1 to MaxName bytes of
// printable text without spaces at its ends. Names are in the audit log, and on terminals.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName || !utf8.ValidString(name) || strings.TrimSpace(name) != name || strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return fmt.Errorf("the name of a custodian must be 1 to %d bytes of printable text", MaxName)
	}
	return nil
}

// Custodian is who keeps a share.
type Custodian struct {
	Name string
	Key  *Key
}

// Check returns an error unless custodians can keep the shares of one set, in this order: all
// have names and keys, and none has the name or the key of another.
func Check(custodians []Custodian) error {
	names, keys := make(map[string]bool), make(map[string]string)
	for i, c := range custodians {
		if err := CheckName(c.Name); err != nil {
			return fmt.Errorf("custodian %d: %w", i+1, err)
		}
		if names[c.Name] {
			return fmt.Errorf("there are two custodians %q", c.Name)
		}
		if other, ok := keys[c.Key.fingerprint]; ok {
			return fmt.Errorf("%q and %q have the same key", other, c.Name)
		}
		names[c.Name], keys[c.Key.fingerprint] = true, c.Name
	}
	return nil
}
