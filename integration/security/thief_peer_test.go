package security

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

// What the thief answers to honest nodes' requests: whatever may do harm, if they
// believe it. None may bring a secret.

// Hello implements the Peer service.
func (th *thief) Hello(_ context.Context, r *clusterpb.HelloRequest) (*clusterpb.HelloResponse, error) {
	th.note("Hello")
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.hello != nil {
		return th.hello, nil
	}
	return &clusterpb.HelloResponse{Node: th.id, Formed: true, Bootstrap: r.Bootstrap}, nil
}

// Clock implements the Peer service: it is the fittest to lead, by its own word, its
// disk is quick, its clock a year ahead, and it knows of a later term in which it leads.
func (th *thief) Clock(_ context.Context, r *clusterpb.ClockRequest) (*clusterpb.ClockResponse, error) {
	kind := "Clock"
	if len(r.Nonce) > 0 {
		kind = "challenge"
	}
	th.note(kind)
	th.mu.Lock()
	defer th.mu.Unlock()
	return &clusterpb.ClockResponse{
		Node: th.id, Wall: time.Now().AddDate(1, 0, 0).UnixNano(), CanLead: true, LastIndex: 1 << 40, Leads: true, Term: th.term + 1,
		Generation: 1, Proof: make([]byte, 64), StateIndex: 1 << 40, StateHash: make([]byte, 32), Disk: &clusterpb.Disk{Write: 1},
	}, nil
}

// Submit implements the Peer service.
func (th *thief) Submit(stream grpc.BidiStreamingServer[clusterpb.SubmitRequest, clusterpb.SubmitResponse]) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		th.note("Submit")
		// All is well, says the thief.
		if err := stream.Send(&clusterpb.SubmitResponse{
			Seq: r.GetBatch().GetSeq(), Status: clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED, Index: 1, Verdicts: []byte{1},
		}); err != nil {
			return err
		}
	}
}

// Execute implements the Peer service.
func (th *thief) Execute(context.Context, *clusterpb.ExecuteRequest) (*clusterpb.ExecuteResponse, error) {
	th.note("Execute")
	return &clusterpb.ExecuteResponse{Payload: []byte("{}")}, nil
}

// ReadIndex implements the Peer service: nothing new was committed.
func (th *thief) ReadIndex(context.Context, *clusterpb.ReadIndexRequest) (*clusterpb.ReadIndexResponse, error) {
	th.note("ReadIndex")
	return &clusterpb.ReadIndexResponse{Index: 1}, nil
}
