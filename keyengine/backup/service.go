package backup

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Backups that the cluster makes by itself; see package scheduled.

// SaveOwn is Save for a backup that no operator asked for. The caller has made its id. place
// is where it is stored, for the record.
func (s *Saver) SaveOwn(ctx context.Context, from Source, id [16]byte, place string, withAudit bool, to io.Writer) error {
	_, err := s.save(ctx, from, id, record.ServiceEvent(EventName, s.cfg.Clock.Now(), auditfield.Text("place", place)), withAudit, to)
	return err
}

// RecordRemoval records that the node removes backups. It returns when the record is
// committed; nothing may be removed before.
func (s *Saver) RecordRemoval(ctx context.Context, place string, names []string) error {
	_, err := s.cfg.Events.Record(ctx, record.ServiceEvent("RemoveSnapshots", s.cfg.Clock.Now(),
		auditfield.Text("place", place), auditfield.TextList("names", names)))
	return err
}

// Authenticate reads a backup of this cluster to its end, on an unsealed node and without
// shares. It returns an error unless the file is whole, is what a node of the cluster wrote,
// and has the audit log that its header names. The state in it is not read: that takes as
// much memory as the state, and is left to Keys.Read.
func (s *Saver) Authenticate(ctx context.Context, from io.Reader) (*Header, error) {
	from = boundedReader{ctx, from}
	h, err := ReadHeader(from)
	if err != nil {
		return nil, err
	}
	o, err := s.cfg.Vault.Current()
	if err != nil {
		return nil, err
	}
	key, err := h.fileKey(o)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	in := newReader(from, key, h)
	var tree auditlog.Frontier
	var buf []byte
	state := false
	for before := byte(partState); before != partEnd; {
		kind, b, err := in.part(buf)
		if err != nil {
			return nil, err
		}
		if kind < before {
			return nil, errOrder
		}
		before, buf = kind, b
		switch kind {
		case partState:
			state = true
		case partAudit:
			e, err := parseEntry(b)
			if err != nil {
				return nil, err
			}
			tree.Append(e.LeafHash())
		}
	}
	root := tree.Root()
	if !state || h.Audit && (tree.Size() != h.AuditSize || !bytes.Equal(root[:], h.AuditRoot)) || !h.Audit && tree.Size() > 0 {
		return nil, fmt.Errorf("%w: its content is not what its header names", ErrDamaged)
	}
	return h, nil
}

// ErrForeignBackup is returned for a backup of another cluster.
var ErrForeignBackup = errors.New("the backup is of another cluster")

// Checked is a backup that was found good.
type Checked struct {
	*Header
	// Keys is the number of keys, and Versions that of the versions of their material, all
	// of which can be opened.
	Keys, Versions int
}

// CheckEventName is the name of the event that records the check of a backup.
const CheckEventName = "CheckSnapshot"

// Check reads a backup of the cluster and checks all of it, on an unsealed node and without
// shares: like Keys.Read, and all material. ev names who wants it. The outcome is recorded.
// It takes as much memory as another state; a file that no node of the cluster wrote takes
// none, as nothing of it is read before it is authenticated.
func (s *Saver) Check(ctx context.Context, cluster []byte, ev record.Event, from io.Reader) (*Checked, error) {
	if _, err := s.cfg.Vault.Current(); err != nil {
		return nil, err
	}
	c, err := s.check(ctx, cluster, from)
	if c.Header != nil {
		ev.Parameters = append(ev.Parameters, auditfield.Text("backup", hex.EncodeToString(c.Id)))
	}
	if _, sealed := s.cfg.Vault.Current(); err != nil && (sealed != nil || ctx.Err() != nil) {
		return nil, cmp.Or(ctx.Err(), sealed) // says nothing about the backup
	}
	if err != nil {
		err = kmsapi.Errorf(kmsapi.ErrValidation, "The backup is not good: %s.", err)
		ev.Err = err
	}
	if _, recorded := s.cfg.Events.Record(ctx, ev); recorded != nil {
		return nil, recorded
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (s *Saver) check(ctx context.Context, cluster []byte, from io.Reader) (*Checked, error) {
	c := new(Checked)
	from = boundedReader{ctx, from}
	h, err := ReadHeader(from)
	if err != nil {
		return c, err
	}
	c.Header = h
	if !bytes.Equal(h.Cluster.GetId(), cluster) {
		return c, ErrForeignBackup
	}
	k := &Keys{header: h, vault: s.cfg.Vault}
	content, err := k.Read(from, nil, nil)
	if err == nil {
		c.Keys, c.Versions, err = k.Materials(content.State)
	}
	return c, err
}

// errOrder is returned for a backup whose parts are not in order.
var errOrder = fmt.Errorf("%w: its parts are not in order", ErrDamaged)

// Is reports whether the header is of the backup with an id, of a cluster with an id. Nothing
// of the header is authenticated.
func (h *Header) Is(cluster []byte, id string) bool {
	return bytes.Equal(h.Cluster.GetId(), cluster) && hex.EncodeToString(h.Id) == id
}

// boundedReader reads until a context ends.
type boundedReader struct {
	ctx  context.Context
	from io.Reader
}

// Read implements io.Reader.
func (b boundedReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.from.Read(p)
}
