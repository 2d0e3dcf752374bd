package cluster

import (
	"context"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
)

// localLink is the way to the leader on the leader itself.
type localLink struct {
	node      string
	committer *commit.Committer
	answer    func(*clusterpb.SubmitResponse)
}

// Send implements commit.Link, like what follows.
func (l *localLink) Send(s *commit.Submission) {
	s.Answer = l.answer
	l.committer.Submit(s)
}
func (l *localLink) Leader() string { return l.node }
func (l *localLink) Local() bool    { return true }
func (l *localLink) Close()         {}

// remoteLink is the stream to another node that leads.
type remoteLink struct {
	node    string
	out     chan any // what the stream sends
	cancel  context.CancelFunc
	metrics *metrics
}

// linkQueue holds more than a Proposer ever has without an answer on one link.
const linkQueue = 4 * commit.BatchesInFlight

// dialLink opens a stream; it returns before there is a connection. When the
// stream ends, answer gets commit.LinkBroke or commit.LinkNeverOpened. Nothing is sent before the
// other node has proven that it is unsealed.
func (n *Node) dialLink(node string, client clusterpb.PeerClient, answer func(*clusterpb.SubmitResponse)) *remoteLink {
	ctx, cancel := context.WithCancel(n.ctx)
	l := &remoteLink{node: node, out: make(chan any, linkQueue), cancel: cancel, metrics: n.metrics}
	n.goroutine(func() {
		defer cancel()
		if err := n.challenge(ctx, node, client); err != nil {
			n.log.Debug("the leader is not known to be unsealed", "leader", node, "err", err)
			answer(commit.LinkNeverOpened)
			return
		}
		stream, err := client.Submit(ctx)
		if err != nil {
			answer(commit.LinkNeverOpened)
			return
		}
		defer answer(commit.LinkBroke)
		n.goroutine(func() { l.sendAll(ctx, stream) })
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			answer(r)
		}
	})
	return l
}

func (l *remoteLink) sendAll(ctx context.Context, stream grpc.BidiStreamingClient[clusterpb.SubmitRequest, clusterpb.SubmitResponse]) {
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
func (l *remoteLink) Send(s *commit.Submission) {
	var r any
	if s.Batch != nil {
		r = submitMessage(submitBatch, s.Batch.Encoded, s.Generation, s.MAC)
		l.metrics.forwarded.Inc()
	} else {
		r = submitMessage(submitRegister, s.Registration, s.Generation, s.MAC)
	}
	select {
	case l.out <- r:
	default:
		l.cancel() // more than can be in flight: let the Proposer start over
	}
}

func (l *remoteLink) Leader() string { return l.node }
func (l *remoteLink) Local() bool    { return false }
func (l *remoteLink) Close()         { l.cancel() }
