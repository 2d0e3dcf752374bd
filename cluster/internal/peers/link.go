package peers

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
)

// link is the stream to another node that leads.
type link struct {
	node      string
	out       chan any // what the stream sends
	cancel    context.CancelFunc
	forwarded prometheus.Counter
}

// linkQueue holds more than a Proposer ever has without an answer on one link.
const linkQueue = 4 * commit.BatchesInFlight

// Link opens the stream to a leader; it returns before there is a connection. When the
// stream ends, or ctx, answer gets commit.LinkBroke or commit.LinkNeverOpened. Nothing is
// sent before the other node has proven that it is unsealed.
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
				return // Recv learns why
			}
		case <-ctx.Done():
			return
		}
	}
}

// Send implements commit.Link, like what follows.
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
		l.cancel() // more than can be in flight: let the Proposer start over
	}
}

func (l *link) Leader() string { return l.node }
func (l *link) Local() bool    { return false }
func (l *link) Close()         { l.cancel() }
