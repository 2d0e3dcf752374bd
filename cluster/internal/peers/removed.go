package peers

import (
	"context"
	"crypto/sha256"
	"encoding/binary"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
)

// removedDomain separates these notices from other data that the origin key signs.
const removedDomain = "conclave removed v1"

// removedDigest returns the digest that an unsealed leader signs to tell a node that it was
// removed by the configuration of that index.
func removedDigest(node string, index uint64) [32]byte {
	h := sha256.New()
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, index))
	_, _ = h.Write([]byte(node))
	return [32]byte(h.Sum(nil))
}

// TellRemoved tells a node that it was removed.
func (p *Clients) TellRemoved(ctx context.Context, client clusterpb.PeerClient, node string, index uint64, sign origin.Sign) error {
	g, sig, err := sign(removedDomain, removedDigest(node, index))
	if err != nil {
		return err
	}
	_, err = client.Removed(ctx, &clusterpb.RemovedRequest{Group: wire.Group, ConfigurationIndex: index, Generation: g, Proof: sig})
	return err
}

// Removed implements the Peer service. A thief of a node's identity could stop nodes with
// such notices if they were not signed.
func (s *server) Removed(ctx context.Context, r *clusterpb.RemovedRequest) (*clusterpb.RemovedResponse, error) {
	if _, err := s.member(ctx); err != nil {
		return nil, err
	}
	if !s.node.Verify(r.Generation, removedDomain, removedDigest(s.ID, r.ConfigurationIndex), r.Proof) {
		return nil, status.Error(codes.PermissionDenied, ErrForged.Error())
	}
	s.node.Removed(r.ConfigurationIndex)
	return &clusterpb.RemovedResponse{}, nil
}
