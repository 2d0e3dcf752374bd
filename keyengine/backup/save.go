package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/wire"
	"github.com/conclavekms/conclave/keyengine/backup/backuppb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Source is the node's state machine. *cluster.Node implements it.
type Source interface {
	// Barrier returns once the node's state has everything that was committed before.
	Barrier(ctx context.Context) error
	// Snapshot returns the newest state and a function that writes its snapshot.
	Snapshot() (*fsm.State, func(io.Writer) error, error)
}

// AuditLog is the part of the node's audit log that backups need.
type AuditLog interface {
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
	Size() uint64
}

// Config configures a Saver.
type Config struct {
	NodeID string
	Vault  *vault.Vault
	Audit  AuditLog
	Clock  record.Clock
	Events *record.Recorder
}

// Saver writes backups on an unsealed node. It is safe for concurrent use.
type Saver struct{ cfg Config }

// New returns the Saver of a node.
func New(cfg Config) *Saver { return &Saver{cfg} }

// ErrIncomplete is returned if this node does not have the whole audit log.
var ErrIncomplete = kmsapi.Errorf(kmsapi.ErrUnavailable,
	"This node does not have the whole audit log yet. Save the backup on another node, or without the audit log.")

// auditBatch and auditBytes bound what is read of the audit log at once.
const (
	auditBatch = 512
	auditBytes = 4 << 20
)

// Save writes a backup that has everything committed before the call. ev names who wants
// it; it is recorded, with the id of the backup, before the first byte is written. The
// backup contains that record. Without withAudit the audit log is left out.
//
// A backup of which Save returned an error is not complete, and is refused by everybody.
func (s *Saver) Save(ctx context.Context, from Source, ev record.Event, withAudit bool, to io.Writer) (*backuppb.Header, error) {
	return s.save(ctx, from, NewID(), ev, withAudit, to)
}

// NewID returns the id of a new backup.
func NewID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	return id
}

func (s *Saver) save(ctx context.Context, from Source, id [16]byte, ev record.Event, withAudit bool, to io.Writer) (*backuppb.Header, error) {
	o, err := s.cfg.Vault.Current()
	if err != nil {
		return nil, err
	}
	h := &backuppb.Header{Schema: schema, Id: id[:], Group: wire.Group, Created: s.cfg.Clock.Now().UnixNano(), Node: s.cfg.NodeID, Audit: withAudit}
	ev.Parameters = append(ev.Parameters, auditfield.Text("backup", hex.EncodeToString(h.Id)), auditfield.Flag("audit", withAudit))
	if _, err := s.cfg.Events.Record(ctx, ev); err != nil {
		return nil, err
	}
	if err := from.Barrier(ctx); err != nil {
		return nil, err
	}
	state, write, err := from.Snapshot()
	if err != nil {
		return nil, err
	}
	c, _ := state.Cluster()
	frontier, _ := state.Audit()
	root := frontier.Root()
	h.Cluster, h.Index, h.Time, h.AuditSize, h.AuditRoot = proto.CloneOf(c), state.Index(), state.Time(), frontier.Size(), root[:]
	if withAudit && s.cfg.Audit.Size() < h.AuditSize {
		return nil, ErrIncomplete
	}
	w, err := newWriter(bounded{ctx, to}, o, h)
	if err != nil {
		return nil, err
	}
	defer w.destroy()
	if err := write(stateWriter{w}); err != nil {
		return nil, fmt.Errorf("writing the state: %w", err)
	}
	if withAudit {
		if err := s.writeAudit(w, h.AuditSize); err != nil {
			return nil, fmt.Errorf("writing the audit log: %w", err)
		}
	}
	return h, w.close()
}

func (s *Saver) writeAudit(w *writer, size uint64) error {
	var buf []byte
	for next := uint64(0); next < size; {
		entries, err := s.cfg.Audit.Read(next, int(min(auditBatch, size-next)), auditBytes)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return ErrIncomplete
		}
		for i := range entries {
			if buf, err = (proto.MarshalOptions{Deterministic: true}).MarshalAppend(buf[:0], entryProto(&entries[i])); err != nil {
				return err
			}
			if err := w.part(partAudit, buf); err != nil {
				return err
			}
		}
		next += uint64(len(entries))
	}
	return nil
}

// bounded writes until a context ends.
type bounded struct {
	ctx context.Context
	to  io.Writer
}

// Write implements io.Writer.
func (b bounded) Write(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.to.Write(p)
}

// EventName is the name of the event that records a backup.
const EventName = "SaveSnapshot"
