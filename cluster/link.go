package cluster

import (
	"context"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

// localLink is the way to the leader on the leader itself.
type localLink struct {
	node   string
	merger *merger
	answer func(*clusterpb.SubmitResponse)
}

func (l *localLink) send(s *submission) {
	s.answer = l.answer
	l.merger.submit(s)
}
func (l *localLink) leader() string { return l.node }
func (l *localLink) close()         {}

// remoteLink is the stream to another node that leads.
type remoteLink struct {
	node    string
	out     chan any // what the stream sends
	cancel  context.CancelFunc
	metrics *metrics
}

// linkQueue holds more than an origin ever has without an answer on one link.
const linkQueue = 4 * batchesInFlight

// dialLink opens a stream; it returns before there is a connection. When the
// stream ends, answer gets linkBroke or linkNeverOpened.
func dialLink(ctx context.Context, node string, client clusterpb.PeerClient, m *metrics, answer func(*clusterpb.SubmitResponse), running func(func())) *remoteLink {
	ctx, cancel := context.WithCancel(ctx)
	l := &remoteLink{node: node, out: make(chan any, linkQueue), cancel: cancel, metrics: m}
	running(func() {
		defer cancel()
		stream, err := client.Submit(ctx)
		if err != nil {
			answer(linkNeverOpened)
			return
		}
		defer answer(linkBroke)
		running(func() { l.sendAll(ctx, stream) })
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

func (l *remoteLink) send(s *submission) {
	var r any
	if s.batch != nil {
		r = submitBatchMessage(s.batch)
		l.metrics.forwarded.Inc()
	} else {
		r = &clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Register{Register: s.register}}
	}
	select {
	case l.out <- r:
	default:
		l.cancel() // more than can be in flight: let the origin start over
	}
}

func (l *remoteLink) leader() string { return l.node }
func (l *remoteLink) close()         { l.cancel() }
