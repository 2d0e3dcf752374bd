package grpcapi

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Ceremony is what operators can make this node do; the node implements it. The
// outcome of a call is in the NodeStatus; see Detail. An error is about the call
// as a whole.
type Ceremony interface {
	Status(ctx context.Context) (*kmspb.StatusResponse, error)
	Init(ctx context.Context, op ceremony.Operator, p ceremony.InitParams) (*ceremony.InitResult, error)
	Challenge(ctx context.Context) (*ceremony.Challenge, error)
	// SubmitShare submits a share to this node, encrypted to the challenge with
	// that nonce.
	SubmitShare(ctx context.Context, op ceremony.Operator, nonce, sealed []byte) *kmspb.NodeStatus
	// ResetShares ends the current ceremony. force ends that of another operator
	// too.
	ResetShares(ctx context.Context, op ceremony.Operator, force []byte) *kmspb.NodeStatus
	Seal(ctx context.Context, op ceremony.Operator) *kmspb.NodeStatus
	ConfirmTime(ctx context.Context, op ceremony.Operator) error
	// InstallCRL puts a certificate revocation list, in DER, into force.
	InstallCRL(ctx context.Context, op ceremony.Operator, der []byte) *kmspb.NodeStatus
	BeginBreakGlass(ctx context.Context, op ceremony.Operator, p ceremony.BreakGlassParams) (*ceremony.BreakGlass, error)
	BreakGlass() (*ceremony.BreakGlass, error)
	SubmitBreakGlassShare(ctx context.Context, op ceremony.Operator, nonce, sealed, answerKey []byte) (*ceremony.BreakGlass, *ceremony.BreakGlassKey, error)
	CancelBreakGlass(ctx context.Context, op ceremony.Operator, nonce []byte) error
	NameCustodians(ctx context.Context, op ceremony.Operator, custodians []ceremony.NamedCustodian) (changed bool, err error)
	// KeyChanges returns the ceremonies of this node that replace keys.
	KeyChanges() KeyChanges
	UpgradeStatus(ctx context.Context) (*kmspb.UpgradeStatusResponse, error)
	FinalizeUpgrade(ctx context.Context, op ceremony.Operator) (*kmspb.FinalizeUpgradeResponse, error)
	PeerUnseal() *kmspb.PeerUnsealState
	// SetPeerUnseal changes how nodes are unsealed by their peers, and reports whether there
	// was anything to change.
	SetPeerUnseal(ctx context.Context, op ceremony.Operator, agreements int) (st *kmspb.PeerUnsealState, changed bool, err error)
	ListSeals() []*kmspb.SealSlot
	RemoveSeal(ctx context.Context, op ceremony.Operator, name string) error
	// Joining returns the CA of the nodes' certificates and the join tokens of this node.
	Joining() Joining
	// SaveSnapshot writes a backup. Size and hash of the result are left to the caller.
	SaveSnapshot(ctx context.Context, op ceremony.Operator, withAudit bool, to io.Writer) (*kmspb.SavedSnapshot, error)
	Members(ctx context.Context) (*kmspb.MembersResponse, error)
	// The following are for the leader; see kmspb.Cluster.
	AddNode(ctx context.Context, op ceremony.Operator, node, address string) error
	PromoteNode(ctx context.Context, op ceremony.Operator, node string) error
	RemoveNode(ctx context.Context, op ceremony.Operator, node string) error
	SetNodeAddress(ctx context.Context, op ceremony.Operator, node, address string) error
	TransferLeadership(ctx context.Context, op ceremony.Operator, to string) error
	// CheckSnapshot reads a backup to its end and checks it.
	CheckSnapshot(ctx context.Context, op ceremony.Operator, from io.Reader) (*kmspb.CheckSnapshotResponse, error)
}

// Detail returns an error in the form of a NodeStatus; nil for nil. It reveals
// nothing internal.
func Detail(err error, id iam.RequestID) *kmspb.ErrorDetail {
	if err == nil {
		return nil
	}
	a := transport.Lookup(err)
	return &kmspb.ErrorDetail{Type: a.Type, Message: shortened(a.Message), RequestId: transport.FormatRequestID(id)}
}

// SealState returns the progress of unsealing as a message.
func SealState(st ceremony.SealStatus) *kmspb.SealState {
	m := &kmspb.SealState{
		Initialised:  st.Initialised,
		Sealed:       st.Sealed,
		Threshold:    uint32(st.Threshold),
		Shares:       uint32(st.Shares),
		Progress:     uint32(st.Progress),
		ClusterId:    st.ClusterID,
		Account:      st.Account,
		Region:       st.Region,
		MoreRegions:  st.MoreRegions,
		Partition:    st.Partition,
		MemoryLocked: st.MemoryLocked,
		ShareSet:     shareSetMessage(st.ShareSet),
		AnyRegion:    st.AnyRegion,
		WaitingFor:   st.Waiting,
	}
	m.Custodians = indexes(st.Custodians)
	if c := st.Ceremony; c != nil {
		m.Ceremony = &kmspb.Ceremony{Nonce: c.Nonce[:], Owner: c.Owner, Began: timestamppb.New(c.Began), Expires: timestamppb.New(c.Expires)}
	}
	return m
}

type operatorService struct {
	kmspb.UnimplementedOperatorServer
	server *Server
}

// Status answers strangers too: somebody who cannot distinguish a sealed node
// from a broken one would restart it.
func (o *operatorService) Status(ctx context.Context, _ *kmspb.StatusRequest) (*kmspb.StatusResponse, error) {
	_, err := o.server.operator(ctx)
	known := err == nil
	st, err := o.server.cfg.Ceremony.Status(ctx)
	if err != nil || known {
		return st, err
	}
	seal := st.GetSeal()
	return &kmspb.StatusResponse{
		HasLeader: st.GetHasLeader(),
		Seal: &kmspb.SealState{
			Initialised: seal.GetInitialised(),
			Sealed:      seal.GetSealed(),
			Threshold:   seal.GetThreshold(),
			Shares:      seal.GetShares(),
			Progress:    seal.GetProgress(),
		},
	}, nil
}

func (o *operatorService) Init(ctx context.Context, in *kmspb.InitRequest) (*kmspb.InitResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if in.GetAnswerKey() == nil {
		return nil, errAnswerKey
	}
	custodians, err := custodianKeys(in.GetCustodians(), in.GetShares())
	if err != nil {
		return nil, err
	}
	r, err := o.server.cfg.Ceremony.Init(ctx, op, ceremony.InitParams{
		Custodians:      custodians,
		Shares:          int(in.GetShares()),
		Threshold:       int(in.GetThreshold()),
		Account:         in.GetAccount(),
		Region:          in.GetRegion(),
		Regions:         in.GetRegions(),
		Partition:       in.GetPartition(),
		AnyRegion:       in.GetAnyRegion(),
		RootCertificate: in.GetRootCertificate(),
		AnswerKey:       in.GetAnswerKey(),
	})
	if err != nil {
		return nil, err
	}
	return &kmspb.InitResponse{
		ClusterId:       r.ClusterID,
		AccessKeyId:     r.AccessKeyID,
		SealedSecrets:   r.SealedSecrets,
		RootArn:         r.RootARN,
		VerifierKey:     r.VerifierKey,
		EncryptedShares: encryptedShares(r.EncryptedShares),
		ShareSet:        shareSetMessage(r.ShareSet),
		RequestId:       transport.FormatRequestID(op.RequestID),
	}, nil
}

// custodianKeys returns the custodians of a new share set, with the number of shares that the
// client has asked for besides.
func custodianKeys(given []*kmspb.CustodianKey, shares uint32) (list []ceremony.CustodianKey, err error) {
	if len(given) > 0 && shares != 0 {
		return nil, errCustodianShares
	}
	for _, c := range given {
		list = append(list, ceremony.CustodianKey{Name: c.GetName(), Key: c.GetPublicKey()})
	}
	return list, nil
}

func encryptedShares(shares []ceremony.EncryptedShare) (list []*kmspb.EncryptedShare) {
	for _, s := range shares {
		list = append(list, &kmspb.EncryptedShare{
			Index: uint32(s.Index), Custodian: s.Custodian.Name, Kind: string(s.Kind), KeyFingerprint: s.Custodian.KeyFingerprint, Text: s.Text,
		})
	}
	return list
}

// errCustodianShares: clients that give the custodians leave the number of shares out, so that
// an older node does not hand out shares that are not encrypted to anybody. A client that does
// not know that rule must not learn it from such a node.
var errCustodianShares = &kmsapi.Error{Code: kmsapi.ErrValidation.Code,
	Message: "With custodians, shares must be 0: there is one for each of them."}

func shareSetMessage(s *ceremony.ShareSet) *kmspb.ShareSet {
	if s == nil {
		return nil
	}
	m := &kmspb.ShareSet{
		ClusterId: s.ClusterID[:], Epoch: uint32(s.Epoch), Threshold: uint32(s.Threshold), Count: uint32(s.Count), Commitments: s.Commitments,
	}
	if s.ID != ([16]byte{}) {
		m.Id = s.ID[:]
	}
	for _, c := range s.Custodians {
		m.Custodians = append(m.Custodians, &kmspb.NamedCustodian{Name: c.Name, KeyFingerprint: c.KeyFingerprint})
	}
	return m
}

func (o *operatorService) NameCustodians(ctx context.Context, in *kmspb.NameCustodiansRequest) (*kmspb.NameCustodiansResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	var custodians []ceremony.NamedCustodian
	for _, c := range in.GetCustodians() {
		custodians = append(custodians, ceremony.NamedCustodian{Name: c.GetName(), KeyFingerprint: c.GetKeyFingerprint()})
	}
	changed, err := o.server.cfg.Ceremony.NameCustodians(ctx, op, custodians)
	if err != nil {
		return nil, err
	}
	return &kmspb.NameCustodiansResponse{Changed: changed}, nil
}

// errAnswerKey: without a key to encrypt them to, secrets would be in the clear
// on the wire and in this node's buffers.
var errAnswerKey = &kmsapi.Error{Code: kmsapi.ErrValidation.Code,
	Message: "Init needs the public key that the shares and the root user's secret are to be encrypted to."}

func (o *operatorService) Challenge(ctx context.Context, _ *kmspb.ChallengeRequest) (*kmspb.ChallengeResponse, error) {
	if _, err := o.server.operator(ctx); err != nil {
		return nil, err
	}
	c, err := o.server.cfg.Ceremony.Challenge(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.ChallengeResponse{NodeId: c.NodeID, ClusterId: c.ClusterID[:], Nonce: c.Nonce[:], PublicKey: c.PublicKey}, nil
}

func (o *operatorService) SubmitShare(ctx context.Context, in *kmspb.SubmitShareRequest) (*kmspb.SubmitShareResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.SubmitShareResponse{Node: o.server.cfg.Ceremony.SubmitShare(ctx, op, in.GetNonce(), in.GetSealedShare())}, nil
}

func (o *operatorService) ResetShares(ctx context.Context, in *kmspb.ResetSharesRequest) (*kmspb.ResetSharesResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.ResetSharesResponse{Node: o.server.cfg.Ceremony.ResetShares(ctx, op, in.GetForce())}, nil
}

func (o *operatorService) Seal(ctx context.Context, _ *kmspb.SealRequest) (*kmspb.SealResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.SealResponse{Node: o.server.cfg.Ceremony.Seal(ctx, op)}, nil
}

func (o *operatorService) ConfirmTime(ctx context.Context, _ *kmspb.ConfirmTimeRequest) (*kmspb.ConfirmTimeResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := o.server.cfg.Ceremony.ConfirmTime(ctx, op); err != nil {
		return nil, err
	}
	return &kmspb.ConfirmTimeResponse{}, nil
}

func (o *operatorService) InstallCRL(ctx context.Context, in *kmspb.InstallCRLRequest) (*kmspb.InstallCRLResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.InstallCRLResponse{Node: o.server.cfg.Ceremony.InstallCRL(ctx, op, in.GetCrl())}, nil
}

// SaveSnapshot sends a backup. It lasts as long as the caller takes, like a reading of the
// audit log, with which it shares the number of places.
func (o *operatorService) SaveSnapshot(in *kmspb.SaveSnapshotRequest, ss grpc.ServerStreamingServer[kmspb.SaveSnapshotResponse]) error {
	ctx := ss.Context()
	op, err := o.server.operator(ctx)
	if err != nil {
		return err
	}
	if err := callOf(ctx).Stay(&o.server.gates.audits); err != nil {
		return err
	}
	to := &snapshotSender{to: ss, sum: sha256.New()}
	saved, err := o.server.cfg.Ceremony.SaveSnapshot(ctx, op, !in.GetWithoutAudit(), to)
	if err != nil {
		return err
	}
	saved.Size, saved.Sha256 = to.size, to.sum.Sum(nil)
	return ss.Send(&kmspb.SaveSnapshotResponse{Saved: saved})
}

// snapshotSender sends what is written to it.
type snapshotSender struct {
	to   grpc.ServerStreamingServer[kmspb.SaveSnapshotResponse]
	sum  hash.Hash
	size uint64
}

// Write implements io.Writer.
func (s *snapshotSender) Write(b []byte) (int, error) {
	_, _ = s.sum.Write(b)
	for n := 0; n < len(b); {
		part := b[n:min(n+snapshotMessage, len(b))]
		if err := s.to.Send(&kmspb.SaveSnapshotResponse{Data: part}); err != nil {
			return n, err
		}
		n += len(part)
		s.size += uint64(len(part))
	}
	return len(b), nil
}

// CheckSnapshot receives a backup. It lasts as long as the caller takes, like SaveSnapshot.
func (o *operatorService) CheckSnapshot(ss grpc.ClientStreamingServer[kmspb.CheckSnapshotRequest, kmspb.CheckSnapshotResponse]) error {
	ctx := ss.Context()
	op, err := o.server.operator(ctx)
	if err != nil {
		return err
	}
	if err := callOf(ctx).Stay(&o.server.gates.audits); err != nil {
		return err
	}
	r, err := o.server.cfg.Ceremony.CheckSnapshot(ctx, op, &snapshotReceiver{from: ss})
	if err != nil {
		return err
	}
	return ss.SendAndClose(r)
}

// snapshotReceiver reads what is received.
type snapshotReceiver struct {
	from grpc.ClientStreamingServer[kmspb.CheckSnapshotRequest, kmspb.CheckSnapshotResponse]
	left []byte
}

// Read implements io.Reader.
func (s *snapshotReceiver) Read(b []byte) (int, error) {
	for len(s.left) == 0 {
		r, err := s.from.Recv() // io.EOF at the end
		if err != nil {
			return 0, err
		}
		s.left = r.GetData()
	}
	n := copy(b, s.left)
	s.left = s.left[n:]
	return n, nil
}

// snapshotMessage bounds the bytes of a backup in one message.
const snapshotMessage = 128 << 10

type clusterService struct {
	kmspb.UnimplementedClusterServer
	server *Server
}

func (c *clusterService) Members(ctx context.Context, _ *kmspb.MembersRequest) (*kmspb.MembersResponse, error) {
	if _, err := c.server.operator(ctx); err != nil {
		return nil, err
	}
	return c.server.cfg.Ceremony.Members(ctx)
}

func (c *clusterService) AddNode(ctx context.Context, in *kmspb.AddNodeRequest) (*kmspb.AddNodeResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.server.cfg.Ceremony.AddNode(ctx, op, in.GetNodeId(), in.GetPeerAddress()); err != nil {
		return nil, err
	}
	return &kmspb.AddNodeResponse{}, nil
}

func (c *clusterService) PromoteNode(ctx context.Context, in *kmspb.PromoteNodeRequest) (*kmspb.PromoteNodeResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.server.cfg.Ceremony.PromoteNode(ctx, op, in.GetNodeId()); err != nil {
		return nil, err
	}
	return &kmspb.PromoteNodeResponse{}, nil
}

func (c *clusterService) RemoveNode(ctx context.Context, in *kmspb.RemoveNodeRequest) (*kmspb.RemoveNodeResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.server.cfg.Ceremony.RemoveNode(ctx, op, in.GetNodeId()); err != nil {
		return nil, err
	}
	return &kmspb.RemoveNodeResponse{}, nil
}

func (c *clusterService) SetNodeAddress(ctx context.Context, in *kmspb.SetNodeAddressRequest) (*kmspb.SetNodeAddressResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.server.cfg.Ceremony.SetNodeAddress(ctx, op, in.GetNodeId(), in.GetPeerAddress()); err != nil {
		return nil, err
	}
	return &kmspb.SetNodeAddressResponse{}, nil
}

func (c *clusterService) TransferLeadership(ctx context.Context, in *kmspb.TransferLeadershipRequest) (*kmspb.TransferLeadershipResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.server.cfg.Ceremony.TransferLeadership(ctx, op, in.GetNodeId()); err != nil {
		return nil, err
	}
	return &kmspb.TransferLeadershipResponse{}, nil
}

func (c *clusterService) UpgradeStatus(ctx context.Context, _ *kmspb.UpgradeStatusRequest) (*kmspb.UpgradeStatusResponse, error) {
	if _, err := c.server.operator(ctx); err != nil {
		return nil, err
	}
	return c.server.cfg.Ceremony.UpgradeStatus(ctx)
}

func (c *clusterService) FinalizeUpgrade(ctx context.Context, _ *kmspb.FinalizeUpgradeRequest) (*kmspb.FinalizeUpgradeResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return c.server.cfg.Ceremony.FinalizeUpgrade(ctx, op)
}

func (c *clusterService) GetPeerUnseal(ctx context.Context, _ *kmspb.GetPeerUnsealRequest) (*kmspb.GetPeerUnsealResponse, error) {
	if _, err := c.server.operator(ctx); err != nil {
		return nil, err
	}
	return &kmspb.GetPeerUnsealResponse{State: c.server.cfg.Ceremony.PeerUnseal()}, nil
}

func (c *clusterService) SetPeerUnseal(ctx context.Context, in *kmspb.SetPeerUnsealRequest) (*kmspb.SetPeerUnsealResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	st, changed, err := c.server.cfg.Ceremony.SetPeerUnseal(ctx, op, int(in.GetAgreements()))
	if err != nil {
		return nil, err
	}
	return &kmspb.SetPeerUnsealResponse{State: st, Changed: changed}, nil
}

func (c *clusterService) ListSeals(ctx context.Context, _ *kmspb.ListSealsRequest) (*kmspb.ListSealsResponse, error) {
	if _, err := c.server.operator(ctx); err != nil {
		return nil, err
	}
	return &kmspb.ListSealsResponse{Seals: c.server.cfg.Ceremony.ListSeals()}, nil
}

func (c *clusterService) RemoveSeal(ctx context.Context, in *kmspb.RemoveSealRequest) (*kmspb.RemoveSealResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.server.cfg.Ceremony.RemoveSeal(ctx, op, in.GetName()); err != nil {
		return nil, err
	}
	return &kmspb.RemoveSealResponse{}, nil
}
