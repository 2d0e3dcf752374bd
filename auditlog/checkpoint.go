package auditlog

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Checkpoint is a signed tree head, as in C2SP tlog-checkpoint.
type Checkpoint struct {
	Origin string // "conclave/<cluster id in hex>/<Raft group>"
	Size   uint64
	Root   Hash
}

// SignCheckpoint signs the tree f as a C2SP signed note with one Ed25519
// signature. The origin is also the name of the key.
func SignCheckpoint(origin string, priv ed25519.PrivateKey, f Frontier) ([]byte, error) {
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
	root := f.Root()
	text := fmt.Sprintf("%s\n%d\n%s\n", origin, f.size, base64.StdEncoding.EncodeToString(root[:]))
	msg, err := note.Sign(&note.Note{Text: text}, signer{v, priv})
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

// ParseCheckpoint verifies a checkpoint's signature with a verifier key and
// returns the checkpoint. The origin must be the key's name. There may be
// signatures by other keys, such as those of witnesses, which are not verified.
func ParseCheckpoint(msg []byte, verifierKey string) (Checkpoint, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("verifier key: %w", err)
	}
	c, err := parseCheckpoint(msg)
	if err != nil {
		return c, err
	}
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: %w", ErrMalformed, err)
	}
	if c.Origin != v.Name() || len(n.Sigs) != 1 {
		return Checkpoint{}, fmt.Errorf("%w: a checkpoint of %q, not of %q", ErrMalformed, c.Origin, v.Name())
	}
	return c, nil
}

// parseCheckpoint parses a checkpoint without verifying its signature. It accepts
// only one encoding, so that changing a byte gives a different checkpoint or
// none.
func parseCheckpoint(msg []byte) (c Checkpoint, err error) {
	bad := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: %s", ErrMalformed, what)
	}
	if len(msg) > layout.MaxCheckpoint {
		return bad("too long")
	}
	text, sigs, ok := bytes.Cut(msg, []byte("\n\n"))
	if !ok || len(sigs) == 0 || sigs[len(sigs)-1] != '\n' {
		return bad("no signature")
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) != 3 || lines[0] == "" {
		return bad("not origin, size and root")
	}
	c.Origin = lines[0]
	if c.Size, err = strconv.ParseUint(lines[1], 10, 63); err != nil || strconv.FormatUint(c.Size, 10) != lines[1] {
		return bad("size")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != HashSize {
		return bad("root")
	}
	c.Root = Hash(root)
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

// WriteCheckpoint stores a checkpoint durably. It returns ErrStaleCheckpoint for
// one that is older than the stored one or covers entries that are not durable
// here: call Sync first. It returns ErrDiverged for one that contradicts the
// tree or the stored checkpoint. Neither changes anything. The caller has to
// verify the signature.
func (l *Log) WriteCheckpoint(msg []byte) error {
	c, err := parseCheckpoint(msg)
	if err != nil {
		return err
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	failed, durable, old, v := l.failed, l.durable, l.checkpoint, l.content.tree.view()
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	if bytes.Equal(msg, old) {
		return nil
	}
	if old != nil {
		o, err := parseCheckpoint(old)
		switch {
		case err != nil:
			return err
		case c.Origin != o.Origin:
			return fmt.Errorf("%w: its origin is %q, the log's %q", ErrStaleCheckpoint, c.Origin, o.Origin)
		case c.Size < o.Size:
			return fmt.Errorf("%w: it covers %d entries, the stored one %d", ErrStaleCheckpoint, c.Size, o.Size)
		}
	}
	if c.Size > durable {
		return fmt.Errorf("%w: it covers %d entries, of which %d are durable here", ErrStaleCheckpoint, c.Size, durable)
	}
	if err := v.check(c); err != nil {
		return err
	}
	if err := l.dir.put(layout.CheckpointFile, msg, true); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.fail(fmt.Errorf("writing the checkpoint: %w", err))
	}
	l.mu.Lock()
	l.checkpoint = bytes.Clone(msg)
	l.mu.Unlock()
	return nil
}

// check compares the tree with a checkpoint that it covers.
func (v *treeView) check(c Checkpoint) error {
	f, err := v.at(c.Size)
	if err != nil {
		return err
	}
	if f.Root() != c.Root {
		return fmt.Errorf("%w: the checkpoint of %d entries has another root", ErrDiverged, c.Size)
	}
	return nil
}

// Checkpoint returns the newest stored checkpoint; nil if there is none.
func (l *Log) Checkpoint() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.checkpoint)
}

// loadCheckpoint reads the stored checkpoint. A tree that does not match it is
// damaged. A checkpoint covers only durable entries, so if some are missing, the
// durable mark is missing too: somebody removed it so that peers fill them in.
func (d *directory) loadCheckpoint(v *treeView) ([]byte, error) {
	b, err := d.read(layout.CheckpointFile, layout.MaxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := parseCheckpoint(b)
	switch {
	case err != nil:
	case c.Size > v.tree.size:
		d.logger.Warn("the audit checkpoint covers entries that are missing here", "entries", v.tree.size, "checkpoint", c.Size)
	default:
		err = v.check(c)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, layout.CheckpointFile, err)
	}
	return b, nil
}
