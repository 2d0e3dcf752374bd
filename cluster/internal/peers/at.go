package peers

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
)

// At opens a connection of its own to a node, at the given address and at no other, and
// returns a client that uses only this connection: if it ends, all further calls fail. The
// caller must call end.
func (p *Clients) At(ctx context.Context, node, addr string) (client clusterpb.PeerClient, end func(), err error) {
	raw, err := p.connectTo(ctx, node, addr, pki.ALPNPeer)
	if err != nil {
		return nil, nil, err
	}
	var used atomic.Bool
	c, err := grpc.NewClient("passthrough:///"+node,
		grpc.WithTransportCredentials(peerport.Credentials{}),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, fmt.Errorf("%w: the connection to %s has ended", peerport.ErrUnreachable, node)
			}
			return raw, nil
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	return clusterpb.NewPeerClient(c), func() {
		c.Close()
		raw.Close()
	}, nil
}
