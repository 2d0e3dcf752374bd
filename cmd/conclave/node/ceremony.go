package node

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/grpcapi"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// relayTimeout bounds what one peer may take for an operator's call: a node that
// hangs must not hide what became of the others.
const relayTimeout = 10 * time.Second

// What nodes relay to each other.
const (
	relayStatus = "status"
	relayShare  = "share"
	relayReset  = "reset"
	relaySeal   = "seal"
)

// relayed is an operator's call on its way to another node, over mutual TLS
// between nodes.
type relayed struct {
	Operator keyengine.Operator
	Share    []byte `json:",omitempty"`
}

// ceremony is what operators can make the cluster do: this node's engine, and the
// same on its peers.
type ceremony struct{ n *Node }

var _ grpcapi.Ceremony = ceremony{}

// here carries a call out on this node.
func (c ceremony) here(ctx context.Context, kind string, r relayed) *kmspb.NodeStatus {
	e := c.n.engine
	var err error
	switch kind {
	case relayStatus:
	case relayShare:
		_, err = e.SubmitShare(ctx, r.Operator, string(r.Share))
	case relayReset:
		err = e.ResetShares(ctx, r.Operator)
	case relaySeal:
		err = e.Seal(ctx, r.Operator)
	default:
		err = fmt.Errorf("relayed call %q is not known to this version", kind)
	}
	return &kmspb.NodeStatus{
		NodeId: c.n.cfg.NodeID, Error: grpcapi.Detail(err, r.Operator.RequestID), Seal: grpcapi.SealState(e.SealStatus()),
		Leader: c.n.cluster.IsLeader(), Version: c.n.cfg.Release, AppliedIndex: c.n.cluster.State().Index(),
	}
}

// serveRelay carries out what another node was asked by an operator.
func (n *Node) serveRelay(ctx context.Context, from, kind string, payload []byte) ([]byte, error) {
	var r relayed
	if err := json.Unmarshal(payload, &r); err != nil {
		return nil, fmt.Errorf("relayed call: %w", err)
	}
	defer clear(r.Share)
	defer clear(payload)
	// Each node records its own part, and no two records share a request id.
	r.Operator.RequestID = transport.NewRequestID()
	n.log.Debug("relayed operator call", "kind", kind, "from", from, "operator", r.Operator.Name)
	return proto.Marshal(ceremony{n}.here(ctx, kind, r))
}

// everywhere carries a call out on all nodes at once; what cannot be reached is
// reported as such.
func (c ceremony) everywhere(ctx context.Context, kind string, r relayed) []*kmspb.NodeStatus {
	peers := c.n.cluster.Peers()
	all := make([]*kmspb.NodeStatus, len(peers)+1)
	var wg sync.WaitGroup
	for i, peer := range peers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, relayTimeout)
			defer cancel()
			st, err := c.relay(ctx, peer, kind, r)
			if err != nil {
				c.n.log.Warn("relaying an operator call", "kind", kind, "to", peer, "err", err)
				st = &kmspb.NodeStatus{NodeId: peer, Error: &kmspb.ErrorDetail{
					Type: "Unreachable", Message: "the node cannot be reached from " + c.n.cfg.NodeID,
					RequestId: transport.FormatRequestID(r.Operator.RequestID),
				}}
			}
			all[i+1] = st
		})
	}
	all[0] = c.here(ctx, kind, r)
	wg.Wait()
	return all
}

func (c ceremony) relay(ctx context.Context, peer, kind string, r relayed) (*kmspb.NodeStatus, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	defer clear(payload)
	answer, err := c.n.cluster.Relay(ctx, peer, kind, payload)
	if err != nil {
		return nil, err
	}
	st := new(kmspb.NodeStatus)
	return st, proto.Unmarshal(answer, st)
}

func (c ceremony) run(ctx context.Context, kind string, r relayed, local bool) []*kmspb.NodeStatus {
	if local {
		return []*kmspb.NodeStatus{c.here(ctx, kind, r)}
	}
	return c.everywhere(ctx, kind, r)
}

// SubmitShare implements grpcapi.Ceremony.
func (c ceremony) SubmitShare(ctx context.Context, op keyengine.Operator, share string, local bool) ([]*kmspb.NodeStatus, error) {
	return c.run(ctx, relayShare, relayed{Operator: op, Share: []byte(share)}, local), nil
}

// ResetShares implements grpcapi.Ceremony.
func (c ceremony) ResetShares(ctx context.Context, op keyengine.Operator, local bool) ([]*kmspb.NodeStatus, error) {
	return c.run(ctx, relayReset, relayed{Operator: op}, local), nil
}

// Seal implements grpcapi.Ceremony.
func (c ceremony) Seal(ctx context.Context, op keyengine.Operator, all bool) ([]*kmspb.NodeStatus, error) {
	return c.run(ctx, relaySeal, relayed{Operator: op}, !all), nil
}

// Init implements grpcapi.Ceremony.
func (c ceremony) Init(ctx context.Context, op keyengine.Operator, p keyengine.InitParams) (*keyengine.InitResult, error) {
	return c.n.engine.Init(ctx, op, p)
}

// ConfirmTime implements grpcapi.Ceremony.
func (c ceremony) ConfirmTime(ctx context.Context, op keyengine.Operator) error {
	return c.n.engine.ConfirmTime(ctx, op)
}

// Status implements grpcapi.Ceremony.
func (c ceremony) Status(ctx context.Context, all bool) (*kmspb.StatusResponse, error) {
	n := c.n
	st := n.cluster.Status()
	state := n.cluster.State()
	frontier, _ := state.Audit()
	hash := state.Hash()
	seal := n.engine.SealStatus()
	_, _, missing := n.audit.Missing()
	r := &kmspb.StatusResponse{
		Seal: grpcapi.SealState(seal), HasLeader: st.Leader != "", NodeId: n.cfg.NodeID, Version: n.cfg.Release,
		LeaderId: st.Leader,
		Raft: &kmspb.RaftStatus{
			State: st.State, Term: st.Term, LastIndex: st.LastIndex, CommitIndex: st.CommitIndex, AppliedIndex: st.Applied,
			StateIndex: state.Index(), StateHash: hash[:],
		},
		Audit: &kmspb.AuditStatus{
			Size: frontier.Size(), Stored: n.audit.Size(), Complete: !missing && n.audit.Size() >= frontier.Size(),
			Checkpointed: n.engine.Checkpointed(), VerifierKey: seal.VerifierKey,
		},
		Addresses: &kmspb.Addresses{Peer: n.addresses.Peer, Aws: n.addresses.AWS, Grpc: n.addresses.GRPC, Health: n.addresses.Ops},
	}
	if t := state.Time(); t != 0 {
		r.ClusterTime = timestamppb.New(time.Unix(0, t))
	}
	if n.Err() != nil {
		r.Faults = append(r.Faults, "this node has stopped: see its log")
	}
	if st.ClockDisagrees {
		r.Faults = append(r.Faults, "this node leads, and its clock is not that of the others")
	}
	if all {
		r.Nodes = c.everywhere(ctx, relayStatus, relayed{})
	}
	return r, nil
}

// Members implements grpcapi.Ceremony.
func (c ceremony) Members(context.Context) ([]*kmspb.Member, error) {
	var list []*kmspb.Member
	for _, m := range c.n.cluster.Members() {
		suffrage := "nonvoter"
		if m.Voter {
			suffrage = "voter"
		}
		list = append(list, &kmspb.Member{
			NodeId: m.ID, Suffrage: suffrage, Leader: m.Leader, Alive: m.Alive,
			Addresses: &kmspb.Addresses{Peer: m.PeerAddress, Aws: m.AWSAddress, Grpc: m.GRPCAddress},
		})
	}
	return list, nil
}
