package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/keyengine/joining"
	"github.com/conclavekms/conclave/transport/grpcapi"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// maxGossipKey bounds the gossip key's file, which has 32 bytes in base64.
const maxGossipKey = 1 << 10

// nodeCA implements joining.CA with the node's own idea of which CAs it trusts.
type nodeCA struct{ identity *pki.Identity }

// Check implements joining.CA.
func (c nodeCA) Check(certificate, key []byte, now time.Time) error {
	ca, err := pki.ParseCA(certificate, key)
	if err != nil {
		return err
	}
	if !now.Before(ca.NotAfter()) {
		return fmt.Errorf("its certificate expired on %v", ca.NotAfter())
	}
	return c.identity.Trusts(ca)
}

// Certify implements joining.CA.
func (c nodeCA) Certify(certificate, key []byte, node string, names []string, public any, now time.Time) ([]byte, error) {
	ca, err := pki.ParseCA(certificate, key)
	if err != nil {
		return nil, err
	}
	return ca.CertifyNode(node, names, public, now)
}

// nodeMembers implements joining.Members.
type nodeMembers struct{ n *Node }

// Leads implements joining.Members.
func (m nodeMembers) Leads() bool { return m.n.cluster.IsLeader() }

// MayAdd implements joining.Members.
func (m nodeMembers) MayAdd(node, address string) error {
	return operations(m).told(m.n.cluster.Changes().MayAdd(node, address))
}

// Add implements joining.Members.
func (m nodeMembers) Add(ctx context.Context, node, address string) error {
	return operations(m).told(m.n.cluster.Changes().Add(ctx, node, address))
}

// Has implements joining.Members.
func (m nodeMembers) Has(node, address string) bool {
	for _, o := range m.n.cluster.Members() {
		if o.ID == node {
			return o.PeerAddress == address
		}
	}
	return false
}

// joins implements grpcapi.Joining.
type joins struct {
	*joining.Service
	n *Node
}

// Joining implements grpcapi.Ceremony.
func (c operations) Joining() grpcapi.Joining { return joins{c.n.engine.Joining, c.n} }

// Join implements grpcapi.Joining.
func (j joins) Join(ctx context.Context, in *joining.Request) (*kmspb.JoinClusterResponse, error) {
	gossip, err := j.gossipKey() // before the token is used
	if err != nil {
		return nil, err
	}
	cert, node, err := j.Service.Join(ctx, in)
	if err != nil {
		return nil, err
	}
	res := &kmspb.JoinClusterResponse{NodeId: node, Certificate: cert, Cas: j.n.identity.CAs(), GossipKey: gossip}
	for _, m := range j.n.cluster.Members() {
		if m.Voter {
			res.Peers = append(res.Peers, &kmspb.JoinPeer{NodeId: m.ID, PeerAddress: m.PeerAddress})
		}
	}
	return res, nil
}

// gossipKey returns the contents of the gossip key's file, or nil if there is none.
func (j joins) gossipKey() ([]byte, error) {
	if j.n.cfg.GossipKeyFile == "" {
		return nil, nil
	}
	key, err := os.ReadFile(j.n.cfg.GossipKeyFile)
	if err == nil && len(key) > maxGossipKey {
		err = errors.New("the gossip key's file is too long")
	}
	return bytes.TrimSpace(key), err
}
