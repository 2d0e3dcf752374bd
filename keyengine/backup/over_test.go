package backup

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
)

// snapshotOf returns a snapshot of the newest state.
func snapshotOf(t *testing.T, n *testNode) []byte {
	t.Helper()
	_, write, err := n.Cluster.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestRestoreOver restores a backup in place of a cluster in which a key was disabled since,
// another deleted, and a third one made.
func TestRestoreOver(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	gone, later := enginetest.KeyID, enginetest.KeyID
	gone.ID[15], later.ID[15] = 1, 2
	n.PutKey(gone)
	file := n.save(true)
	was := n.Cluster.State()
	key, _ := was.Key(enginetest.KeyID)
	key = proto.CloneOf(key)
	key.State = fsmpb.KeyState_KEY_STATE_DISABLED
	doomed, _ := was.Key(gone)
	doomed = proto.CloneOf(doomed)
	doomed.State, doomed.DeletionTime = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, was.Time()+int64(8*24*time.Hour)
	n.Cluster.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: key}}, &fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: doomed}})
	n.Cluster.Advance(9 * 24 * time.Hour)
	n.Cluster.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Account: uint64(gone.Account), Key: gone.ID[:], Region: gone.Region}}})
	n.PutKey(later)
	newest := n.Cluster.State()
	if k, _ := newest.Key(gone); k != nil {
		t.Fatal("the key was not deleted")
	}

	// The keys are those of the newest state, and open the backup.
	k, err := SurvivorKeys(newest, "n9", false)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, s := range n.shares[:2] {
		if _, _, err := k.Add([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	r := bytes.NewReader(file)
	h, err := ReadHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	of, err := k.For(h)
	if err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	content, err := of.Read(r, &saved, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.CheckHistory(n.Cluster.Audit); err != nil {
		t.Errorf("CheckHistory: %v", err)
	}
	now := snapshotOf(t, n)
	revoked, err := k.Revoked(bytes.NewReader(saved.Bytes()), bytes.NewReader(now))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(revoked, func(s string) bool { return strings.HasSuffix(s, "was disabled, is enabled again") }) ||
		!slices.ContainsFunc(revoked, func(s string) bool { return strings.HasSuffix(s, "000000000001: was deleted") }) || len(revoked) != 2 {
		t.Errorf("valid again: %q", revoked)
	}
	if same, err := k.Revoked(bytes.NewReader(now), bytes.NewReader(now)); err != nil || len(same) != 0 {
		t.Errorf("a state differs from itself: %q, %v", same, err)
	}

	over := &Over{Node: "n9", State: newest, ValidAgain: revoked}
	if err := over.Begin(bytes.NewReader(saved.Bytes())); err == nil {
		t.Error("the backup's snapshot is taken for the newest one")
	}
	if err := over.Begin(bytes.NewReader(now)); err != nil {
		t.Fatal(err)
	}
	res := &Restore{Nodes: []string{"a"}, Now: time.Unix(2e9, 0), Over: over}
	if err := res.Begin(of, content); err != nil {
		t.Fatal(err)
	}
	var state bytes.Buffer
	if err := res.Snapshot(&saved, &state); err != nil {
		t.Fatal(err)
	}
	if err := res.Check(bytes.NewReader(state.Bytes())); err != nil {
		t.Fatal(err)
	}
	m := fsm.New(fsm.Config{Audit: noAudit{}})
	if err := m.Restore(io.NopCloser(bytes.NewReader(state.Bytes()))); err != nil {
		t.Fatal(err)
	}
	s := m.Current()
	// The objects are the backup's; time, index and audit log go on.
	if k, _ := s.Key(gone); k == nil {
		t.Error("the deleted key is not there again")
	}
	if k, _ := s.Key(enginetest.KeyID); k.GetState() != fsmpb.KeyState_KEY_STATE_ENABLED {
		t.Errorf("the disabled key is %v", k.GetState())
	}
	if k, _ := s.Key(later); k != nil {
		t.Error("a key that was made since is there")
	}
	had, _ := newest.Audit()
	has, _ := s.Audit()
	entry := res.Record()
	had.Append(entry.LeafHash())
	if s.Time() != newest.Time() || s.Index() != newest.Index() || !has.Equal(had) {
		t.Errorf("time %d, index %d, %d records; want %d, %d, %d", s.Time(), s.Index(), has.Size(), newest.Time(), newest.Index(), had.Size())
	}
	rec := enginetest.OpenRecord(t, n.Vault, entry)
	if rec.EventName != "RestoreSnapshot" || !strings.Contains(rec.String(), "was deleted") || !strings.Contains(rec.String(), "n9") {
		t.Errorf("the record is %v", rec)
	}
}

// TestRestoreOverAnother has backups of other histories refused.
func TestRestoreOverAnother(t *testing.T) {
	t.Parallel()
	n, other := newTestNode(t), newTestNode(t)
	k, err := SurvivorKeys(n.Cluster.State(), "n9", false)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	h, err := ReadHeader(bytes.NewReader(other.save(true)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.For(h); err == nil {
		t.Error("a backup of another cluster is accepted")
	}
	if err := h.CheckHistory(n.Cluster.Audit); err == nil {
		t.Error("a backup with another audit log is accepted")
	}
	if h, err = ReadHeader(bytes.NewReader(n.save(true))); err != nil {
		t.Fatal(err)
	}
	h.AuditSize++
	if err := h.CheckHistory(n.Cluster.Audit); err == nil {
		t.Error("a backup that is newer than the cluster is accepted")
	}
}
