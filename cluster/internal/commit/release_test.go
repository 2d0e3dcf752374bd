package commit

import (
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
)

// TestReleaseCountsFromTheCommit takes answers of honest leaders and of others: no
// answer may look younger than its commit can be.
func TestReleaseCountsFromTheCommit(t *testing.T) {
	var o Proposer
	now := time.Now()
	b := &sentBatch{firstSend: now.Add(-10 * time.Second), lastSend: now.Add(-3 * time.Second)}
	for _, v := range []struct {
		name     string
		repeated bool
		waited   time.Duration
		want     time.Time
	}{
		{"committed at once, as far as is known", false, 0, b.lastSend},
		{"its entry waited for the disk", false, 2 * time.Second, b.lastSend.Add(2 * time.Second)},
		{"a batch sent before: any of its sends", true, 2 * time.Second, b.firstSend},
		{"a negative wait", false, -time.Hour, b.lastSend},
	} {
		r := &clusterpb.SubmitResponse{RepeatedBatch: v.repeated, Waited: int64(v.waited)}
		if got := o.committedSince(b, r); !got.Equal(v.want) {
			t.Errorf("%s: %v after the first send, want %v", v.name, got.Sub(b.firstSend), v.want.Sub(b.firstSend))
		}
	}
	far := o.committedSince(b, &clusterpb.SubmitResponse{Waited: int64(time.Hour)})
	if far.After(time.Now()) {
		t.Errorf("a leader's word put the commit %v into the future", time.Until(far))
	}
}

// TestOverdueByEitherClock: a machine that was suspended shows it on its wall clock
// alone.
func TestOverdueByEitherClock(t *testing.T) {
	now := time.Now()
	wall := now.Round(0)
	for _, v := range []struct {
		name   string
		moment time.Time
		want   bool
	}{
		{"ahead", now.Add(time.Hour), false},
		{"past", now.Add(-time.Nanosecond), true},
		{"past by the wall clock", wall.Add(-time.Second), true},
		{"ahead by the wall clock", wall.Add(time.Hour), false},
	} {
		if got := overdue(v.moment)(); got != v.want {
			t.Errorf("%s: %v", v.name, got)
		}
	}
	late := overdue(time.Now().Add(30 * time.Millisecond))
	if late() {
		t.Error("overdue before the moment")
	}
	clustertest.Eventually(t, 10*time.Second, "the moment to pass", late)
}
