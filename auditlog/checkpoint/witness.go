package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// MaxWitnesses bounds the witnesses of a log, so that their cosignatures fit into what is read
// of a checkpoint.
const MaxWitnesses = 12

// ErrNotCosigned is returned for a checkpoint that witnesses have not cosigned.
var ErrNotCosigned = errors.New("not cosigned")

// A Witness verifies checkpoints of others' logs: that each tree begins with the one before. Its
// cosignatures (C2SP tlog-cosignature) say so.
type Witness struct {
	keys []public
}

// ParseWitness parses the text form of a witness's public keys, one a line: of Ed25519
// cosignatures, of ML-DSA-44 ones, or of both, which have the same name.
func ParseWitness(text string) (*Witness, error) {
	list, err := parsePublic(text)
	if err != nil {
		return nil, fmt.Errorf("witness key: %w", err)
	}
	for i, k := range list {
		if k.algorithm == algEd25519 {
			return nil, fmt.Errorf("witness key: %s is a key of a log, not of cosignatures", k.Name())
		}
		if slices.ContainsFunc(list[:i], func(other public) bool { return other.algorithm == k.algorithm }) {
			return nil, fmt.Errorf("witness key: two keys of the same algorithm (%#02x)", k.algorithm)
		}
	}
	return &Witness{list}, nil
}

// Name returns the name of the witness's keys.
func (w *Witness) Name() string { return w.keys[0].Name() }

// Cosignatures returns the witness's cosignatures of a checkpoint, one of each key. It returns
// ErrNotCosigned if one is missing, wrong, not one that Decode accepts, or without a time: without,
// it does not say that the witness knew no larger tree.
func (w *Witness) Cosignatures(msg []byte) ([]note.Signature, error) {
	n, err := note.Open(msg, note.VerifierList(verifiers(w.keys)...))
	if err != nil {
		return nil, fmt.Errorf("%w by %s: %w", ErrNotCosigned, w.Name(), err)
	}
	for _, s := range n.Sigs {
		at, err := CosignatureTime(s)
		if err != nil {
			return nil, fmt.Errorf("%w by %s: %w", ErrNotCosigned, w.Name(), err)
		}
		if at.IsZero() {
			return nil, fmt.Errorf("%w by %s: the cosignature has no time", ErrNotCosigned, w.Name())
		}
	}
	if len(n.Sigs) != len(w.keys) { // Open returns one of a key
		return nil, fmt.Errorf("%w by %s with each of its keys", ErrNotCosigned, w.Name())
	}
	return n.Sigs, nil
}

// Append adds signatures to a checkpoint, or to other signatures.
func Append(msg []byte, sigs ...note.Signature) []byte {
	msg = bytes.Clone(msg)
	for _, s := range sigs {
		msg = fmt.Appendf(msg, "— %s %s\n", s.Name, s.Base64)
	}
	return msg
}

// A Quorum says how many of some witnesses have to have cosigned a checkpoint. The zero Quorum
// asks for nobody.
type Quorum struct {
	Witnesses []*Witness
	Need      int
}

// NewQuorum checks that Need is possible and that the witnesses are different ones: what one of
// them can do alone must not count twice.
func NewQuorum(witnesses []*Witness, need int) (Quorum, error) {
	if len(witnesses) > MaxWitnesses {
		return Quorum{}, fmt.Errorf("%d witnesses; at most %d are possible", len(witnesses), MaxWitnesses)
	}
	if need < 1 || need > len(witnesses) {
		return Quorum{}, fmt.Errorf("a quorum of %d of %d witnesses", need, len(witnesses))
	}
	for i, w := range witnesses {
		for _, other := range witnesses[:i] {
			if w.Name() == other.Name() {
				return Quorum{}, fmt.Errorf("two witnesses have the name %q", w.Name())
			}
			for _, key := range w.keys {
				if slices.ContainsFunc(other.keys, func(k public) bool { return bytes.Equal(k.raw, key.raw) }) {
					return Quorum{}, fmt.Errorf("the witnesses %q and %q have the same key", other.Name(), w.Name())
				}
			}
		}
	}
	return Quorum{witnesses, need}, nil
}

// Check returns the names of the witnesses that have cosigned a checkpoint. It returns
// ErrNotCosigned with them if they are too few, and layout.ErrMalformed if a signature of one of
// the witnesses is wrong. It does not verify the log's own signatures.
func (q Quorum) Check(msg []byte) (names []string, err error) {
	for _, w := range q.Witnesses {
		_, err := w.Cosignatures(msg)
		var wrong *note.InvalidSignatureError
		switch {
		case err == nil:
			names = append(names, w.Name())
		case errors.As(err, &wrong):
			return nil, fmt.Errorf("%w: checkpoint: a wrong cosignature by %s", layout.ErrMalformed, w.Name())
		}
	}
	if len(names) < q.Need {
		return names, fmt.Errorf("%w by enough witnesses: %d of %d have, and %d must", ErrNotCosigned, len(names), len(q.Witnesses), q.Need)
	}
	return names, nil
}
