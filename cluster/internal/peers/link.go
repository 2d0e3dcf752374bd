package peers

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
)

// link is a stream to the leader on another node.
type link struct {
	node      string
	out       chan any // messages for the stream to send
	cancel    context.CancelFunc
	forwarded prometheus.Counter
}

// linkQueue is larger than the number of unanswered messages that a Proposer has on one
// link.
const linkQueue = 4 * commit.BatchesInFlight

// Link opens a stream to the leader and returns before it is connected. When the stream or
// ctx ends, answer is called with commit.LinkBroke or commit.LinkNeverOpened. Nothing is
// sent before the other node has proved that it is unsealed.
func (p *Clients) Link(ctx context.Context, leader string, answer func(*clusterpb.SubmitResponse)) (commit.Link, error) {
	client, err := p.Client(leader)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &link{node: leader, out: make(chan any, linkQueue), cancel: cancel, forwarded: p.conf.Forwarded}
	p.conf.Go(func() {
		defer cancel()
		if err := p.Challenge(ctx, leader, client); err != nil {
			p.conf.Log.Debug("the leader is not known to be unsealed", "leader", leader, "err", err)
			answer(commit.LinkNeverOpened)
			return
		}
		stream, err := client.Submit(ctx)
		if err != nil {
			answer(commit.LinkNeverOpened)
			return
		}
		defer answer(commit.LinkBroke)
		p.conf.Go(func() { l.sendAll(ctx, stream) })
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			answer(r)
		}
	})
	return l, nil
}

func (l *link) sendAll(ctx context.Context, stream grpc.BidiStreamingClient[clusterpb.SubmitRequest, clusterpb.SubmitResponse]) {
	for {
		select {
		case r := <-l.out:
			if stream.SendMsg(r) != nil {
				return // Recv returns the reason
			}
		case <-ctx.Done():
			return
		}
	}
}

// Send implements commit.Link, like the methods below.
func (l *link) Send(s *commit.Submission) {
	var r any
	if s.Batch != nil {
		r = submitMessage(submitBatch, s.Batch.Encoded, s.Generation, s.MAC)
		l.forwarded.Inc()
	} else {
		r = submitMessage(submitRegister, s.Registration, s.Generation, s.MAC)
	}
	select {
	case l.out <- r:
	default:
		l.cancel() // more than can be in flight: make the Proposer start over
	}
}

func (l *link) Leader() string { return l.node }
func (l *link) Local() bool    { return false }
func (l *link) Close()         { l.cancel() }
