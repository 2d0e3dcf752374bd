package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// Keys are the keys of a backup's cluster, outside of the cluster. They begin with none,
// and are complete once enough shares were added.
type Keys struct {
	header *Header
	vault  *vault.Vault
	shares *shamir.Collector // nil for the keys of an unsealed node
	// custodians are the indexes of the shares that were added.
	custodians []int
}

// NewKeys begins to collect the shares of a backup. If mustLock is set, it fails if memory
// cannot be locked. The keys must be closed.
func NewKeys(h *Header, mustLock bool) (*Keys, error) {
	sh := h.Cluster.Shares
	set := shamir.SetInfo{Cluster: [16]byte(h.Cluster.Id), Set: [16]byte(sh.Id), Threshold: int(sh.Threshold), Count: int(sh.Count)}
	commitments := make([][32]byte, len(sh.Commitments))
	for i, b := range sh.Commitments {
		if len(b) != len(commitments[i]) {
			return nil, fmt.Errorf("%w: its share set", ErrFormat)
		}
		commitments[i] = [32]byte(b)
	}
	shares, err := shamir.NewCollector(set, commitments)
	if err != nil {
		return nil, fmt.Errorf("%w: its share set: %w", ErrFormat, err)
	}
	v, err := vault.New(time.Now, mustLock)
	if err != nil {
		return nil, err
	}
	return &Keys{header: h, vault: v, shares: shares}, nil
}

// Close wipes the keys and the shares.
func (k *Keys) Close() error {
	k.shares.Reset()
	return k.vault.Close()
}

// Add adds the text of a share, and returns how many there are and how many are needed. A
// share that is refused has no effect; the error says why. With the last one the keys are
// opened. If that fails although all shares were right, the header is not the cluster's,
// and the error wraps ErrDamaged.
func (k *Keys) Add(share []byte) (have, need int, err error) {
	have, need = k.shares.Progress()
	if have == need {
		return have, need, nil
	}
	keymat.Scrub(func() {
		var s shamir.Share
		if s, err = shamir.ParseShare(share); err != nil {
			return
		}
		defer s.Wipe()
		if have, need, err = k.shares.Add(s); err != nil {
			return
		}
		k.custodians = append(k.custodians, s.Index())
		if have == need {
			err = k.open()
		}
	})
	return have, need, err
}

func (k *Keys) open() error {
	b, err := k.shares.Secret()
	if err != nil {
		return err
	}
	unseal, err := k.vault.Arena().Store(b) // wipes b
	if err != nil {
		return err
	}
	if err := k.vault.Open(k.header.Cluster, unseal); err != nil {
		return fmt.Errorf("%w: the shares are right, but do not open its keys: %w", ErrDamaged, err)
	}
	return nil
}

// opened returns the keys once there are enough shares.
func (k *Keys) opened() (*vault.Opened, error) {
	o, err := k.vault.Current()
	if err != nil && k.shares != nil {
		have, need := k.shares.Progress()
		err = fmt.Errorf("%w: have %d, need %d", shamir.ErrTooFew, have, need)
	}
	return o, err
}

// fileKey returns the key of the backup.
func (k *Keys) fileKey() (*keymat.Secret, error) {
	o, err := k.opened()
	if err != nil {
		return nil, err
	}
	return k.header.fileKey(o)
}

// fileKey returns the key of a backup whose cluster's keys are open.
func (h *Header) fileKey(o *vault.Opened) (*keymat.Secret, error) {
	key, err := vault.OpenFileKey(o, h.hash, h.generation, h.wrapped)
	if errors.Is(err, keymat.ErrUnwrap) || errors.Is(err, keymat.ErrGeneration) {
		return nil, fmt.Errorf("%w: its header was changed", ErrDamaged)
	}
	return key, err
}

// Content is what a backup contains, authenticated and checked as a whole.
type Content struct {
	// State is the state that was backed up.
	State *fsm.State
	// Entries is the number of entries of the audit log that the backup contains: all
	// that the state covers, or none.
	Entries uint64
}

// Read reads what follows the header, to the end of the file. It returns an error unless
// all of it is authentic, can be read by this binary, and belongs together. The state's
// snapshot is also written to the writer, and audit is called with each entry of the audit
// log; both may be nil. What they got counts only if Read succeeds.
func (k *Keys) Read(from io.Reader, snapshot io.Writer, audit func(auditlog.Entry) error) (*Content, error) {
	key, err := k.fileKey()
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	in := newReader(from, key, k.header)
	state := newStateReader()
	defer state.close(io.ErrUnexpectedEOF)
	var tree auditlog.Frontier
	content := new(Content)
	var buf []byte
	for before := byte(partState); ; {
		kind, b, err := in.part(buf)
		if err != nil {
			return nil, err
		}
		if kind < before {
			return nil, errOrder
		}
		if kind != partState && content.State == nil {
			if content.State, err = state.end(); err != nil {
				return nil, fmt.Errorf("its state: %w", err)
			}
		}
		before, buf = kind, b
		switch kind {
		case partState:
			if err := state.write(b); err != nil {
				return nil, fmt.Errorf("its state: %w", err)
			}
			if snapshot != nil {
				if _, err := snapshot.Write(b); err != nil {
					return nil, err
				}
			}
		case partAudit:
			e, err := parseEntry(b)
			if err != nil {
				return nil, err
			}
			if e.Index != tree.Size() {
				return nil, fmt.Errorf("%w: audit entry %d instead of %d", ErrDamaged, e.Index, tree.Size())
			}
			tree.Append(e.LeafHash())
			if audit != nil {
				if err := audit(e); err != nil {
					return nil, err
				}
			}
		case partEnd:
			content.Entries = tree.Size()
			return content, k.header.check(content.State, tree)
		}
	}
}

// check compares the header with what follows it. Both were written by an unsealed node, so
// that a difference is a fault of that node.
func (h *Header) check(s *fsm.State, tree auditlog.Frontier) error {
	c, _ := s.Cluster()
	frontier, _ := s.Audit()
	root := frontier.Root()
	switch {
	case !proto.Equal(c, h.Cluster):
		return fmt.Errorf("%w: its state is of another cluster, or has other keys", ErrDamaged)
	case s.Index() != h.Index || s.Time() != h.Time:
		return fmt.Errorf("%w: its state is not the one that its header names", ErrDamaged)
	case frontier.Size() != h.AuditSize || !bytes.Equal(root[:], h.AuditRoot):
		return fmt.Errorf("%w: its state covers another audit log than its header names", ErrDamaged)
	case h.Audit && !tree.Equal(frontier), !h.Audit && tree.Size() > 0:
		return fmt.Errorf("%w: its audit log is not the one that its state covers", ErrDamaged)
	}
	return nil
}

// stateReader reads a state snapshot while it is written to it.
type stateReader struct {
	pipe *io.PipeWriter
	done chan struct{}
	fsm  *fsm.FSM
	err  error
}

func newStateReader() *stateReader {
	from, pipe := io.Pipe()
	s := &stateReader{pipe: pipe, done: make(chan struct{}), fsm: fsm.New(fsm.Config{Audit: noAudit{}})}
	go func() {
		defer close(s.done)
		s.err = s.fsm.Restore(from)
		from.CloseWithError(s.err)
	}()
	return s
}

func (s *stateReader) write(b []byte) error {
	_, err := s.pipe.Write(b)
	if errors.Is(err, io.ErrClosedPipe) {
		// The reader had enough: the snapshot goes on after its end.
		return fmt.Errorf("%w: data after the end of its state", ErrDamaged)
	}
	return err
}

func (s *stateReader) close(cause error) {
	_ = s.pipe.CloseWithError(cause)
	<-s.done
}

// end returns the state once all of it was written.
func (s *stateReader) end() (*fsm.State, error) {
	s.close(nil)
	if s.err != nil {
		return nil, s.err
	}
	return s.fsm.Current(), nil
}

// noAudit is the audit log of a state machine that applies nothing.
type noAudit struct{}

func (noAudit) Append([]auditlog.Entry, []auditlog.Hash) error           { return nil }
func (noAudit) Restore(f auditlog.Frontier, roots []auditlog.Hash) error { return nil }
func (noAudit) Sync() error                                              { return nil }

// Materials unwraps the material of all keys, and returns how many keys there are and how
// many versions of material were unwrapped. It returns an error if one cannot be.
func (k *Keys) Materials(s *fsm.State) (keys, versions int, err error) {
	for key := range s.AllKeys() {
		keys++
		for _, m := range key.Materials {
			if len(m.Wrapped) == 0 {
				continue // deleted or not imported yet
			}
			if err := k.vault.Opens(key, m); err != nil {
				return keys, versions, err
			}
			versions++
		}
	}
	return keys, versions, nil
}
