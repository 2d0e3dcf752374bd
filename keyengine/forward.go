package keyengine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/policy"
)

const (
	// forwardVersion is the layout of what nodes send the leader.
	forwardVersion = 1
	// maxForwarded bounds it, and the answers: the largest legal input is a policy
	// of 128 KiB, which JSON can make six times as long.
	maxForwarded = 2 << 20
	// releaseDeadline is how old a decision may be when its answer is given, where
	// the answer rests on authority that may have been withdrawn since.
	releaseDeadline = 2 * time.Second
)

// ErrForwarded is returned for a forwarded request that cannot be read.
var ErrForwarded = errors.New("unreadable forwarded request")

// forwarded is a request that the leader executes. The identity is carried as
// the credential and its proof, and admitted again there.
type forwarded struct {
	Version    int
	Operation  string
	RequestID  []byte
	Principal  string
	Credential string
	Proof      []byte
	Session    string
	Region     string
	SourceIP   string
	UserAgent  string
	Transport  string
	TLS        TLS
	Input      json.RawMessage
}

// forwardedAnswer is an output, or the outcome that it had instead.
type forwardedAnswer struct {
	Version int
	Output  json.RawMessage `json:",omitempty"`
	Code    Code            `json:",omitempty"`
	Message string          `json:",omitempty"`
}

// onLeader has the leader execute a request, where nothing can overtake it.
func (e *Engine) onLeader(ctx context.Context, c *Caller, op *Operation, in any) (any, error) {
	e.metrics.forward(op)
	if e.replica.IsLeader() {
		return e.exclusive(ctx, c, op, in)
	}
	payload, err := encodeForwarded(c, op, in)
	defer clear(payload)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	answer, err := e.replica.ExecuteOnLeader(ctx, payload)
	defer clear(answer)
	if err != nil {
		return nil, e.unavailable(err)
	}
	out, err := decodeAnswer(op, answer)
	if err == nil && op.ReadOnly && time.Since(start) > releaseDeadline {
		e.metrics.late(op)
		return nil, errHeldUp
	}
	return out, err
}

// exclusive executes a request on the leader. Nothing is committed between its
// evaluation and its record; only time can still be against it.
func (e *Engine) exclusive(ctx context.Context, c *Caller, op *Operation, in any) (any, error) {
	ctx, room := withOnce(ctx)
	defer room.wipe()
	if op.slow {
		// What takes long is done before the cluster has to wait for it.
		e.evaluate(ctx, e.replica.State(), c, op, in).wipe()
	}
	for range maxTries {
		var ev *evaluation
		d, err := e.replica.ProposeExclusive(ctx, func(s *fsm.State) (*fsmpb.Record, error) {
			if ev != nil {
				ev.wipe()
			}
			ev = e.evaluate(withNewestState(ctx), s, c, op, in)
			if ev.record == nil {
				return nil, ev.err
			}
			return ev.record, nil
		})
		switch {
		case ev == nil:
			return nil, e.unavailable(err)
		case errors.Is(ev.err, errOutside):
			// Asked while nobody waits: a slow proxy holds up its own callers only.
			e.evaluate(ctx, e.replica.State(), c, op, in).wipe()
			continue
		case ev.record == nil:
			return nil, ev.err
		}
		if out, err := e.settle(ctx, ev, d, err); err != errConflict {
			return out, err
		}
	}
	return nil, fault(ErrUnavailable, "The request conflicts with others. Try again.")
}

// ServeForwarded executes a request that another node sends this one as the
// leader. The answer holds every outcome; an error says that there was no
// request to be understood. Both payload and answer may hold secrets: the caller
// does not keep them.
func (e *Engine) ServeForwarded(ctx context.Context, payload []byte) ([]byte, error) {
	c, op, in, err := decodeForwarded(payload)
	if err != nil {
		return nil, err
	}
	defer wipeBlobs(in)
	out, err := e.exclusive(ctx, c, op, in)
	if err == nil {
		defer wipeBlobs(out)
		return encodeAnswer(out, nil)
	}
	if e.vault.sealed() {
		err = fault(ErrUnavailable, "The cluster's leader is sealed. Try again.")
	}
	return encodeAnswer(nil, e.told(op, c, err))
}

func encodeForwarded(c *Caller, op *Operation, in any) ([]byte, error) {
	if err := op.plan.validate(in); err != nil {
		// Nothing that it depends on but the credential changes, so this is not
		// expected; and text that is no Unicode would not arrive as it is.
		return nil, fault(ErrUnavailable, "The request conflicts with others. Try again.")
	}
	input, err := json.Marshal(in)
	defer clear(input)
	if err != nil {
		return nil, fmt.Errorf("forwarding %s: %w", op.Name, err)
	}
	id := &c.Identity
	return json.Marshal(&forwarded{
		Version: forwardVersion, Operation: op.Name, RequestID: c.RequestID[:],
		Principal: id.principal.ARN, Credential: id.credential, Proof: id.proof[:], Session: id.session,
		Region: c.Region, SourceIP: c.SourceIP, UserAgent: c.UserAgent, Transport: c.Transport, TLS: c.TLS,
		Input: input,
	})
}

func decodeForwarded(payload []byte) (*Caller, *Operation, any, error) {
	if len(payload) > maxForwarded {
		return nil, nil, nil, fmt.Errorf("%w: %d bytes", ErrForwarded, len(payload))
	}
	var f forwarded
	if err := json.Unmarshal(payload, &f); err != nil {
		return nil, nil, nil, fmt.Errorf("%w: not its JSON", ErrForwarded) // err may quote the payload
	}
	defer clear(f.Input)
	op := table[f.Operation]
	switch {
	case f.Version != forwardVersion:
		return nil, nil, nil, fmt.Errorf("%w: version %d", ErrForwarded, f.Version)
	case op == nil:
		return nil, nil, nil, fmt.Errorf("%w: operation %.64q", ErrForwarded, f.Operation)
	case len(f.RequestID) != len(RequestID{}) || len(f.Proof) != len(Identity{}.proof):
		return nil, nil, nil, fmt.Errorf("%w: request id or proof", ErrForwarded)
	}
	p, err := policy.ParsePrincipal(f.Principal)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrForwarded, err)
	}
	in := op.newInput()
	if err := json.Unmarshal(f.Input, in); err != nil {
		return nil, nil, nil, fmt.Errorf("%w: input", ErrForwarded)
	}
	return &Caller{
		RequestID: RequestID(f.RequestID),
		Identity:  Identity{principal: p, credential: f.Credential, proof: [32]byte(f.Proof), session: f.Session},
		Region:    f.Region, SourceIP: f.SourceIP, UserAgent: f.UserAgent, Transport: f.Transport, TLS: f.TLS,
	}, op, in, nil
}

func encodeAnswer(out any, failure *Error) ([]byte, error) {
	a := &forwardedAnswer{Version: forwardVersion}
	if failure != nil {
		a.Code, a.Message = failure.Code, failure.Message
		return json.Marshal(a)
	}
	var err error
	if a.Output, err = json.Marshal(out); err != nil {
		return nil, fmt.Errorf("encoding an answer: %w", err)
	}
	defer clear(a.Output)
	return json.Marshal(a)
}

func decodeAnswer(op *Operation, answer []byte) (any, error) {
	var a forwardedAnswer
	if err := json.Unmarshal(answer, &a); err != nil || a.Version != forwardVersion || len(answer) > maxForwarded {
		return nil, fmt.Errorf("the leader's answer to %s cannot be read", op.Name)
	}
	defer clear(a.Output)
	if a.Code != "" {
		return nil, &Error{Code: a.Code, Message: a.Message}
	}
	out := op.newOutput()
	if err := json.Unmarshal(a.Output, out); err != nil {
		return nil, fmt.Errorf("the leader's answer to %s cannot be read", op.Name)
	}
	return out, nil
}

// wipeBlobs clears the blobs of an input or output.
func wipeBlobs(v any) {
	s := reflect.ValueOf(v).Elem()
	for i := range s.NumField() {
		if b, ok := s.Field(i).Interface().([]byte); ok {
			clear(b)
		}
	}
}
