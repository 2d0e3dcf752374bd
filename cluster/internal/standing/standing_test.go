package standing

import (
	"fmt"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

// standingsOf are those of n1's with others at the given indexes.
func standingsOf(now time.Time, others map[string]*clusterpb.ClockResponse, proven ...string) *Standings {
	s := New(time.Second)
	for id, r := range others {
		s.Take(id, r, false, now)
	}
	for _, id := range proven {
		s.Take(id, others[id], true, now)
	}
	for _, id := range []string{"n2", "n3"} {
		if others[id] == nil {
			for range silentAfter {
				s.Silent(id)
			}
		}
	}
	return s
}

func TestWhoMayLead(t *testing.T) {
	now := time.Now()
	voters := []string{"n1", "n2", "n3"}
	at := func(last uint64, fit bool) *clusterpb.ClockResponse {
		return &clusterpb.ClockResponse{LastIndex: last, CanLead: fit}
	}
	sealed := Self{Node: "n1", Last: 10, Voters: voters}
	fit := Self{Node: "n1", Last: 10, Voters: voters, Fit: true}
	behind := Self{Node: "n1", Last: 5, Voters: voters, Fit: true}
	for name, tt := range map[string]struct {
		others map[string]*clusterpb.ClockResponse
		proven []string
		leader string
		me     Self
		want   bool // n3 may lead
	}{
		"all are sealed":                      {others: map[string]*clusterpb.ClockResponse{"n2": at(10, false), "n3": at(10, false)}, me: sealed, want: true},
		"it is proven":                        {others: map[string]*clusterpb.ClockResponse{"n2": at(10, true), "n3": at(10, true)}, proven: []string{"n3"}, me: fit, want: true},
		"it claims to be fit":                 {others: map[string]*clusterpb.ClockResponse{"n2": at(10, true), "n3": at(10, true)}, me: fit, want: false},
		"another could":                       {others: map[string]*clusterpb.ClockResponse{"n2": at(10, true), "n3": at(10, false)}, proven: []string{"n2"}, me: sealed, want: false},
		"another leads":                       {others: map[string]*clusterpb.ClockResponse{"n2": at(99, true), "n3": at(10, false)}, proven: []string{"n2"}, leader: "n2", me: sealed, want: false},
		"this one leads":                      {others: map[string]*clusterpb.ClockResponse{"n2": at(99, false), "n3": at(10, false)}, leader: "n1", me: behind, want: false},
		"another says that it could":          {others: map[string]*clusterpb.ClockResponse{"n2": at(10, true), "n3": at(10, false)}, me: sealed, want: true},
		"another is not fit":                  {others: map[string]*clusterpb.ClockResponse{"n2": at(10, false), "n3": at(10, false)}, proven: []string{"n2"}, me: sealed, want: true},
		"this one lacks entries":              {others: map[string]*clusterpb.ClockResponse{"n2": at(10, false), "n3": at(10, false)}, me: behind, want: true},
		"only it has more entries":            {others: map[string]*clusterpb.ClockResponse{"n2": at(5, false), "n3": at(99, false)}, me: behind, want: false},
		"the third does not answer":           {others: map[string]*clusterpb.ClockResponse{"n3": at(10, false)}, me: fit, want: true},
		"it leads already":                    {others: map[string]*clusterpb.ClockResponse{"n2": at(10, true), "n3": at(10, false)}, proven: []string{"n2"}, leader: "n3", me: fit, want: true},
		"a sealed one leads and it wants to":  {others: map[string]*clusterpb.ClockResponse{"n2": at(10, false), "n3": at(10, false)}, leader: "n2", me: fit, want: false},
		"a sealed one leads, nobody else can": {others: map[string]*clusterpb.ClockResponse{"n2": at(10, false), "n3": at(10, false)}, leader: "n2", me: sealed, want: true},
	} {
		s := standingsOf(now, tt.others, tt.proven...)
		if got := s.MayLead("n3", tt.leader, tt.me, now); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	// Before the others have answered, or not answered, an unsealed one may be there.
	s := New(time.Second)
	for i := range silentAfter + 1 {
		if got := s.MayLead("n3", "", sealed, now); got != (i == silentAfter) {
			t.Errorf("after %d unanswered questions to the third: %v", i, got)
		}
		s.Silent("n2")
	}
}

// The word of a node without proof counts while those with proof are no majority.
func TestWhoCounts(t *testing.T) {
	now := time.Now()
	voters := []string{"n1", "n2", "n3"}
	fit, unfit := &clusterpb.ClockResponse{CanLead: true}, &clusterpb.ClockResponse{}
	for name, tt := range map[string]struct {
		n2     *clusterpb.ClockResponse
		proven bool
		me     bool
		want   bool // n3 counts
	}{
		"two are unsealed":             {fit, true, true, false},
		"one has a disk that hangs":    {unfit, true, true, true},
		"one is unsealed":              {fit, false, true, true},
		"this one is sealed":           {fit, true, false, true},
		"the other one does not speak": {nil, false, true, true},
	} {
		others := map[string]*clusterpb.ClockResponse{"n3": unfit}
		var proven []string
		if tt.n2 != nil {
			others["n2"] = tt.n2
		}
		if tt.proven {
			proven = append(proven, "n2")
		}
		s := standingsOf(now, others, proven...)
		if got := s.Counts("n3", Self{Node: "n1", Voters: voters, Fit: tt.me}, now); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
		if s.Take("n3", fit, true, now); !s.Counts("n3", Self{Node: "n1", Voters: voters, Fit: tt.me}, now) {
			t.Errorf("%s: an unsealed node does not count", name)
		}
	}
}

func TestPatienceWithALeader(t *testing.T) {
	start := time.Now()
	voters := []string{"n1", "n2", "n3"}
	s := New(time.Second)
	at := func(d time.Duration, last uint64, me Self) bool {
		now := start.Add(d)
		s.Take("n2", &clusterpb.ClockResponse{LastIndex: 10}, false, now)
		s.Take("n3", &clusterpb.ClockResponse{LastIndex: last}, false, now)
		return s.Judge("n3", me, now)
	}
	fit := Self{Node: "n1", Last: 10, Voters: voters, Fit: true}
	if at(0, 10, Self{Node: "n1", Last: 10, Voters: voters}) || at(time.Hour, 10, Self{Node: "n1", Last: 10, Voters: voters}) {
		t.Error("a sealed leader of a sealed cluster is not followed")
	}
	if at(2*time.Hour, 10, fit) || at(2*time.Hour+(yieldWithin-1)*time.Second, 10, fit) {
		t.Error("no time to step aside")
	}
	if !at(2*time.Hour+yieldWithin*time.Second, 10, fit) {
		t.Error("it is followed for ever")
	}
	refused := start.Add(2*time.Hour + (yieldWithin+1)*time.Second)
	if s.MayLead("n3", "n3", fit, refused) {
		t.Error("it is followed still")
	}
	s.Take("n3", &clusterpb.ClockResponse{LastIndex: 10, CanLead: true}, true, refused)
	if !s.MayLead("n3", "n3", fit, refused) {
		t.Error("it is unsealed and not followed")
	}
	// A node that lacks entries gets them from whoever leads, for a while.
	s = New(time.Second)
	behind := Self{Node: "n1", Last: 5, Voters: voters, Fit: true}
	if at(0, 10, behind) || at((catchUpWithin-1)*time.Second, 10, behind) {
		t.Error("no time to catch up")
	}
	if !at(catchUpWithin*time.Second, 10, behind) {
		t.Error("a leader that gives nothing is followed for ever")
	}
}

func TestOutvoted(t *testing.T) {
	now := time.Now()
	for i, tt := range []struct {
		others   string // one for each: s same, d differs; S and D with proof; x not compared
		unsealed bool
		want     bool
	}{
		{"ss", true, false}, {"SS", true, false}, {"xx", true, false},
		{"sd", true, false}, // a thief may say anything
		{"Sd", true, false},
		{"dd", true, true}, {"dd", false, true},
		{"xD", true, true}, // nobody can tell which of the two is right
		{"sD", true, true},
		{"SD", true, false},
		{"sD", false, false},
		{"SDxx", true, false}, {"SDDx", true, true}, {"DD", false, true},
	} {
		s := New(time.Second)
		for j, c := range tt.others {
			id := fmt.Sprint(j)
			s.Take(id, &clusterpb.ClockResponse{}, c == 'S' || c == 'D', now)
			if c != 'x' {
				s.Compare(id, 7, c == 's' || c == 'S', now)
			}
		}
		if got := s.Outvoted(len(tt.others)+1, tt.unsealed, now); got != tt.want {
			t.Errorf("%d: %q, unsealed %v: %v", i, tt.others, tt.unsealed, got)
		}
	}
}
