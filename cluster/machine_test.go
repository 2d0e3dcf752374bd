package cluster

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// memorySink is a snapshot in memory.
type memorySink struct {
	raft.SnapshotSink
	bytes.Buffer
}

func (s *memorySink) Write(b []byte) (int, error) { return s.Buffer.Write(b) }

// workingSnapshot works for some time before each block that it writes.
type workingSnapshot struct {
	raft.FSMSnapshot
	work []time.Duration
}

func (s workingSnapshot) Persist(sink raft.SnapshotSink) error {
	for i, d := range s.work {
		time.Sleep(d)
		if _, err := sink.Write([]byte{byte(i)}); err != nil {
			return err
		}
	}
	return nil
}

// TestSnapshotIsPaced: for the time that a snapshot works it rests as long, but never
// for much longer than a block takes.
func TestSnapshotIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		var took time.Duration
		var sink memorySink
		s := ownSnapshot{workingSnapshot{work: []time.Duration{2 * ms, 3 * ms, 0, 200 * ms, ms}}, 0, func(d time.Duration) { took = d }}
		if err := s.Persist(&sink); err != nil {
			t.Fatal(err)
		}
		if want := (2+3+200+1)*ms + (2+3+1)*ms + maxPause; took != want {
			t.Errorf("it took %v, want %v", took, want)
		}
		if !bytes.Equal(sink.Bytes(), []byte{0, 1, 2, 3, 4}) {
			t.Errorf("written was %v", sink.Bytes())
		}
	})
}
