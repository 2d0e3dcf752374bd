// Package checkpoint signs and verifies the tree heads of audit logs, as in C2SP
// tlog-checkpoint. It depends only on its input, so that nodes, which sign, and third
// parties, which verify, share one definition of what a checkpoint is.
package checkpoint

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"filippo.io/mldsa"
	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Checkpoint is a signed tree head, as in C2SP tlog-checkpoint.
type Checkpoint struct {
	Origin string // "conclave/<cluster id in hex>/<Raft group>"
	Size   uint64
	Root   [sha256.Size]byte
}

// Sign signs a tree, given by its size and root, as a C2SP signed note. The origin is also
// the name of both keys. The first signature is by Ed25519. The second, if pq is not nil, is
// an ML-DSA-44 cosignature of the log itself (C2SP tlog-cosignature), which is secure against
// quantum computers. The same input always leads to the same bytes, so all nodes sign the
// same checkpoint.
func Sign(origin string, priv ed25519.PrivateKey, pq *mldsa.PrivateKey, size uint64, root [sha256.Size]byte) ([]byte, error) {
	if len(priv) != ed25519.PrivateKeySize {
		return nil, errors.New("signing a checkpoint: not an Ed25519 private key")
	}
	vkey, err := note.NewEd25519VerifierKey(origin, priv.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: origin %q: %w", origin, err)
	}
	signers := []note.Signer{signer{v, priv}}
	if pq != nil {
		c, err := NewMLDSACosigner(origin, pq, nil)
		if err != nil {
			return nil, fmt.Errorf("signing a checkpoint: %w", err)
		}
		signers = append(signers, c)
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(root[:]))
	msg, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	return msg, nil
}

// signer signs notes with a key that is already in memory, without encoding it
// in the note package's text form of private keys.
type signer struct {
	note.Verifier
	priv ed25519.PrivateKey
}

func (s signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.priv, msg), nil }

// VerifierKey returns the text form of the key that verifies an origin's
// checkpoints, "<name>+<hash>+<base64>", as note verifiers take it. It is empty
// if the origin cannot name a key or pub is not an Ed25519 key.
func VerifierKey(origin string, pub ed25519.PublicKey) string {
	if len(pub) != ed25519.PublicKeySize {
		return ""
	}
	vkey, err := note.NewEd25519VerifierKey(origin, pub)
	if err != nil {
		return ""
	}
	if _, err := note.NewVerifier(vkey); err != nil {
		return ""
	}
	return vkey
}

// keys are the public keys of a log.
type keys struct {
	ed note.Verifier
	pq note.Verifier // nil if it was not given
}

// parseKeys parses the text form of a log's public keys, one a line: an Ed25519 key, and
// optionally the ML-DSA-44 key of the same name.
func parseKeys(text string) (k keys, err error) {
	list, err := parsePublic(text)
	if err != nil {
		return keys{}, fmt.Errorf("verifier key: %w", err)
	}
	for _, p := range list {
		switch {
		case p.algorithm == algEd25519 && k.ed == nil:
			k.ed = p
		case p.algorithm == algMLDSA44 && k.pq == nil:
			k.pq = p
		default:
			return keys{}, fmt.Errorf("verifier key: a second key or one of an unknown algorithm (%#02x)", p.algorithm)
		}
	}
	if k.ed == nil {
		return keys{}, errors.New("verifier key: no Ed25519 key")
	}
	return k, nil
}

// CheckKeys checks the text form of a log's public keys and returns the log's origin.
func CheckKeys(text string) (origin string, err error) {
	k, err := parseKeys(text)
	if err != nil {
		return "", err
	}
	return k.ed.Name(), nil
}

// Parse verifies a checkpoint with a log's public keys, one a line, and returns the
// checkpoint. The origin must be the keys' name. The signature by Ed25519 is required, and
// that by ML-DSA-44 too if its key is given: otherwise whoever can forge the former could
// leave out the latter. There may be signatures by other keys, such as those of witnesses,
// which are not verified.
func Parse(msg []byte, keys string) (Checkpoint, error) { return parse(msg, keys, true) }

// ParseKept is Parse for a checkpoint that the caller kept, and so trusts to be the log's. It
// may be older than the log's ML-DSA-44 key: that signature may be missing, but not be wrong.
func ParseKept(msg []byte, keys string) (Checkpoint, error) { return parse(msg, keys, false) }

func parse(msg []byte, text string, all bool) (Checkpoint, error) {
	k, err := parseKeys(text)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := Decode(msg)
	if err != nil {
		return c, err
	}
	known := []note.Verifier{k.ed}
	if k.pq != nil {
		known = append(known, k.pq)
	}
	n, err := note.Open(msg, note.VerifierList(known...))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: %w", layout.ErrMalformed, err)
	}
	signed := func(v note.Verifier) bool {
		return slices.ContainsFunc(n.Sigs, func(s note.Signature) bool { return s.Name == v.Name() && s.Hash == v.KeyHash() })
	}
	switch {
	case c.Origin != k.ed.Name():
		return Checkpoint{}, fmt.Errorf("%w: a checkpoint of %q, not of %q", layout.ErrMalformed, c.Origin, k.ed.Name())
	case !signed(k.ed):
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: no signature by the Ed25519 key", layout.ErrMalformed)
	case all && k.pq != nil && !signed(k.pq):
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: no signature by the ML-DSA-44 key; one of a release before 0.2 has none, and is verified with the Ed25519 key alone", layout.ErrMalformed)
	}
	return c, nil
}

// Decode decodes a checkpoint without verifying its signature. It accepts
// only one encoding, so that changing a byte gives a different checkpoint or
// none.
func Decode(msg []byte) (c Checkpoint, err error) {
	bad := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: %s", layout.ErrMalformed, what)
	}
	if len(msg) > layout.MaxCheckpoint {
		return bad("too long")
	}
	text, sigs, ok := bytes.Cut(msg, []byte("\n\n"))
	if !ok || len(sigs) == 0 || sigs[len(sigs)-1] != '\n' {
		return bad("no signature")
	}
	if c, err = decodeText(string(text) + "\n"); err != nil {
		return c, err
	}
	seen := make(map[string]bool)
	for _, line := range strings.Split(string(sigs[:len(sigs)-1]), "\n") {
		f := strings.Split(line, " ")
		if len(f) != 3 || f[0] != "—" || seen[line] {
			return bad("signature line")
		}
		seen[line] = true
		if _, err := base64.StdEncoding.Strict().DecodeString(f[2]); err != nil {
			return bad("signature")
		}
	}
	return c, nil
}

// decodeText is DecodeText for a text without extension lines, as our logs have it.
func decodeText(text string) (c Checkpoint, err error) {
	if c, err = DecodeText(text); err == nil && strings.Count(text, "\n") != 3 {
		err = fmt.Errorf("%w: checkpoint: not origin, size and root", layout.ErrMalformed)
	}
	return c, err
}

// DecodeText decodes the text of a checkpoint: what comes before the empty line. It may have
// extension lines, which are not read.
func DecodeText(text string) (c Checkpoint, err error) {
	bad := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: %s", layout.ErrMalformed, what)
	}
	rest, ok := strings.CutSuffix(text, "\n")
	lines := strings.Split(rest, "\n")
	if !ok || len(lines) < 3 || slices.Contains(lines, "") {
		return bad("not origin, size and root")
	}
	c.Origin = lines[0]
	if c.Size, ok = ParseSize(lines[1]); !ok {
		return bad("size")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return bad("root")
	}
	c.Root = [sha256.Size]byte(root)
	return c, nil
}

// ParseSize parses the size of a tree, or the index of a leaf, as the formats of C2SP have it: a
// decimal number without leading zeros.
func ParseSize(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 63)
	return n, err == nil && strconv.FormatUint(n, 10) == text
}
