package peers

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Limits of the requests of one other node.
const (
	maxUnanswered   = 64 // batches on one stream
	maxAuditStreams = 2
	auditMessage    = 1 << 20
)

// server implements the Peer service. The connection identifies the caller, and each method
// decides for itself whether that node may call it.
type server struct {
	clusterpb.UnimplementedPeerServer
	ServerConfig
	node         Node
	auditStreams chan struct{}
	attestations attestations
}

// NewServer returns the server of a node's service. The caller runs and stops it.
func NewServer(c ServerConfig, n Node) *grpc.Server {
	s := grpc.NewServer(
		grpc.Creds(peerport.Credentials{}),
		grpc.UnaryInterceptor(ofGroup),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(64),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.MaxHeaderListSize(8<<10),
		grpc.ConnectionTimeout(peerport.HandshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	clusterpb.RegisterPeerServer(s, &server{ServerConfig: c, node: n, auditStreams: make(chan struct{}, maxAuditStreams)})
	return s
}

// ofGroup refuses unary requests about another Raft group. Requests on streams are checked
// where they are read.
func ofGroup(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	r, ok := req.(interface{ GetGroup() uint32 })
	if !ok {
		return nil, status.Errorf(codes.Internal, "%T names no group", req)
	}
	if err := checkGroup(r.GetGroup()); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// checkGroup refuses a request about a Raft group other than this node's.
func checkGroup(group uint32) error {
	if err := wire.CheckGroup(group); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

// caller returns the node at the other end.
func caller(ctx context.Context) (string, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if node, ok := peerport.NodeOf(p.AuthInfo); ok {
			return node, nil
		}
	}
	return "", status.Error(codes.Unauthenticated, "no node identity")
}

// member returns the node at the other end if it is a member of the cluster.
func (s *server) member(ctx context.Context) (string, error) {
	node, err := caller(ctx)
	if err != nil {
		return "", err
	}
	if !s.node.IsMember(node) {
		return "", status.Errorf(codes.PermissionDenied, "node %s is %v", node, peerport.ErrNotMember)
	}
	if s.CutOffs.Has(standing.Sender{Node: node}, time.Now()) {
		return "", status.Errorf(codes.PermissionDenied, "node %s is refused for what it sent", node)
	}
	return node, nil
}

// Hello implements the Peer service.
func (s *server) Hello(ctx context.Context, r *clusterpb.HelloRequest) (*clusterpb.HelloResponse, error) {
	node, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if r.Node != node {
		return nil, status.Error(codes.PermissionDenied, "not your node id")
	}
	return s.node.Hello(ctx, r)
}

// Submit implements the Peer service.
func (s *server) Submit(stream grpc.BidiStreamingServer[clusterpb.SubmitRequest, clusterpb.SubmitResponse]) error {
	node, err := s.member(stream.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	out := make(chan *clusterpb.SubmitResponse, maxUnanswered)
	// An answer counts until it has been sent, so that out always has room and answer never
	// blocks the Committer.
	var unanswered atomic.Int64
	var sending sync.WaitGroup
	sending.Add(1)
	go func() {
		defer sending.Done()
		for {
			select {
			case r := <-out:
				if stream.Send(r) != nil {
					cancel()
					return
				}
				unanswered.Add(-1)
			case <-ctx.Done():
				return
			}
		}
	}()
	defer sending.Wait()
	defer cancel()
	answer := func(r *clusterpb.SubmitResponse) {
		if s.Dropped != nil && s.Dropped(node, r) {
			unanswered.Add(-1)
			return
		}
		out <- r
	}
	for {
		var m wireMessage
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		if unanswered.Add(1) > maxUnanswered {
			return status.Error(codes.ResourceExhausted, "too many batches without an answer")
		}
		sub, err := readSubmission(&m, node)
		if err != nil {
			return err
		}
		sub.Answer = answer
		switch err := s.node.CheckSubmission(sub.Vouched()); {
		case errors.Is(err, ErrForged):
			s.node.CutOff(standing.Sender{Node: node}, err.Error())
			return status.Error(codes.PermissionDenied, ErrForged.Error())
		case err != nil:
			sub.Refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER)
			continue
		}
		s.node.Submit(sub)
	}
}

// readSubmission decodes a submission of the given node, and refuses one that it may not
// send.
func readSubmission(m *wireMessage, node string) (*commit.Submission, error) {
	in, err := readSubmit(m)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := checkGroup(in.group); err != nil {
		return nil, err
	}
	if in.register != nil {
		r := &fsmpb.RegisterNode{}
		if err := proto.Unmarshal(in.register, r); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		if r.Node != node {
			return nil, status.Error(codes.PermissionDenied, "not your registration")
		}
		if err := commit.CheckRegistration(r); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return &commit.Submission{Register: r, Registration: in.register, Generation: in.generation, MAC: in.mac, Size: len(in.register)}, nil
	}
	b, err := commit.CheckBatch(in.batch)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if b.Node != node {
		return nil, status.Error(codes.PermissionDenied, "not your batch")
	}
	return &commit.Submission{Batch: b, Generation: in.generation, MAC: in.mac, Size: b.Size()}, nil
}

// Execute implements the Peer service.
func (s *server) Execute(ctx context.Context, r *clusterpb.ExecuteRequest) (*clusterpb.ExecuteResponse, error) {
	node, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Payload) > MaxPayload {
		return nil, status.Error(codes.InvalidArgument, "too long")
	}
	out, err := s.node.Execute(ctx, node, r.Payload)
	if errors.Is(err, commit.ErrNotLeader) || errors.Is(err, fsm.ErrNoLeader) {
		return &clusterpb.ExecuteResponse{NotLeader: true}, nil
	}
	if err != nil {
		return nil, remoteStatus(err)
	}
	return &clusterpb.ExecuteResponse{Payload: out}, nil
}

// Clock implements the Peer service.
func (s *server) Clock(ctx context.Context, in *clusterpb.ClockRequest) (*clusterpb.ClockResponse, error) {
	node, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	r := s.node.Clock(node, in.NoGrowth)
	s.prove(r, node, in.Nonce)
	return r, nil
}

// remoteStatus converts a handler's error for the other node. An unknown outcome must
// remain unknown there.
func remoteStatus(err error) error {
	if errors.Is(err, fsm.ErrOutcomeUnknown) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return status.Error(codes.Unknown, err.Error())
	}
	return status.Error(codes.FailedPrecondition, err.Error())
}

// ReadIndex implements the Peer service.
func (s *server) ReadIndex(ctx context.Context, _ *clusterpb.ReadIndexRequest) (*clusterpb.ReadIndexResponse, error) {
	if _, err := s.member(ctx); err != nil {
		return nil, err
	}
	index, err := s.node.ReadIndex(ctx)
	if err != nil {
		return &clusterpb.ReadIndexResponse{NotLeader: true}, nil
	}
	return &clusterpb.ReadIndexResponse{Index: index}, nil
}

// Probe implements the Peer service.
func (s *server) Probe(ctx context.Context, _ *clusterpb.ProbeRequest) (*clusterpb.ProbeResponse, error) {
	if _, err := s.member(ctx); err != nil {
		return nil, err
	}
	if err := s.node.Probe(ctx); err != nil {
		return nil, status.Error(codes.Unavailable, "the disk does not answer")
	}
	return &clusterpb.ProbeResponse{}, nil
}
