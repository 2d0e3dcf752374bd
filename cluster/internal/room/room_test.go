package room

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
)

const mib = 1 << 20

// TestSnapshotsNeedRoom begins none for which there may be none.
func TestSnapshotsNeedRoom(t *testing.T) {
	dir := t.TempDir()
	files, err := raft.NewFileSnapshotStore(dir, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	room := diskspace.Room{Free: 200 * mib, Total: 256 * mib}
	s := diskspace.NewTracker("", diskspace.Marks{}, func() (diskspace.Room, error) { return room, nil })
	store := snapshots{files, s}
	create := func() error {
		s.Look(time.Now())
		sink, err := store.Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			return err
		}
		if _, err := sink.Write(make([]byte, mib)); err != nil {
			return err
		}
		return sink.Close()
	}
	if err := create(); err != nil {
		t.Fatal(err)
	}
	room.Free = 5*mib + mib // more than 2 %, and than a snapshot like the last one
	if err := create(); !errors.Is(err, ErrNone) {
		t.Errorf("on a full disk a snapshot is begun: %v", err)
	}
}

// countedAudit is an audit log that counts what it is given.
type countedAudit struct {
	fsm.AuditLog
	appends chan int
}

func (a countedAudit) Append(e []auditlog.Entry, _ []auditlog.Hash) error {
	a.appends <- len(e)
	return nil
}

// TestAuditWaitsForRoom has no room for an append, for longer than a disk may take, and
// then some.
func TestAuditWaitsForRoom(t *testing.T) {
	room := make(chan diskspace.Room, 1)
	room <- diskspace.Room{Free: 10, Total: 256 * mib}
	now := diskspace.Room{}
	s := diskspace.NewTracker("", diskspace.Marks{}, func() (diskspace.Room, error) {
		select {
		case now = <-room:
		default:
		}
		return now, nil
	})
	m, g := raftlog.NewMeter(), raftlog.NewGate()
	a := audit{countedAudit{appends: make(chan int, 1)}, s, m, g}
	appends := a.AuditLog.(countedAudit).appends
	done := make(chan error, 1)
	go func() { done <- a.Append(make([]auditlog.Entry, 3), nil) }()
	select {
	case n := <-appends:
		t.Errorf("%d entries were appended without room", n)
	case err := <-done:
		t.Fatalf("no room was an error: %v", err)
	case <-time.After(2 * raftlog.SpaceRetry):
	}
	room <- diskspace.Room{Free: 10 * mib, Total: 256 * mib}
	select {
	case err := <-done:
		if err != nil || <-appends != 3 {
			t.Errorf("with room again: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on waiting with room on the disk")
	}
	room <- diskspace.Room{Free: 10, Total: 256 * mib}
	go func() { done <- a.Append(make([]auditlog.Entry, 3), nil) }()
	g.Close()
	select {
	case err := <-done:
		if !errors.Is(err, ErrNone) {
			t.Errorf("a stop made it %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a stop does not end the wait")
	}
}

// TestClusterGrowsWhileAMajorityHasRoom asks the leader of three, which has room itself or not.
func TestClusterGrowsWhileAMajorityHasRoom(t *testing.T) {
	voter := func(l diskspace.Level) *clusterpb.ClockResponse {
		return &clusterpb.ClockResponse{Disk: &clusterpb.Disk{Space: uint32(l)}}
	}
	for _, v := range []struct {
		what   string
		free   uint64
		others []*clusterpb.ClockResponse
		refuse bool
	}{
		{"all have room", 200 * mib, []*clusterpb.ClockResponse{voter(diskspace.Ample), voter(diskspace.Low)}, false},
		{"one has none", 200 * mib, []*clusterpb.ClockResponse{voter(diskspace.Scarce), voter(diskspace.Ample)}, false},
		{"two have none", 200 * mib, []*clusterpb.ClockResponse{voter(diskspace.Scarce), voter(diskspace.Full)}, true},
		{"the leader and another have none", 5 * mib, []*clusterpb.ClockResponse{voter(diskspace.Scarce), voter(diskspace.Ample)}, true},
		{"who says nothing has room", 200 * mib, nil, false},
	} {
		r := diskspace.Room{Free: v.free, Total: 256 * mib}
		k := New(diskspace.NewTracker("", diskspace.Marks{}, func() (diskspace.Room, error) { return r, nil }), raftlog.NewGate(), slog.New(slog.DiscardHandler))
		k.Look()
		infos := make(map[string]*clusterpb.ClockResponse)
		for i, o := range v.others {
			infos[string(rune('b'+i))] = o
		}
		k.Weigh(infos, 3)
		if k.NoGrowth() != v.refuse || k.MayGrow() == v.refuse {
			t.Errorf("%s: growth is refused %v, and this node may grow %v", v.what, k.NoGrowth(), k.MayGrow())
		}
	}
}
