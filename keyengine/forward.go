package keyengine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/forward"
	"github.com/conclavekms/conclave/keyengine/internal/forwardpb"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// releaseDeadline is how old a decision may be when its answer is given, where the
// answer rests on authority that may have been withdrawn since.
const releaseDeadline = 2 * time.Second

// ErrForwarded is returned for a forwarded request that cannot be read.
var ErrForwarded = errors.New("unreadable forwarded request")

// onLeader has the leader execute a request, where nothing can overtake it.
func (e *Engine) onLeader(ctx context.Context, c *iam.Caller, op *request.Operation, in any) (any, error) {
	e.metrics.forward(op)
	if e.replica.IsLeader() {
		return e.exclusive(ctx, c, op, in)
	}
	o, err := e.vault.Current()
	if err != nil {
		return nil, err
	}
	payload, err := encodeForwarded(o, e.cfg.NodeID, c, op, in)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	answer, err := e.replica.ExecuteOnLeader(ctx, payload)
	if err != nil {
		return nil, record.Unavailable(err)
	}
	out, err := decodeAnswer(o, e.cfg.NodeID, c.RequestID, op, answer)
	if err == nil && op.ReadOnly {
		c.Bound(e.withheld, op.Name, func() bool {
			now := time.Now()
			return now.Sub(start) > releaseDeadline || now.Round(0).Sub(start.Round(0)) > releaseDeadline
		})
		if err = c.Overdue(); err != nil {
			op.Output().WipeAll(out) // this node's own copy
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// exclusive executes a request on the leader. Nothing is committed between its
// evaluation and its record; only time can still be against it.
func (e *Engine) exclusive(ctx context.Context, c *iam.Caller, op *request.Operation, in any) (any, error) {
	ctx, room := request.WithResults(ctx)
	defer room.Wipe()
	if op.Slow {
		// What takes long is done before the cluster has to wait for it.
		request.Evaluate(ctx, e.services, e.replica.State(), c, op, in).Wipe()
	}
	for range record.MaxTries {
		var ev *request.Attempt
		d, err := e.replica.ProposeExclusive(ctx, func(s *fsm.State) (*fsmpb.Record, error) {
			if ev != nil {
				ev.Wipe()
			}
			ev = request.Evaluate(request.WithNewestState(ctx), e.services, s, c, op, in)
			return ev.Decided()
		})
		switch {
		case ev == nil:
			return nil, record.Unavailable(err)
		case errors.Is(ev.Err, request.ErrOutside):
			// Asked while nobody waits: a slow proxy holds up its own callers only.
			request.Evaluate(ctx, e.services, e.replica.State(), c, op, in).Wipe()
			continue
		case ev.Record == nil:
			return nil, ev.Err
		}
		if out, err := e.finish(ctx, ev, d, e.events.Settle(ctx, d, err)); err != record.ErrConflict {
			return out, err
		}
	}
	return nil, kmsapi.Errorf(kmsapi.ErrUnavailable, "The request conflicts with others. Try again.")
}

// ServeForwarded executes a request that the node from sends this one as the
// leader. Payload and answer are encrypted with the keyring: whoever has a sealed
// node's identity can neither read nor make one, nor send on one that another node
// made. The answer holds every outcome; an error says that there was no request to
// be understood, or fsm.ErrNoLeader that this node is sealed and so did nothing.
func (e *Engine) ServeForwarded(ctx context.Context, from string, payload []byte) ([]byte, error) {
	o, err := e.vault.Current()
	if err != nil {
		return nil, fsm.ErrNoLeader
	}
	c, op, in, err := decodeForwarded(o, from, payload)
	if errors.Is(err, vault.ErrSealed) {
		return nil, fsm.ErrNoLeader
	}
	if err != nil {
		return nil, err
	}
	defer op.Input().WipeAll(in)
	out, err := e.exclusive(ctx, c, op, in)
	var answer []byte
	if err == nil {
		defer op.Output().Wipe(out)
		answer, err = encodeAnswer(o, from, c.RequestID, op, out)
	} else {
		answer, err = encodeRefusal(o, from, c.RequestID, request.Told(e.log, op, c, err))
	}
	if errors.Is(err, vault.ErrSealed) {
		return nil, fsm.ErrOutcomeUnknown // sealed meanwhile
	}
	return answer, err
}

// forwardContext binds a message to the node that the request is from, and an
// answer to its request as well.
func forwardContext(kind, from string, id iam.RequestID) []byte {
	return slices.Concat([]byte(kind+"\x00"), id[:], []byte(from))
}

// sealMessage encrypts a message for other unsealed nodes, and leaves no copy of it.
func sealMessage(o *vault.Opened, context []byte, m proto.Message) ([]byte, error) {
	plain := make([]byte, 0, proto.Size(m))
	defer func() { clear(plain[:cap(plain)]) }()
	out, err := proto.MarshalOptions{}.MarshalAppend(plain, m)
	if err != nil {
		return nil, err
	}
	return o.SealTransit(context, out)
}

// openMessage decrypts and reads a message. What it does not know of it is the caller's to
// refuse.
func openMessage(o *vault.Opened, context, message []byte, m proto.Message) error {
	plain, err := o.OpenTransit(context, message)
	if err != nil {
		return err
	}
	defer clear(plain)
	if proto.Unmarshal(plain, m) != nil { // whose error may quote it
		return errors.New("not its message")
	}
	return forward.AllKnown(m.ProtoReflect())
}

func encodeForwarded(o *vault.Opened, from string, c *iam.Caller, op *request.Operation, in any) ([]byte, error) {
	if err := op.Input().Validate(in); err != nil {
		// Nothing that it depends on but the credential changes, so this is not
		// expected; and text that is no Unicode would not arrive as it is.
		return nil, kmsapi.Errorf(kmsapi.ErrUnavailable, "The request conflicts with others. Try again.")
	}
	input, err := forward.Pack(op.Input(), in)
	if err != nil {
		return nil, fmt.Errorf("forwarding %s: %w", op.Name, err)
	}
	id := &c.Identity
	return sealMessage(o, forwardContext("request", from, iam.RequestID{}), &forwardpb.Request{
		Operation: op.Name, RequestId: c.RequestID[:],
		Principal: id.Principal().ARN, Credential: id.Credential(), Proof: id.Proof(), Session: id.Session(),
		Region: c.Region, SourceIp: c.SourceIP, UserAgent: c.UserAgent, Transport: c.Transport,
		TlsVersion: c.TLS.Version, TlsCipher: c.TLS.Cipher, SourceArn: c.SourceArn,
		Input: input,
	})
}

func decodeForwarded(o *vault.Opened, from string, payload []byte) (*iam.Caller, *request.Operation, any, error) {
	f := new(forwardpb.Request)
	if err := openMessage(o, forwardContext("request", from, iam.RequestID{}), payload, f); err != nil {
		forward.Wipe(f.Input)
		if errors.Is(err, kmsapi.ErrUnavailable) {
			return nil, nil, nil, err
		}
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrForwarded, err)
	}
	return readForwarded(f)
}

// readForwarded makes a request of a message, or wipes it.
func readForwarded(f *forwardpb.Request) (_ *iam.Caller, _ *request.Operation, in any, err error) {
	defer func() {
		if err != nil {
			forward.Wipe(f.Input)
		}
	}()
	op := ops.Table[f.Operation]
	switch {
	case op == nil:
		return nil, nil, nil, fmt.Errorf("%w: operation %.64q", ErrForwarded, f.Operation)
	case len(f.RequestId) != len(iam.RequestID{}) || len(f.Proof) != len(iam.Identity{}.Proof()):
		return nil, nil, nil, fmt.Errorf("%w: request id or proof", ErrForwarded)
	}
	p, err := policy.ParseCaller(f.Principal)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrForwarded, err)
	}
	in = op.NewInput()
	if err := forward.Unpack(op.Input(), in, f.Input); err != nil {
		return nil, nil, nil, fmt.Errorf("%w: input: %w", ErrForwarded, err)
	}
	return &iam.Caller{
		RequestID: iam.RequestID(f.RequestId),
		Identity:  iam.ForwardedIdentity(p, f.Credential, [32]byte(f.Proof), f.Session),
		Region:    f.Region, SourceIP: f.SourceIp, UserAgent: f.UserAgent, Transport: f.Transport,
		TLS: iam.TLS{Version: f.TlsVersion, Cipher: f.TlsCipher}, SourceArn: f.SourceArn,
	}, op, in, nil
}

func encodeAnswer(o *vault.Opened, from string, id iam.RequestID, op *request.Operation, out any) ([]byte, error) {
	output, err := forward.Pack(op.Output(), out)
	if err != nil {
		return nil, fmt.Errorf("encoding an answer: %w", err)
	}
	return sealMessage(o, forwardContext("answer", from, id), &forwardpb.Answer{Output: output})
}

func encodeRefusal(o *vault.Opened, from string, id iam.RequestID, e *kmsapi.Error) ([]byte, error) {
	return sealMessage(o, forwardContext("answer", from, id), &forwardpb.Answer{Code: string(e.Code), Message: e.Message})
}

func decodeAnswer(o *vault.Opened, from string, id iam.RequestID, op *request.Operation, answer []byte) (any, error) {
	a := new(forwardpb.Answer)
	if err := openMessage(o, forwardContext("answer", from, id), answer, a); err != nil {
		forward.Wipe(a.Output)
		if errors.Is(err, kmsapi.ErrUnavailable) {
			return nil, err
		}
		return nil, fmt.Errorf("the leader's answer to %s cannot be read: %w", op.Name, err)
	}
	if a.Code != "" {
		return nil, &kmsapi.Error{Code: kmsapi.Code(a.Code), Message: a.Message}
	}
	out := op.NewOutput()
	if err := forward.Unpack(op.Output(), out, a.Output); err != nil {
		forward.Wipe(a.Output) // which out shares
		return nil, fmt.Errorf("the leader's answer to %s cannot be read: %w", op.Name, err)
	}
	return out, nil
}
