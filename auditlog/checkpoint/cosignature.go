package checkpoint

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"filippo.io/mldsa"
	"golang.org/x/mod/sumdb/note"
)

// The algorithms of keys in signed notes that are understood here: the first byte of a key.
const (
	algEd25519            = 0x01 // signs the note's text
	algEd25519Cosignature = 0x04 // signs a time and the note's text
	algMLDSA44            = 0x06 // signs a time and the tree head
)

// A Cosigner makes cosignatures of checkpoints (C2SP tlog-cosignature). It implements
// note.Signer.
type Cosigner struct {
	note.Verifier
	sign func(msg []byte) ([]byte, error)
}

// Sign returns the cosignature of a note's text.
func (c *Cosigner) Sign(msg []byte) ([]byte, error) { return c.sign(msg) }

// NewMLDSACosigner returns a cosigner with an ML-DSA-44 key. Its cosignatures say when the
// tree was the largest that the cosigner knew, by now. If now is nil they do not say so: their
// time is zero, which means that they state only that the tree is the log's.
func NewMLDSACosigner(name string, key *mldsa.PrivateKey, now func() time.Time) (*Cosigner, error) {
	v, err := NewCosignatureVerifier(MLDSAVerifierKey(name, key.PublicKey()))
	if err != nil {
		return nil, err
	}
	return &Cosigner{v, func(msg []byte) ([]byte, error) {
		t := seconds(now)
		signed, err := mldsaMessage(name, t, msg)
		if err != nil {
			return nil, err
		}
		sig, err := key.SignDeterministic(signed, nil)
		return append(binary.BigEndian.AppendUint64(nil, t), sig...), err
	}}, nil
}

// NewEd25519Cosigner returns a cosigner with an Ed25519 key. One key must not be used under
// several names, as the name is not part of what is signed.
func NewEd25519Cosigner(name string, key ed25519.PrivateKey, now func() time.Time) (*Cosigner, error) {
	v, err := NewCosignatureVerifier(verifierKey(name, algEd25519Cosignature, key.Public().(ed25519.PublicKey)))
	if err != nil {
		return nil, err
	}
	return &Cosigner{v, func(msg []byte) ([]byte, error) {
		t := seconds(now)
		return append(binary.BigEndian.AppendUint64(nil, t), ed25519.Sign(key, ed25519Message(t, msg))...), nil
	}}, nil
}

func seconds(now func() time.Time) uint64 {
	if now == nil {
		return 0
	}
	return uint64(max(0, now().Unix()))
}

// MLDSAVerifierKey returns the text form of the ML-DSA-44 key that verifies cosignatures. It is
// empty if name cannot name a key.
func MLDSAVerifierKey(name string, pub *mldsa.PublicKey) string {
	if !validName(name) {
		return ""
	}
	return verifierKey(name, algMLDSA44, pub.Bytes())
}

// Ed25519CosignatureKey returns the text form of the Ed25519 key that verifies cosignatures. It
// is empty if name cannot name a key.
func Ed25519CosignatureKey(name string, pub ed25519.PublicKey) string {
	if !validName(name) {
		return ""
	}
	return verifierKey(name, algEd25519Cosignature, pub)
}

func verifierKey(name string, algorithm byte, pub []byte) string {
	key := append([]byte{algorithm}, pub...)
	return fmt.Sprintf("%s+%08x+%s", name, keyHash(name, key), base64.StdEncoding.EncodeToString(key))
}

func keyHash(name string, key []byte) uint32 {
	h := sha256.Sum256(append([]byte(name+"\n"), key...))
	return binary.BigEndian.Uint32(h[:])
}

func validName(name string) bool {
	return name != "" && len(name) <= 255 && utf8.ValidString(name) && !strings.ContainsFunc(name, unicode.IsSpace) && !strings.Contains(name, "+")
}

// splitKey splits the text form of a key.
func splitKey(vkey string) (name string, hash uint32, key []byte, err error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 || !validName(parts[0]) || len(parts[1]) != 8 {
		return "", 0, nil, errors.New("not NAME+HASH+KEY")
	}
	h, err := strconv.ParseUint(parts[1], 16, 32)
	if err != nil {
		return "", 0, nil, errors.New("not NAME+HASH+KEY")
	}
	if key, err = base64.StdEncoding.Strict().DecodeString(parts[2]); err != nil || len(key) == 0 {
		return "", 0, nil, errors.New("not NAME+HASH+KEY")
	}
	if uint32(h) != keyHash(parts[0], key) {
		return "", 0, nil, errors.New("the key's hash is not that of its name and content")
	}
	return parts[0], uint32(h), key, nil
}

// public is a public key.
type public struct {
	note.Verifier
	algorithm byte
	raw       []byte // without name and algorithm
}

// parsePublic parses public keys in their text form NAME+HASH+KEY, one a line. There is at least
// one, and they have the same name.
func parsePublic(text string) (list []public, err error) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		_, _, key, err := splitKey(line)
		if err != nil {
			return nil, err
		}
		p := public{algorithm: key[0], raw: key[1:]}
		if p.algorithm == algEd25519 {
			p.Verifier, err = note.NewVerifier(line)
		} else {
			p.Verifier, err = NewCosignatureVerifier(line)
		}
		if err != nil {
			return nil, err
		}
		if list = append(list, p); p.Name() != list[0].Name() {
			return nil, fmt.Errorf("keys of two names, %q and %q", list[0].Name(), p.Name())
		}
	}
	if len(list) == 0 {
		return nil, errors.New("there is none")
	}
	return list, nil
}

// ParseVerifiers returns the verifiers of keys that a log signs with, which are given in the text
// form NAME+HASH+KEY, one a line: of Ed25519, or of the two forms of cosignatures. There is at
// least one, and they have the same name.
func ParseVerifiers(text string) ([]note.Verifier, error) {
	keys, err := parsePublic(text)
	return verifiers(keys), err
}

func verifiers(keys []public) (list []note.Verifier) {
	for _, k := range keys {
		list = append(list, k)
	}
	return list
}

type cosignatureVerifier struct {
	name   string
	hash   uint32
	verify func(msg, sig []byte) bool
}

func (v *cosignatureVerifier) Name() string                { return v.name }
func (v *cosignatureVerifier) KeyHash() uint32             { return v.hash }
func (v *cosignatureVerifier) Verify(msg, sig []byte) bool { return v.verify(msg, sig) }

// NewCosignatureVerifier returns a verifier of the cosignatures of a key, which is given in
// its text form: of Ed25519 (type 0x04) or ML-DSA-44 (type 0x06).
func NewCosignatureVerifier(vkey string) (note.Verifier, error) {
	name, hash, key, err := splitKey(vkey)
	if err != nil {
		return nil, err
	}
	v := &cosignatureVerifier{name: name, hash: hash}
	switch pub := key[1:]; {
	case key[0] == algEd25519Cosignature && len(pub) == ed25519.PublicKeySize:
		v.verify = func(msg, sig []byte) bool {
			t, sig, ok := splitTime(sig)
			return ok && ed25519.Verify(pub, ed25519Message(t, msg), sig)
		}
	case key[0] == algMLDSA44:
		pk, err := mldsa.NewPublicKey(mldsa.MLDSA44(), pub)
		if err != nil {
			return nil, fmt.Errorf("the key of %s: %w", name, err)
		}
		v.verify = func(msg, sig []byte) bool {
			t, sig, ok := splitTime(sig)
			if !ok {
				return false
			}
			signed, err := mldsaMessage(name, t, msg)
			return err == nil && mldsa.Verify(pk, signed, sig, nil) == nil
		}
	default:
		return nil, fmt.Errorf("the key of %s is neither of Ed25519 (0x04) nor of ML-DSA-44 (0x06) cosignatures", name)
	}
	return v, nil
}

// splitTime splits a cosignature into its time and its signature.
func splitTime(sig []byte) (t uint64, rest []byte, ok bool) {
	if len(sig) < 8 {
		return 0, nil, false
	}
	t = binary.BigEndian.Uint64(sig)
	return t, sig[8:], t < 1<<63
}

// CosignatureTime returns the time of a cosignature in base64, as note.Signature has it. It is
// the zero time if the cosignature names none. It accepts only one form of base64, as Decode does:
// note.Open accepts others, which would make a checkpoint with the cosignature unreadable.
func CosignatureTime(sig note.Signature) (time.Time, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(sig.Base64)
	if err != nil || len(b) < 4 {
		return time.Time{}, errors.New("not a cosignature")
	}
	t, _, ok := splitTime(b[4:])
	switch {
	case !ok:
		return time.Time{}, errors.New("not a cosignature")
	case t == 0:
		return time.Time{}, nil
	}
	return time.Unix(int64(t), 0), nil
}

func ed25519Message(t uint64, text []byte) []byte {
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", t), text...)
}

// mldsaMessage returns what an ML-DSA-44 cosignature signs: the structure cosigned_message of
// C2SP tlog-cosignature for a whole tree. Extension lines are not part of it.
func mldsaMessage(name string, t uint64, text []byte) ([]byte, error) {
	c, err := DecodeText(string(text))
	if err != nil {
		return nil, err
	}
	if len(c.Origin) > 255 || !validName(name) {
		return nil, errors.New("the name of a log or of a cosigner is too long")
	}
	b := append([]byte("subtree/v1\n\x00"), byte(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint64(b, t)
	b = append(b, byte(len(c.Origin)))
	b = append(b, c.Origin...)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.BigEndian.AppendUint64(b, c.Size)
	return append(b, c.Root[:]...), nil
}
