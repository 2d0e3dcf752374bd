package backup

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/snapfile"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// A restored cluster has another history than the one that was backed up, with the same
// keys. Its state differs from the backup as follows.
//
//   - The cluster's record names the lineage. What nodes of the old cluster have signed, and
//     its Raft entries and snapshots are signed, is not valid in the new one.
//   - No node is registered, there are no sessions, and the voters are the new nodes. No
//     batch of the old cluster can be applied again, as its sender is not registered, and a
//     node begins with no watermark.
//   - The audit log continues from that of the backup with one record, of the restore. It
//     could also have begun anew; but then nobody could verify by the tree that the old
//     records are those that were backed up. Somebody who has a checkpoint of the old
//     cluster that is newer than the backup sees that records were lost.
//   - The rolling state hash is another one, so that nodes of both would notice.
//
// Everything else is as it was, versions of objects and the Raft index included.

// Restore describes the restore of a backup.
type Restore struct {
	// Nodes are the ids of the first nodes of the new cluster.
	Nodes []string
	// Now is when.
	Now time.Time
	// Quorum is set if the state is not of a backup but of a node that survived.
	Quorum *Quorum
	// Over is set if the backup takes the place of a cluster that still exists. Its Begin
	// must have been called.
	Over *Over
	// Lineage is set by Begin.
	Lineage *fsmpb.Lineage

	keys    *Keys
	content *Content
	base    *fsm.State // whose cluster, time, index and audit log go on
	entry   auditlog.Entry
	cluster *fsmpb.Cluster
}

// Begin begins the restore of a backup that Keys.Read has accepted: it makes the new lineage
// and the record of the restore.
func (r *Restore) Begin(k *Keys, content *Content) error {
	o, err := k.opened()
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails: crypto/rand ends the process instead
	s := content.State
	r.base = s
	if r.Over != nil {
		r.base = r.Over.State
	}
	frontier, _ := r.base.Audit()
	root := frontier.Root()
	r.keys, r.content = k, content
	r.Lineage = &fsmpb.Lineage{
		Id: id, Backup: k.header.Id, Index: s.Index(), AuditSize: frontier.Size(), AuditRoot: root[:], Restored: r.Now.UnixNano(),
	}
	name, parameters := "RestoreSnapshot", []*auditpb.Field{auditfield.Text("backup", hex.EncodeToString(k.header.Id))}
	writer := k.header.Node
	switch {
	case r.Quorum != nil:
		name, parameters = "RecoverQuorum", r.Quorum.fields()
	case r.Over != nil:
		parameters, writer = append(parameters, r.Over.fields()...), r.Over.Node
	}
	c, _ := r.base.Cluster()
	r.cluster = proto.CloneOf(c)
	r.cluster.Lineage = r.Lineage
	var custodians []string
	slices.Sort(k.custodians)
	for _, i := range k.custodians {
		custodians = append(custodians, strconv.Itoa(i))
	}
	ev := record.Event{
		Name: name, Kind: record.KindOperator, At: r.Now,
		Identity: &auditpb.Identity{Type: record.OperatorType, PrincipalId: "custodians", AccountId: c.GetAccount()},
		Parameters: append(parameters,
			auditfield.Text("lineage", hex.EncodeToString(id)),
			auditfield.TextList("custodians", custodians), auditfield.TextList("nodes", r.Nodes),
			auditfield.Text("raftIndex", strconv.FormatUint(s.Index(), 10)),
			auditfield.Text("auditRecords", strconv.FormatUint(frontier.Size(), 10)), auditfield.Text("auditRoot", hex.EncodeToString(root[:])),
		),
	}
	rec, err := record.Build(o, writer, r.Now, r.cluster, r.base.Level(), &ev)
	if err != nil {
		return err
	}
	r.entry = auditlog.Entry{
		Index: frontier.Size(), RaftIndex: r.base.Index(), Time: r.base.Time(), RequestID: [16]byte(rec.RequestId), Generation: rec.Generation,
		Salt: [16]byte(rec.Salt), Commitment: auditlog.Hash(rec.Commitment), Body: rec.Body,
	}
	return r.entry.Check()
}

// Record returns the record of the restore, which follows the records of the backup.
func (r *Restore) Record() auditlog.Entry { return r.entry }

// Snapshot writes the snapshot that the new cluster begins with. from is the state snapshot
// that Keys.Read wrote.
func (r *Restore) Snapshot(from io.Reader, to io.Writer) error {
	in, err := snapfile.NewReader(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := snapfile.NewWriter(to)
	if err != nil {
		return err
	}
	if err := r.rewrite(in, out); err != nil {
		return out.Abandon(err)
	}
	return out.Close()
}

func (r *Restore) rewrite(in *snapfile.Reader, out *snapfile.Writer) error {
	var digest [32]byte
	attested := true
	for {
		item, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if attested && !snapfile.Attested(item) {
			digest, attested = out.Digest(), false
		}
		switch m := item.Item.(type) {
		case *fsmpb.SnapshotItem_Header:
			h, err := r.header(m.Header)
			if err != nil {
				return err
			}
			out.Item(h)
		case *fsmpb.SnapshotItem_Cluster:
			out.Item(r.cluster)
		case *fsmpb.SnapshotItem_Node, *fsmpb.SnapshotItem_Session, *fsmpb.SnapshotItem_Observation, *fsmpb.SnapshotItem_Attestation:
			// of the old cluster
		case *fsmpb.SnapshotItem_StateChecks:
			out.Item(&fsmpb.StateChecks{})
		default:
			held := item.ProtoReflect()
			field := held.WhichOneof(held.Descriptor().Oneofs().Get(0))
			out.Field(field.Number(), held.Get(field).Message().Interface())
		}
		if out.Err() != nil {
			return out.Err()
		}
	}
	if attested {
		return fmt.Errorf("%w: its state has no attestation", ErrDamaged)
	}
	o, err := r.keys.opened()
	if err != nil {
		return err
	}
	a, err := origin.Attest(digest, func(domain string, digest [32]byte) (uint32, []byte, error) {
		return o.SignOriginOf(r.cluster, domain, digest)
	})
	if err != nil {
		return err
	}
	out.Item(a)
	return nil
}

// header returns the header of the new state.
func (r *Restore) header(was *fsmpb.SnapshotHeader) (*fsmpb.SnapshotHeader, error) {
	if r.Over != nil {
		was = r.Over.header
	}
	h := proto.CloneOf(was)
	h.Voters = slices.Sorted(slices.Values(r.Nodes))
	hash := sha256.Sum256(slices.Concat([]byte("conclave lineage v1\x00"), r.Lineage.Id, was.StateHash))
	h.StateHash = hash[:]
	frontier, roots := r.base.Audit()
	frontier.Append(r.entry.LeafHash())
	if frontier.Size()%auditlog.SegmentSize == 0 {
		roots = append(slices.Clip(roots), frontier.SegmentRoot())
		last := roots[len(roots)-1]
		h.SegmentRoots = append(h.SegmentRoots, last[:])
	}
	var err error
	h.AuditFrontier, err = frontier.MarshalBinary()
	return h, err
}

// Check reads the snapshot that Snapshot wrote as the new nodes will, and compares it with
// the backup.
func (r *Restore) Check(from io.Reader) error {
	state := newStateReader()
	defer state.close(io.ErrUnexpectedEOF)
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if err := state.write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	s, err := state.end()
	if err != nil {
		return err
	}
	c, _ := s.Cluster()
	frontier, roots := s.Audit()
	was, before := r.base.Audit()
	was.Append(r.entry.LeafHash())
	if !proto.Equal(c, r.cluster) || s.Index() != r.base.Index() || s.Time() != r.base.Time() || !frontier.Equal(was) || !bytes.Equal(c.GetLineage().GetId(), r.Lineage.Id) || len(roots) < len(before) {
		return errors.New("the restored state is not the one that was to be restored")
	}
	return nil
}
