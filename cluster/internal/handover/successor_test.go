package handover

import (
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
)

// TestSuccessor chooses who takes over from a leader whose log ends at 10,000.
func TestSuccessor(t *testing.T) {
	const yield = 750 * time.Millisecond
	node := func(id string, last uint64, fit bool, d *clusterpb.Disk) *clusterpb.ClockResponse {
		return &clusterpb.ClockResponse{Node: id, LastIndex: last, CanLead: fit, Disk: d}
	}
	disk := func(write, behind time.Duration, space diskspace.Level) *clusterpb.Disk {
		return &clusterpb.Disk{Write: int64(write), Behind: int64(behind), Space: uint32(space)}
	}
	quick, slow := disk(time.Millisecond, 0, diskspace.Ample), disk(20*time.Millisecond, 0, diskspace.Ample)
	hung, full := disk(time.Millisecond, yield, diskspace.Ample), disk(time.Millisecond, 0, diskspace.Yield)
	for _, v := range []struct {
		what  string
		nodes []*clusterpb.ClockResponse
		want  map[choice]string
	}{
		{"nobody", nil, map[choice]string{anyNode: "", onlyFit: "", preferFit: "", preferQuick: ""}},
		{
			"one that lags behind", []*clusterpb.ClockResponse{node("a", 9_000, true, quick)},
			map[choice]string{anyNode: "", onlyFit: "", preferFit: "", preferQuick: ""},
		},
		{
			"one that is not fit", []*clusterpb.ClockResponse{node("a", 10_000, false, quick)},
			map[choice]string{anyNode: "a", onlyFit: "", preferFit: "a", preferQuick: ""},
		},
		{
			"one that is fit and behind a little", []*clusterpb.ClockResponse{node("a", 10_000, false, quick), node("b", 9_900, true, slow)},
			map[choice]string{anyNode: "b", onlyFit: "b", preferFit: "b", preferQuick: "b"},
		},
		{
			"disks that do not answer and that are full", []*clusterpb.ClockResponse{node("a", 10_000, true, hung), node("b", 10_000, true, full)},
			map[choice]string{anyNode: "a", onlyFit: "", preferFit: "", preferQuick: ""},
		},
		{
			"a fit one whose disk does not answer", []*clusterpb.ClockResponse{node("a", 10_000, true, hung), node("b", 10_000, false, quick)},
			map[choice]string{anyNode: "b", onlyFit: "", preferFit: "b", preferQuick: ""},
		},
		{
			"a longer log and a quicker disk", []*clusterpb.ClockResponse{node("a", 10_000, true, slow), node("b", 9_999, true, quick)},
			map[choice]string{anyNode: "a", onlyFit: "a", preferFit: "a", preferQuick: "b"},
		},
		{
			"one of which no write is known", []*clusterpb.ClockResponse{node("a", 10_000, true, nil), node("b", 9_999, true, slow)},
			map[choice]string{anyNode: "a", onlyFit: "a", preferFit: "a", preferQuick: "b"},
		},
		{
			"two that are alike", []*clusterpb.ClockResponse{node("b", 10_000, true, quick), node("a", 10_000, true, quick)},
			map[choice]string{anyNode: "a", onlyFit: "a", preferFit: "a", preferQuick: "a"},
		},
	} {
		infos := make(map[string]*clusterpb.ClockResponse)
		for _, n := range v.nodes {
			infos[n.Node] = n
		}
		for by, want := range v.want {
			if got := (candidates{infos, 10_000, yield}).best(by); got != want {
				t.Errorf("%s: choice %d is %q, want %q", v.what, by, got, want)
			}
		}
	}
}
