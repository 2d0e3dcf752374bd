package commit

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
)

// fakeLink records what is sent on it.
type fakeLink struct {
	sent   chan *Submission
	answer func(*clusterpb.SubmitResponse)
}

func (l *fakeLink) Send(s *Submission) { l.sent <- s }
func (l *fakeLink) Leader() string     { return "x" }
func (l *fakeLink) Local() bool        { return false }
func (l *fakeLink) Close()             {}

// testProposer is a Proposer of node n1 with links from dial.
func testProposer(t testing.TB, timeouts Timeouts, dial func(func(*clusterpb.SubmitResponse)) Link, edit ...func(*ProposerConfig)) *Proposer {
	cfg := ProposerConfig{
		Node: "n1", Incarnation: 1, MaxRecords: 100, MaxBytes: 1 << 20, Resubmitted: prometheus.NewCounter(prometheus.CounterOpts{}),
		Timeouts: timeouts, Dial: dial, Moved: func(string) bool { return false },
		Register:  func() *fsmpb.RegisterNode { return &fsmpb.RegisterNode{} },
		Powerless: func() bool { return false },
		MAC:       func(string, []byte) (uint32, []byte, error) { return 0, nil, nil },
		Watermark: func() uint64 { return 0 }, Level: func() uint32 { return level.Oldest }, Fenced: func(err error) { t.Error(err) },
	}
	for _, e := range edit {
		e(&cfg)
	}
	o := NewProposer(cfg)
	t.Cleanup(func() {
		select {
		case <-o.done: // the test closed it
		default:
			o.Close()
		}
	})
	return o
}

// applies answers a submission as a leader does.
func applies(s *Submission) *clusterpb.SubmitResponse {
	r := &clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED}
	if s.Batch != nil {
		r.Seq = s.Batch.Seq
		for range s.Batch.Records {
			r.Verdicts = append(r.Verdicts, byte(fsm.Accepted))
		}
	}
	return r
}

// TestOnlyWhatNobodyTookIsGivenUp tells a batch that is certainly in no log from
// one that may be.
func TestOnlyWhatNobodyTookIsGivenUp(t *testing.T) {
	notLeader := func(s *Submission, l *fakeLink) {
		r := &clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER, Seq: s.Batch.Seq}
		l.answer(r)
	}
	for name, tc := range map[string]struct {
		first func(*Submission, *fakeLink)
		want  error
	}{
		"refused":      {notLeader, fsm.ErrNoLeader},
		"never opened": {func(_ *Submission, l *fakeLink) { l.answer(LinkNeverOpened) }, fsm.ErrNoLeader},
		"broke":        {func(_ *Submission, l *fakeLink) { l.answer(LinkBroke) }, fsm.ErrOutcomeUnknown},
		"no answer":    {func(*Submission, *fakeLink) {}, fsm.ErrOutcomeUnknown},
		"unknown": {func(s *Submission, l *fakeLink) {
			l.answer(&clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN, Seq: s.Batch.Seq})
		}, fsm.ErrOutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			links := make(chan *fakeLink, 16)
			opened := 0
			timeouts := Timeouts{LeaderWait: 200 * time.Millisecond, Resubmit: 100 * time.Millisecond, Outcome: time.Second, Release: time.Second}
			o := testProposer(t, timeouts, func(answer func(*clusterpb.SubmitResponse)) Link {
				if opened++; opened > 2 {
					return nil // no leader any more
				}
				l := &fakeLink{sent: make(chan *Submission, 16), answer: answer}
				links <- l
				return l
			})
			go func() {
				l := <-links
				<-l.sent // the registration
				l.answer(&clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED})
				tc.first(<-l.sent, l)
				l = <-links
				notLeader(<-l.sent, l)
			}()
			if v, err := o.Propose(context.Background(), clustertest.Record(), false); !errors.Is(err, tc.want) {
				t.Errorf("propose = %+v, %v; want %v", v, err, tc.want)
			}
		})
	}
}

// TestOutcomeIsAwaited follows proposals to their outcome: once sent, neither the
// end of the caller's context nor a long silence is one.
func TestOutcomeIsAwaited(t *testing.T) {
	links := make(chan *fakeLink, 1)
	o := testProposer(t, Timeouts{LeaderWait: time.Minute, Resubmit: time.Minute, Outcome: 700 * time.Millisecond, Release: time.Minute},
		func(answer func(*clusterpb.SubmitResponse)) Link {
			l := &fakeLink{sent: make(chan *Submission, 16), answer: answer}
			links <- l
			return l
		})
	l := <-links
	l.answer(applies(<-l.sent))
	propose := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := o.Propose(ctx, clustertest.Record(), false)
			done <- err
		}()
		return done
	}
	background := context.Background()

	ctx, cancel := context.WithCancel(background)
	done := propose(ctx)
	s := <-l.sent
	cancel()
	select {
	case err := <-done:
		t.Fatalf("%v before the outcome", err)
	case <-time.After(20 * time.Millisecond):
	}
	l.answer(applies(s))
	if err := <-done; err != nil {
		t.Errorf("sent before ctx ended: %v", err)
	}

	// As many batches as may be in flight; what waits behind them can be withdrawn.
	var flying []chan error
	var late []*Submission
	for range BatchesInFlight {
		flying = append(flying, propose(background))
		late = append(late, <-l.sent)
	}
	ctx, cancel = context.WithCancel(background)
	done = propose(ctx)
	clustertest.Eventually(t, 5*time.Second, "a waiting proposal", func() bool { return o.waitingRecords.Load() == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("withdrawn: %v", err)
	}
	for _, done := range flying {
		if err := <-done; !errors.Is(err, fsm.ErrOutcomeUnknown) {
			t.Errorf("without an answer: %v, want %v", err, fsm.ErrOutcomeUnknown)
		}
	}
	if len(l.sent) > 0 {
		t.Error("a batch went out beyond the limit")
	}
	done = propose(background)
	for _, s := range late {
		l.answer(applies(s))
	}
	s = <-l.sent
	if s.Batch.Records != 1 {
		t.Errorf("%d records after a withdrawal, want 1", s.Batch.Records)
	}
	l.answer(applies(s))
	if err := <-done; err != nil {
		t.Errorf("after late answers: %v", err)
	}
	if in, waiting := o.inFlight.Load(), o.waitingRecords.Load(); in != 0 || waiting != 0 {
		t.Errorf("%d batches in flight, %d records waiting", in, waiting)
	}

	done = propose(background)
	<-l.sent
	o.Close()
	if err := <-done; !errors.Is(err, fsm.ErrOutcomeUnknown) {
		t.Errorf("closed with a batch in flight: %v, want %v", err, fsm.ErrOutcomeUnknown)
	}
	if err := <-propose(background); !errors.Is(err, ErrShutdown) {
		t.Errorf("after close: %v, want %v", err, ErrShutdown)
	}
}

// TestRecordsShareReads: several records share what they have read, once the cluster has
// reached the level for it.
func TestRecordsShareReads(t *testing.T) {
	var reached atomic.Uint32
	links := make(chan *fakeLink, 1)
	o := testProposer(t, Timeouts{LeaderWait: time.Minute, Resubmit: time.Minute, Outcome: time.Minute, Release: time.Minute},
		func(answer func(*clusterpb.SubmitResponse)) Link {
			l := &fakeLink{sent: make(chan *Submission, 16), answer: answer}
			links <- l
			return l
		}, func(cfg *ProposerConfig) { cfg.Level = reached.Load })
	l := <-links
	l.answer(applies(<-l.sent))
	var proposing sync.WaitGroup
	propose := func() {
		proposing.Go(func() {
			if _, err := o.Propose(t.Context(), clustertest.UsualRecord(), false); err != nil {
				t.Error(err)
			}
		})
	}
	// batch returns a batch of n records.
	batch := func(n int) *Submission {
		var before []*Submission
		for range BatchesInFlight {
			propose()
			before = append(before, <-l.sent)
		}
		for range n {
			propose()
		}
		clustertest.Eventually(t, 5*time.Second, "waiting proposals", func() bool { return o.waitingRecords.Load() == int64(n) })
		for _, s := range before {
			l.answer(applies(s))
		}
		s := <-l.sent
		l.answer(applies(s))
		proposing.Wait()
		if s.Batch.Records != n {
			t.Fatalf("a batch of %d records, want %d", s.Batch.Records, n)
		}
		return s
	}
	for _, tc := range []struct {
		level   uint32
		records int
		shared  int
	}{
		{level.SharedReads - 1, 5, 0}, {level.SharedReads, 5, len(clustertest.UsualRecord().Reads)}, {level.SharedReads, 1, 0},
	} {
		reached.Store(tc.level)
		s := batch(tc.records)
		var b fsmpb.Batch
		if err := proto.Unmarshal(s.Batch.Encoded, &b); err != nil {
			t.Fatal(err)
		}
		needed := uint32(1)
		if tc.shared > 0 {
			needed = level.SharedReads
		}
		got, err := CheckBatch(s.Batch.Encoded)
		if err != nil || got.Needed != needed || s.Batch.Needed != needed || len(b.SharedReads) != tc.shared {
			t.Errorf("%d records at level %d: %d shared reads, level %d, to the leader %+v (%v)",
				tc.records, tc.level, len(b.SharedReads), s.Batch.Needed, got, err)
		}
	}
}

// TestProposalHasOneOutcome answers a proposal whose caller does not listen: the
// first outcome counts, and no further one may hold up the Proposer.
func TestProposalHasOneOutcome(t *testing.T) {
	p := &proposal{done: make(chan outcome, 1)}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		p.answer(outcome{err: fsm.ErrOutcomeUnknown})
		p.answer(outcome{})
		p.answer(outcome{})
	}()
	select {
	case <-answered:
	case <-time.After(5 * time.Second):
		t.Fatal("the Proposer waits for a caller")
	}
	if out := <-p.done; !errors.Is(out.err, fsm.ErrOutcomeUnknown) || len(p.done) > 0 {
		t.Errorf("outcome %v, then %d more", out.err, len(p.done))
	}
}

// TestQueueWakesOnce holds when the Proposer is told of arrivals.
func TestQueueWakesOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		expect, expectBytes int
		put                 []*proposal
		wakes               []bool // after each put
	}{
		"by default":      {1, 0, []*proposal{{}, {}}, []bool{true, true}},
		"by count":        {3, 100, []*proposal{{size: 1}, {size: 1}, {size: 1}}, []bool{false, false, true}},
		"by bytes":        {3, 100, []*proposal{{size: 60}, {size: 40}}, []bool{false, true}},
		"by an exclusive": {math.MaxInt, math.MaxInt, []*proposal{{size: 60}, {exclusive: true}}, []bool{false, true}},
	} {
		q := newQueue()
		q.expect(tc.expect, tc.expectBytes)
		for i, p := range tc.put {
			if !q.put(p) {
				t.Errorf("%s: %d was refused", name, i)
			}
			select {
			case <-q.arrived:
				if !tc.wakes[i] {
					t.Errorf("%s: woken by proposal %d", name, i)
				}
			default:
				if tc.wakes[i] {
					t.Errorf("%s: not woken by proposal %d", name, i)
				}
			}
		}
		if got := q.take(); !slices.Equal(got, tc.put) {
			t.Errorf("%s: took %d of %d", name, len(got), len(tc.put))
		}
		q.put(&proposal{})
		select {
		case <-q.arrived:
		default:
			t.Errorf("%s: not woken after a take", name)
		}
		q.close()
		if q.put(&proposal{}) || len(q.take()) != 1 || len(q.take()) != 0 {
			t.Errorf("%s: closed, it takes more or loses what it has", name)
		}
	}
}

// BenchmarkPropose brings records of 64 callers through a Proposer whose leader
// answers at once.
func BenchmarkPropose(b *testing.B) {
	var l *fakeLink
	opened := make(chan struct{})
	o := testProposer(b, Timeouts{LeaderWait: time.Minute, Resubmit: time.Minute, Outcome: time.Minute, Release: time.Minute},
		func(answer func(*clusterpb.SubmitResponse)) Link {
			l = &fakeLink{sent: make(chan *Submission, 16), answer: answer}
			close(opened)
			return l
		})
	<-opened
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case s := <-l.sent:
				l.answer(applies(s))
			case <-stop:
				return
			}
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := o.propose(ctx, &proposal{record: []byte{}, size: 600}); err != nil {
				b.Error(err)
			}
		}
	})
}
