package cluster

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// leaves counts how often each request is in the audit log of a node.
func leaves(t *testing.T, n *testNode) map[[16]byte]int {
	t.Helper()
	if err := n.audit.Sync(); err != nil {
		t.Fatal(err)
	}
	got := make(map[[16]byte]int)
	for from := uint64(0); from < n.audit.Size(); {
		es, err := n.audit.Read(from, 1000, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			got[e.RequestID]++
		}
		from += uint64(len(es))
	}
	return got
}

// TestLeaderKillLosesNothing kills the leader under load: every proposal that
// was submitted gets its one verdict from the next leader, and each accepted
// record is in the log exactly once.
func TestLeaderKillLosesNothing(t *testing.T) {
	c := startCluster(t, 3, nil)
	old := c.leader()
	var mu sync.Mutex
	accepted := make(map[[16]byte]bool)
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	for _, n := range c.followers() {
		for range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for ctx.Err() == nil {
					r := record()
					v, err := n.Propose(context.Background(), r)
					if err != nil || v.Verdict != fsm.Accepted {
						t.Errorf("%s: Propose = %+v, %v", n.id, v, err)
						return
					}
					mu.Lock()
					accepted[[16]byte(r.RequestId)] = true
					mu.Unlock()
				}
			}()
		}
	}
	time.Sleep(200 * time.Millisecond)
	c.kill(old.id)
	next := c.leader()
	mu.Lock()
	before := len(accepted)
	mu.Unlock()
	eventually(t, 10*time.Second, "progress under the new leader", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(accepted) > before+50
	})
	stop()
	wg.Wait()
	c.converged()
	got := leaves(t, next)
	for id := range accepted {
		if got[id] != 1 {
			t.Errorf("accepted request %x is %d times in the log", id, got[id])
		}
	}
	if len(got) != len(accepted) {
		t.Errorf("%d requests in the log, %d accepted", len(got), len(accepted))
	}
	c.start(old.id)
	c.converged()
	c.noFaults()
}

// TestLostAnswers drops answers of the leader: the batches are sent again and
// must be answered with the verdicts that they had.
func TestLostAnswers(t *testing.T) {
	var dropping atomic.Bool
	var dropped, repeated atomic.Int64
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.Timeouts.Resubmit = 150 * time.Millisecond
		cfg.Timeouts.Release = 100 * time.Millisecond
		var n atomic.Int64
		cfg.Hooks.DropAnswer = func(_ string, r *clusterpb.SubmitResponse) bool {
			if r.RepeatedBatch {
				repeated.Add(1)
			}
			drop := dropping.Load() && r.Seq != 0 && !r.RepeatedBatch && n.Add(1)%4 == 0
			if drop {
				dropped.Add(1)
			}
			return drop
		}
	})
	dropping.Store(true)
	var mu sync.Mutex
	var late int
	var wg sync.WaitGroup
	sent := make(map[[16]byte]bool)
	for _, n := range c.up() {
		for range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 10 {
					r := record()
					v, err := n.Propose(context.Background(), r)
					if err != nil || v.Verdict != fsm.Accepted {
						t.Errorf("%s: Propose = %+v, %v", n.id, v, err)
						return
					}
					mu.Lock()
					sent[[16]byte(r.RequestId)] = true
					if v.Late {
						late++
					}
					mu.Unlock()
				}
			}()
		}
	}
	wg.Wait()
	if dropped.Load() == 0 || repeated.Load() == 0 {
		t.Fatalf("%d answers dropped, %d repeated: nothing was tested", dropped.Load(), repeated.Load())
	}
	// A repeated answer tells of a commit up to the first send, which is longer
	// ago than Release here.
	if late == 0 {
		t.Error("no verdict is late, though answers were lost for longer than Release")
	}
	c.converged()
	got := leaves(t, c.leader())
	for id := range sent {
		if got[id] != 1 {
			t.Errorf("request %x is %d times in the log", id, got[id])
		}
	}
	c.noFaults()
}

// TestOlderIncarnationIsFenced registers a newer incarnation of a running node.
func TestOlderIncarnationIsFenced(t *testing.T) {
	c := startCluster(t, 3, nil)
	n := c.followers()[0]
	mustPropose(t, n, record())
	done := make(chan *clusterpb.SubmitResponse, 1)
	reg := n.registration()
	reg.Incarnation++
	c.leader().merger.submit(&submission{register: reg, answer: func(r *clusterpb.SubmitResponse) { done <- r }})
	if r := <-done; r.Status != clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED {
		t.Fatalf("registration: %v", r)
	}
	go n.Propose(context.Background(), record())
	select {
	case err := <-n.faults:
		if !errors.Is(err, ErrIncarnation) {
			t.Errorf("fault = %v, want %v", err, ErrIncarnation)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the older incarnation was not fenced")
	}
	if _, err := n.Propose(within(t, time.Second), record()); !errors.Is(err, ErrFenced) {
		t.Errorf("Propose on a fenced node = %v, want %v", err, ErrFenced)
	}
}

func TestBarrier(t *testing.T) {
	c := startCluster(t, 3, nil)
	id := fsm.KeyID{Region: "eu-central-1", ID: [16]byte{7}}
	for i := range 30 {
		writer, reader := c.up()[i%3], c.up()[(i+1)%3]
		v := mustPropose(t, writer, policyChange(writer.barred(t), id, "x"))
		if got := reader.barred(t); got.Index() < v.Index {
			t.Fatalf("after a barrier the state has index %d, and %d was committed before", got.Index(), v.Index)
		} else if _, version := got.KeyPolicy(id); version != v.Index {
			t.Fatalf("version %d after the barrier, want %d", version, v.Index)
		}
	}
	// Many callers share few barriers.
	n := c.followers()[0]
	before := n.State().Index()
	var wg sync.WaitGroup
	for range 200 {
		wg.Add(1)
		go func() { defer wg.Done(); n.barred(t) }()
	}
	wg.Wait()
	if took := n.State().Index() - before; took > 100 {
		t.Errorf("200 callers at once took %d entries", took)
	}
	c.noFaults()
}

// barred is the state after a barrier.
func (n *testNode) barred(t *testing.T) *fsm.State {
	if err := n.Barrier(within(t, 10*time.Second)); err != nil {
		t.Error(err)
	}
	return n.State()
}

func TestNoLeader(t *testing.T) {
	c := startCluster(t, 3, func(_ string, cfg *Config) { cfg.Timeouts.LeaderWait = 300 * time.Millisecond })
	n := c.leader()
	for _, f := range c.followers() {
		c.kill(f.id)
	}
	eventually(t, 5*time.Second, "loss of leadership", func() bool { return !n.IsLeader() })
	start := time.Now()
	_, err := n.Propose(within(t, 10*time.Second), record())
	if !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("Propose without a majority = %v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("it took %v to say so", d)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.Propose(ctx, record()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Propose with a short context = %v", err)
	}
	if _, err := n.ExecuteOnLeader(within(t, time.Second), nil); !errors.Is(err, ErrNoLeader) {
		t.Errorf("ExecuteOnLeader = %v", err)
	}
}

func TestOverload(t *testing.T) {
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.MaxQueuedRecords = 10
		cfg.Timeouts.LeaderWait = 500 * time.Millisecond
	})
	n := c.leader()
	for _, f := range c.followers() {
		c.kill(f.id)
	}
	eventually(t, 5*time.Second, "loss of leadership", func() bool { return !n.IsLeader() })
	var wg sync.WaitGroup
	var overloaded atomic.Int64
	for range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := n.Propose(context.Background(), record()); errors.Is(err, ErrOverloaded) {
				overloaded.Add(1)
			}
		}()
	}
	wg.Wait()
	if got := overloaded.Load(); got < 25 {
		t.Errorf("%d of 40 proposals were refused with room for 10", got)
	}
	if got := n.origin.waitingRecords.Load(); got != 0 {
		t.Errorf("%d records still count as waiting", got)
	}
	if got := n.origin.waitingBytes.Load(); got != 0 {
		t.Errorf("%d bytes still count as waiting", got)
	}
}

func TestRecordsThatCannotBeProposed(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.leader()
	unknown := record()
	unknown.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1}) // field 127
	deep := policyChange(n.State(), fsm.KeyID{Region: "r", ID: [16]byte{}}, "x")
	deep.Changes[0].GetPutKeyPolicy().ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	use := record()
	use.Uses = []*fsmpb.Use{{}}
	use.Uses[0].ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	large := record()
	large.Body = make([]byte, maxRecord)
	text := policyChange(n.State(), fsm.KeyID{Region: "r"}, "\xff")
	for name, r := range map[string]*fsmpb.Record{
		"nil": nil, "unknown field": unknown, "unknown field inside": deep, "large": large, "not UTF-8": text,
		"empty change": {Changes: []*fsmpb.Change{nil}}, "empty use": {Uses: []*fsmpb.Use{nil}}, "unknown field of a use": use,
	} {
		if _, err := n.Propose(within(t, time.Second), r); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: Propose = %v, want %v", name, err, ErrRecord)
		}
	}
	mustPropose(t, n, record())
	c.noFaults()
}

// fakeLink records what is sent on it.
type fakeLink struct {
	sent   chan *submission
	answer func(*clusterpb.SubmitResponse)
}

func (l *fakeLink) send(s *submission) { l.sent <- s }
func (l *fakeLink) leader() string     { return "x" }
func (l *fakeLink) close()             {}

// testOrigin is an origin of node n1 with links from dial.
func testOrigin(t testing.TB, timeouts Timeouts, dial func(func(*clusterpb.SubmitResponse)) link) *origin {
	o := newOrigin(&origin{
		node: "n1", incarnation: 1, maxRecords: 100, maxBytes: 1 << 20, metrics: newMetrics(),
		timeouts: timeouts, dial: dial, moved: func(string) bool { return false },
		register:  func() *fsmpb.RegisterNode { return &fsmpb.RegisterNode{} },
		watermark: func() uint64 { return 0 }, fenced: func(err error) { t.Error(err) },
	})
	t.Cleanup(func() {
		select {
		case <-o.done: // the test closed it
		default:
			o.close()
		}
	})
	return o
}

// applies answers a submission as a leader does.
func applies(s *submission) *clusterpb.SubmitResponse {
	r := &clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED}
	if s.batch != nil {
		r.Seq = s.batch.seq
		for range s.batch.records {
			r.Verdicts = append(r.Verdicts, byte(fsm.Accepted))
		}
	}
	return r
}

// TestOnlyWhatNobodyTookIsGivenUp tells a batch that is certainly in no log from
// one that may be.
func TestOnlyWhatNobodyTookIsGivenUp(t *testing.T) {
	notLeader := func(s *submission, l *fakeLink) {
		r := &clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER, Seq: s.batch.seq}
		l.answer(r)
	}
	for name, tc := range map[string]struct {
		first func(*submission, *fakeLink)
		want  error
	}{
		"refused":      {notLeader, ErrNoLeader},
		"never opened": {func(_ *submission, l *fakeLink) { l.answer(linkNeverOpened) }, ErrNoLeader},
		"broke":        {func(_ *submission, l *fakeLink) { l.answer(linkBroke) }, ErrOutcomeUnknown},
		"no answer":    {func(*submission, *fakeLink) {}, ErrOutcomeUnknown},
		"unknown": {func(s *submission, l *fakeLink) {
			l.answer(&clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN, Seq: s.batch.seq})
		}, ErrOutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			links := make(chan *fakeLink, 16)
			opened := 0
			timeouts := Timeouts{LeaderWait: 200 * time.Millisecond, Resubmit: 100 * time.Millisecond, Outcome: time.Second, Release: time.Second}
			o := testOrigin(t, timeouts, func(answer func(*clusterpb.SubmitResponse)) link {
				if opened++; opened > 2 {
					return nil // no leader any more
				}
				l := &fakeLink{sent: make(chan *submission, 16), answer: answer}
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
			p, err := newProposal(record())
			if err != nil {
				t.Fatal(err)
			}
			if v, err := o.propose(context.Background(), p); !errors.Is(err, tc.want) {
				t.Errorf("propose = %+v, %v; want %v", v, err, tc.want)
			}
		})
	}
}

// TestOutcomeIsAwaited follows proposals to their outcome: once sent, neither the
// end of the caller's context nor a long silence is one.
func TestOutcomeIsAwaited(t *testing.T) {
	links := make(chan *fakeLink, 1)
	o := testOrigin(t, Timeouts{LeaderWait: time.Minute, Resubmit: time.Minute, Outcome: 700 * time.Millisecond, Release: time.Minute},
		func(answer func(*clusterpb.SubmitResponse)) link {
			l := &fakeLink{sent: make(chan *submission, 16), answer: answer}
			links <- l
			return l
		})
	l := <-links
	l.answer(applies(<-l.sent))
	propose := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() {
			p, err := newProposal(record())
			if err == nil {
				_, err = o.propose(ctx, p)
			}
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
	var late []*submission
	for range batchesInFlight {
		flying = append(flying, propose(background))
		late = append(late, <-l.sent)
	}
	ctx, cancel = context.WithCancel(background)
	done = propose(ctx)
	eventually(t, 5*time.Second, "a waiting proposal", func() bool { return o.waitingRecords.Load() == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("withdrawn: %v", err)
	}
	for _, done := range flying {
		if err := <-done; !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("without an answer: %v, want %v", err, ErrOutcomeUnknown)
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
	if s.batch.records != 1 {
		t.Errorf("%d records after a withdrawal, want 1", s.batch.records)
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
	o.close()
	if err := <-done; !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("closed with a batch in flight: %v, want %v", err, ErrOutcomeUnknown)
	}
	if err := <-propose(background); !errors.Is(err, ErrShutdown) {
		t.Errorf("after close: %v, want %v", err, ErrShutdown)
	}
}

// TestProposalHasOneOutcome answers a proposal whose caller does not listen: the
// first outcome counts, and no further one may hold up the origin.
func TestProposalHasOneOutcome(t *testing.T) {
	p := &proposal{done: make(chan outcome, 1)}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		p.answer(outcome{err: ErrOutcomeUnknown})
		p.answer(outcome{})
		p.answer(outcome{})
	}()
	select {
	case <-answered:
	case <-time.After(5 * time.Second):
		t.Fatal("the origin waits for a caller")
	}
	if out := <-p.done; !errors.Is(out.err, ErrOutcomeUnknown) || len(p.done) > 0 {
		t.Errorf("outcome %v, then %d more", out.err, len(p.done))
	}
}

// TestIntakeWakesOnce holds when the origin is told of arrivals.
func TestIntakeWakesOnce(t *testing.T) {
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
		in := newIntake()
		in.expect(tc.expect, tc.expectBytes)
		for i, p := range tc.put {
			if !in.put(p) {
				t.Errorf("%s: %d was refused", name, i)
			}
			select {
			case <-in.arrived:
				if !tc.wakes[i] {
					t.Errorf("%s: woken by proposal %d", name, i)
				}
			default:
				if tc.wakes[i] {
					t.Errorf("%s: not woken by proposal %d", name, i)
				}
			}
		}
		if got := in.take(); !slices.Equal(got, tc.put) {
			t.Errorf("%s: took %d of %d", name, len(got), len(tc.put))
		}
		in.put(&proposal{})
		select {
		case <-in.arrived:
		default:
			t.Errorf("%s: not woken after a take", name)
		}
		in.close()
		if in.put(&proposal{}) || len(in.take()) != 1 || len(in.take()) != 0 {
			t.Errorf("%s: closed, it takes more or loses what it has", name)
		}
	}
}

// BenchmarkPropose brings records of 64 callers through an origin whose leader
// answers at once.
func BenchmarkPropose(b *testing.B) {
	var l *fakeLink
	opened := make(chan struct{})
	o := testOrigin(b, Timeouts{LeaderWait: time.Minute, Resubmit: time.Minute, Outcome: time.Minute, Release: time.Minute},
		func(answer func(*clusterpb.SubmitResponse)) link {
			l = &fakeLink{sent: make(chan *submission, 16), answer: answer}
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
