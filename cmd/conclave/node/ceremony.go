package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/keyengine/backup"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/peerunseal"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/grpcapi"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// operations is what operators can make this node do. It acts only on calls of
// operators themselves, never on those that another node passes on.
type operations struct{ n *Node }

var _ grpcapi.Ceremony = operations{}

// status returns the status of this node after an operator's call.
func (c operations) status(op ceremony.Operator, err error) *kmspb.NodeStatus {
	return &kmspb.NodeStatus{
		NodeId: c.n.cfg.NodeID, Error: grpcapi.Detail(err, op.RequestID), Seal: grpcapi.SealState(c.n.engine.SealStatus()),
		Leader: c.n.cluster.IsLeader(), Version: c.n.cfg.Release, AppliedIndex: c.n.cluster.State().Index(), Crls: c.n.crls(),
		RequestId: transport.FormatRequestID(op.RequestID),
	}
}

// Challenge implements grpcapi.Ceremony.
func (c operations) Challenge(ctx context.Context) (*ceremony.Challenge, error) {
	return c.n.engine.Challenge(ctx)
}

// SubmitShare implements grpcapi.Ceremony.
func (c operations) SubmitShare(ctx context.Context, op ceremony.Operator, nonce, sealed []byte) *kmspb.NodeStatus {
	_, err := c.n.engine.SubmitSealedShare(ctx, op, nonce, sealed)
	return c.status(op, err)
}

// ResetShares implements grpcapi.Ceremony.
func (c operations) ResetShares(ctx context.Context, op ceremony.Operator, force []byte) *kmspb.NodeStatus {
	return c.status(op, c.n.engine.ResetShares(ctx, op, force))
}

// Seal implements grpcapi.Ceremony.
func (c operations) Seal(ctx context.Context, op ceremony.Operator) *kmspb.NodeStatus {
	return c.status(op, c.n.engine.Seal(ctx, op))
}

// Init implements grpcapi.Ceremony.
func (c operations) Init(ctx context.Context, op ceremony.Operator, p ceremony.InitParams) (*ceremony.InitResult, error) {
	return c.n.engine.Init(ctx, op, p)
}

// ConfirmTime implements grpcapi.Ceremony.
func (c operations) ConfirmTime(ctx context.Context, op ceremony.Operator) error {
	return c.n.engine.ConfirmTime(ctx, op)
}

// InstallCRL implements grpcapi.Ceremony.
func (c operations) InstallCRL(ctx context.Context, op ceremony.Operator, der []byte) *kmspb.NodeStatus {
	return c.status(op, c.n.installCRL(ctx, op, der))
}

// BeginBreakGlass implements grpcapi.Ceremony.
func (c operations) BeginBreakGlass(ctx context.Context, op ceremony.Operator, p ceremony.BreakGlassParams) (*ceremony.BreakGlass, error) {
	return c.n.engine.BeginBreakGlass(ctx, op, p)
}

// BreakGlass implements grpcapi.Ceremony.
func (c operations) BreakGlass() (*ceremony.BreakGlass, error) { return c.n.engine.BreakGlass() }

// SubmitBreakGlassShare implements grpcapi.Ceremony.
func (c operations) SubmitBreakGlassShare(ctx context.Context, op ceremony.Operator, nonce, sealed, answerKey []byte) (*ceremony.BreakGlass, *ceremony.BreakGlassKey, error) {
	return c.n.engine.SubmitBreakGlassShare(ctx, op, nonce, sealed, answerKey)
}

// CancelBreakGlass implements grpcapi.Ceremony.
func (c operations) CancelBreakGlass(ctx context.Context, op ceremony.Operator, nonce []byte) error {
	return c.n.engine.CancelBreakGlass(ctx, op, nonce)
}

// NameCustodians implements grpcapi.Ceremony.
func (c operations) NameCustodians(ctx context.Context, op ceremony.Operator, custodians []ceremony.NamedCustodian) (bool, error) {
	return c.n.engine.NameCustodians(ctx, op, custodians)
}

// KeyChanges implements grpcapi.Ceremony.
func (c operations) KeyChanges() grpcapi.KeyChanges { return c.n.engine.Ceremonies.KeyChanges }

// SaveSnapshot implements grpcapi.Ceremony.
func (c operations) SaveSnapshot(ctx context.Context, op ceremony.Operator, withAudit bool, to io.Writer) (*kmspb.SavedSnapshot, error) {
	of, _ := c.n.cluster.State().Cluster()
	h, err := c.n.engine.Backups.Save(ctx, c.n.cluster, op.Event(backup.EventName, of), withAudit, to)
	if err != nil {
		return nil, err
	}
	return &kmspb.SavedSnapshot{
		Id: hex.EncodeToString(h.Id), Index: h.Index, ClusterTime: timestamppb.New(time.Unix(0, h.Time)), AuditSize: h.AuditSize,
	}, nil
}

// CheckSnapshot implements grpcapi.Ceremony.
func (c operations) CheckSnapshot(ctx context.Context, op ceremony.Operator, from io.Reader) (*kmspb.CheckSnapshotResponse, error) {
	of, _ := c.n.cluster.State().Cluster()
	b, err := c.n.engine.Backups.Check(ctx, of.GetId(), op.Event(backup.CheckEventName, of), from)
	if err != nil {
		return nil, err
	}
	now := c.n.cluster.State()
	of, _ = now.Cluster()
	frontier, _ := now.Audit()
	return &kmspb.CheckSnapshotResponse{
		Id: hex.EncodeToString(b.Id), Index: b.Index, ClusterTime: timestamppb.New(time.Unix(0, b.Time)), AuditSize: b.AuditSize, AuditIncluded: b.Audit,
		Keys: uint32(b.Keys), KeyVersions: uint32(b.Versions), CurrentShares: bytes.Equal(b.Cluster.GetShares().GetId(), of.GetShares().GetId()),
		IndexNow: now.Index(), AuditSizeNow: frontier.Size(),
	}, nil
}

// Status implements grpcapi.Ceremony.
func (c operations) Status(context.Context) (*kmspb.StatusResponse, error) {
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
			Checkpointed: n.engine.Checkpointed(), VerifierKey: seal.VerifierKey, MlDsaVerifierKey: n.engine.MLDSAVerifierKey(),
		},
		Addresses: &kmspb.Addresses{Peer: n.addresses.Peer, Aws: n.addresses.AWS, Grpc: n.addresses.GRPC, Health: n.addresses.Ops},
		Crls:      n.crls(),
	}
	if t := state.Time(); t != 0 {
		r.ClusterTime = timestamppb.New(time.Unix(0, t))
	}
	if n.Err() != nil {
		r.Faults = append(r.Faults, "this node has stopped; see its log")
	}
	if st.ClockDisagrees {
		r.Faults = append(r.Faults, "clock skew: this node leads, and a majority of the other nodes' clocks disagree with its own")
	}
	if err := n.identity.Revoked(); err != nil {
		r.Faults = append(r.Faults, "this node's own "+err.Error())
	}
	r.Faults = append(r.Faults, diskFaults(st)...)
	if n.snapshots != nil && n.snapshots.Fault() != nil {
		r.Faults = append(r.Faults, "the last scheduled backup failed: "+n.snapshots.Fault().Error())
	}
	if err := n.engine.Archive.Fault(); err != nil {
		r.Faults = append(r.Faults, "the audit log could not be archived: "+err.Error())
	}
	return r, nil
}

// diskFaults returns what an operator should know about the node's disk.
func diskFaults(st cluster.Status) (faults []string) {
	follows := map[diskspace.Level]string{
		diskspace.Low:    "new keys will be refused when there is still less",
		diskspace.Scarce: "new keys, aliases, grants and tags are refused",
		diskspace.Yield:  "new keys, aliases, grants and tags are refused, and another node should lead",
		diskspace.Full:   "this node stores and answers nothing until there is more",
	}[st.Space]
	if follows != "" {
		faults = append(faults, fmt.Sprintf("free disk space is %v, with %d of %d MiB free and %d of %d inodes: %s",
			st.Space, st.Room.Free>>20, st.Room.Total>>20, st.Room.FreeInodes, st.Room.TotalInodes, follows))
	}
	if st.Behind > 0 && st.Space < diskspace.Full {
		faults = append(faults, fmt.Sprintf("the disk does not answer: a write has taken %v so far", st.Behind.Round(time.Millisecond)))
	}
	return faults
}

// UpgradeStatus implements grpcapi.Ceremony.
func (c operations) UpgradeStatus(ctx context.Context) (*kmspb.UpgradeStatusResponse, error) {
	p := c.n.cluster.UpgradePlan(ctx)
	r := &kmspb.UpgradeStatusResponse{Level: p.Level, To: p.To}
	for _, m := range p.Members {
		r.Members = append(r.Members, &kmspb.MemberRelease{
			NodeId: m.Node, Release: m.Release, SchemaMin: m.Known.Oldest, SchemaMax: m.Known.Newest, Level: m.Level, Obstacle: p.Obstacle(m),
		})
	}
	return r, nil
}

// FinalizeUpgrade implements grpcapi.Ceremony.
func (c operations) FinalizeUpgrade(ctx context.Context, op ceremony.Operator) (*kmspb.FinalizeUpgradeResponse, error) {
	level, raised, err := c.n.engine.FinalizeUpgrade(ctx, op, func(ctx context.Context) (uint32, []string) {
		p := c.n.cluster.UpgradePlan(ctx)
		return p.To, p.Obstacles()
	})
	if err != nil {
		return nil, err
	}
	return &kmspb.FinalizeUpgradeResponse{Level: level, Raised: raised}, nil
}

// PeerUnseal implements grpcapi.Ceremony.
func (c operations) PeerUnseal() *kmspb.PeerUnsealState {
	return peerUnsealState(c.n.engine.PeerUnseal.Setting())
}

// SetPeerUnseal implements grpcapi.Ceremony.
func (c operations) SetPeerUnseal(ctx context.Context, op ceremony.Operator, agreements int) (*kmspb.PeerUnsealState, bool, error) {
	st, changed, err := c.n.engine.PeerUnseal.Set(ctx, op, agreements)
	return peerUnsealState(st), changed, err
}

func peerUnsealState(st peerunseal.Setting) *kmspb.PeerUnsealState {
	return &kmspb.PeerUnsealState{Agreements: uint32(st.Agreements), Nodes: st.Nodes}
}

// ListSeals implements grpcapi.Ceremony.
func (c operations) ListSeals() (list []*kmspb.SealSlot) {
	for _, s := range c.n.engine.Seals.List() {
		list = append(list, &kmspb.SealSlot{Name: s.Name, Created: timestamppb.New(s.Created), Configured: s.Configured})
	}
	return list
}

// RemoveSeal implements grpcapi.Ceremony.
func (c operations) RemoveSeal(ctx context.Context, op ceremony.Operator, name string) error {
	return c.n.engine.Seals.Remove(ctx, op, name)
}

// Members implements grpcapi.Ceremony.
func (c operations) Members(ctx context.Context) (*kmspb.MembersResponse, error) {
	health := c.n.cluster.Changes().Health(ctx)
	voters, ready := health.Voters()
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
		if s, ok := health.Of(m.ID); ok {
			last := list[len(list)-1]
			last.Unready, last.Lag = s.Unready(health.Index), s.Lag
		}
	}
	return &kmspb.MembersResponse{Members: list, Voters: uint32(voters), ReadyVoters: uint32(ready), FailureTolerance: int32(health.Tolerance())}, nil
}
