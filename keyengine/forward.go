package keyengine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/forward"
	"github.com/conclavekms/conclave/keyengine/internal/forwardpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/policy"
)

// releaseDeadline is the maximum age of a decision when its answer is released, for answers
// that rest on authority which may have been withdrawn since.
const releaseDeadline = 2 * time.Second

// ErrForwarded is returned for a forwarded request that cannot be decoded.
var ErrForwarded = errors.New("unreadable forwarded request")

// forwardsTLSLevel is the feature level from which forwarded requests have the newer details of
// their connections. A leader of the release before, which may still be there until then,
// refuses a request with fields that it does not know.
const forwardsTLSLevel = 2

// answersRecordLevel is the feature level from which answers to forwarded requests say which
// record the request has. A node of the release before refuses an answer with it.
const answersRecordLevel = 2

// onLeader executes a request on the leader, where no other record can overtake it.
func (e *Engine) onLeader(ctx context.Context, c *iam.Caller, op *request.Operation, in any) (any, error) {
	e.metrics.forward(op)
	if e.replica.IsLeader() {
		return e.exclusive(ctx, c, op, in)
	}
	o, err := e.vault.Current()
	if err != nil {
		return nil, err
	}
	sent := c
	if e.replica.State().Level() < forwardsTLSLevel {
		older := *c
		older.TLS.Host, older.TLS.KeyExchange = "", ""
		sent = &older
	}
	payload, err := encodeForwarded(o, e.cfg.NodeID, sent, op, in)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	c.Trace.Next(trace.Leader)
	answer, err := e.replica.ExecuteOnLeader(ctx, payload)
	c.Trace.Stop()
	if err != nil {
		return nil, record.Unavailable(err)
	}
	out, err := decodeAnswer(o, e.cfg.NodeID, c, op, answer)
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

// exclusive executes a request on the leader. Nothing else is committed between its
// evaluation and its record, so the record can only be rejected because of its time.
func (e *Engine) exclusive(ctx context.Context, c *iam.Caller, op *request.Operation, in any) (any, error) {
	ctx, room := request.WithResults(ctx)
	defer room.Wipe()
	if op.Slow {
		// Do slow work now, before the evaluation that holds up the log.
		request.Evaluate(ctx, e.services, e.replica.State(), c, op, in).Wipe()
	}
	for range record.MaxTries {
		var ev *request.Attempt
		d, err := e.replica.ProposeExclusive(ctx, func(s *fsm.State) (*fsmpb.Record, error) {
			if ev != nil {
				ev.Wipe()
			}
			ev = e.evaluate(request.WithNewestState(ctx), s, c, op, in)
			c.Trace.Next(trace.Commit)
			return ev.Decided()
		})
		c.Trace.Stop()
		switch {
		case ev == nil:
			return nil, record.Unavailable(err)
		case errors.Is(ev.Err, request.ErrOutside):
			// External key stores are called while the log is not held up, so a slow proxy
			// delays only its own callers.
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

// ServeForwarded executes, as the leader, a request that the node named from has forwarded.
// Payload and answer are encrypted with the keyring: an attacker with the identity of a
// sealed node can neither read nor forge them, nor replay what another node sent. The
// answer carries every outcome of a request. ServeForwarded returns an error only if the
// request could not be decoded, or fsm.ErrNoLeader if this node is sealed and did nothing.
func (e *Engine) ServeForwarded(ctx context.Context, from string, payload []byte) ([]byte, error) {
	if string(payload) == cosignedQuestion {
		return e.Witnesses.Newest(), nil
	}
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
	var answer *forwardpb.Answer
	if err == nil {
		defer op.Output().Wipe(out)
		answer, err = answerOf(op, out)
	} else {
		told := request.Told(e.log, op, c, err)
		answer, err = &forwardpb.Answer{Code: string(told.Code), Message: told.Message, Encoded: told.Encoded}, nil
	}
	var sealed []byte
	if err == nil {
		if e.replica.State().Level() >= answersRecordLevel {
			answer.Record = c.Record
		}
		sealed, err = sealMessage(o, forwardContext("answer", from, c.RequestID), answer)
	}
	if errors.Is(err, vault.ErrSealed) {
		return nil, fsm.ErrOutcomeUnknown // the node was sealed in the meantime
	}
	return sealed, err
}

// forwardContext binds a message to the node that made the request, and an answer to its
// request as well.
func forwardContext(kind, from string, id iam.RequestID) []byte {
	return slices.Concat([]byte(kind+"\x00"), id[:], []byte(from))
}

// sealMessage encrypts a message for other unsealed nodes and wipes the plaintext.
func sealMessage(o *vault.Opened, context []byte, m proto.Message) ([]byte, error) {
	plain := make([]byte, 0, proto.Size(m))
	defer func() { clear(plain[:cap(plain)]) }()
	out, err := proto.MarshalOptions{}.MarshalAppend(plain, m)
	if err != nil {
		return nil, err
	}
	return o.SealTransit(context, out)
}

// openMessage decrypts and decodes a message, and rejects one that has unknown fields. The
// caller wipes m, also after an error.
func openMessage(o *vault.Opened, context, message []byte, m proto.Message) error {
	plain, err := o.OpenTransit(context, message)
	if err != nil {
		return err
	}
	defer clear(plain)
	if proto.Unmarshal(plain, m) != nil { // the decoder's error may quote the message
		return errors.New("not its message")
	}
	return forward.AllKnown(m.ProtoReflect())
}

func encodeForwarded(o *vault.Opened, from string, c *iam.Caller, op *request.Operation, in any) ([]byte, error) {
	if err := op.Input().Validate(in); err != nil {
		// Not expected: an invalid input is refused by a record that depends on the
		// credential only, so it hardly ever conflicts. Text that is not valid Unicode
		// would not survive the encoding.
		return nil, kmsapi.Errorf(kmsapi.ErrUnavailable, "The request conflicts with others. Try again.")
	}
	input, err := forward.Pack(op.Input(), in)
	if err != nil {
		return nil, fmt.Errorf("forwarding %s: %w", op.Name, err)
	}
	id := &c.Identity
	var temporary []byte
	if t := id.Temporary(); t != nil {
		if temporary, err = proto.Marshal(t); err != nil {
			return nil, fmt.Errorf("forwarding %s: %w", op.Name, err)
		}
	}
	var account uint64
	if of, ok := fsm.ParseAccount(id.Principal().Account); !ok || of != id.Account() {
		account = uint64(id.Account())
	}
	var serial string
	var notAfter int64
	if cert := id.Mapped(); cert != nil {
		serial, notAfter = cert.Serial, cert.Expires()
	}
	return sealMessage(o, forwardContext("request", from, iam.RequestID{}), &forwardpb.Request{
		Operation: forwardedName(op), RequestId: c.RequestID[:],
		Principal: id.Principal().ARN, Credential: id.Credential(), Proof: id.Proof(), Session: id.Session(),
		Region: c.Region, SourceIp: c.SourceIP, UserAgent: c.UserAgent, Transport: c.Transport,
		TlsVersion: c.TLS.Version, TlsCipher: c.TLS.Cipher, TlsHost: c.TLS.Host, TlsKeyExchange: c.TLS.KeyExchange, SourceArn: c.SourceArn,
		Input: input, Temporary: temporary, Account: account,
		CertificateSerial: serial, CertificateNotAfter: notAfter,
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

// forwardedName is the name of an operation in forwarded requests: that of AWS, after the
// service unless that is KMS, whose operations the first releases forwarded by name alone.
func forwardedName(op *request.Operation) string {
	if op.Service == KMS {
		return op.Name
	}
	return string(op.Service) + ":" + op.Name
}

// forwardedOperation returns the operation with a name as in forwardedName, or nil.
func forwardedOperation(name string) *request.Operation {
	service, rest, ok := strings.Cut(name, ":")
	if !ok {
		return OperationNamed(KMS, name)
	}
	if service == string(KMS) {
		return nil // an operation has one name
	}
	return OperationNamed(Service(service), rest)
}

// readForwarded decodes a forwarded request. On failure it wipes the request.
func readForwarded(f *forwardpb.Request) (_ *iam.Caller, _ *request.Operation, in any, err error) {
	defer func() {
		if err != nil {
			forward.Wipe(f.Input)
		}
	}()
	op := forwardedOperation(f.Operation)
	switch {
	case op == nil:
		return nil, nil, nil, fmt.Errorf("%w: operation %.64q", ErrForwarded, f.Operation)
	case len(f.RequestId) != len(iam.RequestID{}) || len(f.Proof) != len(iam.Identity{}.Proof()):
		return nil, nil, nil, fmt.Errorf("%w: request id or proof", ErrForwarded)
	}
	id, err := forwardedIdentity(op, f)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrForwarded, err)
	}
	in = op.NewInput()
	if err := forward.Unpack(op.Input(), in, f.Input); err != nil {
		return nil, nil, nil, fmt.Errorf("%w: input: %w", ErrForwarded, err)
	}
	return &iam.Caller{
		RequestID: iam.RequestID(f.RequestId),
		Identity:  id,
		Region:    f.Region, SourceIP: f.SourceIp, UserAgent: f.UserAgent, Transport: f.Transport,
		TLS: iam.TLS{Version: f.TlsVersion, Cipher: f.TlsCipher, Host: f.TlsHost, KeyExchange: f.TlsKeyExchange}, SourceArn: f.SourceArn,
	}, op, in, nil
}

// forwardedIdentity returns the identity of a forwarded request. One that is not signed has
// none.
func forwardedIdentity(op *request.Operation, f *forwardpb.Request) (iam.Identity, error) {
	if op.Unsigned {
		return iam.Identity{}, nil
	}
	p, err := policy.ParseCaller(f.Principal)
	if err != nil {
		return iam.Identity{}, err
	}
	account, ok := fsm.ParseAccount(p.Account)
	if !ok || f.Account != 0 {
		account = fsm.Account(f.Account)
	}
	var mapped *iam.Certificate
	if f.CertificateNotAfter != 0 {
		mapped = &iam.Certificate{URI: f.Credential, Serial: f.CertificateSerial, NotAfter: time.Unix(0, f.CertificateNotAfter)}
	}
	return iam.ForwardedIdentity(p, account, f.Credential, [32]byte(f.Proof), f.Session, f.Temporary, mapped)
}

// answerOf is the message of an output, with which it shares memory.
func answerOf(op *request.Operation, out any) (*forwardpb.Answer, error) {
	output, err := forward.Pack(op.Output(), out)
	if err != nil {
		return nil, fmt.Errorf("encoding an answer: %w", err)
	}
	return &forwardpb.Answer{Output: output}, nil
}

// decodeAnswer returns the outcome of a request that the leader carried out for c, and sets
// the index of its record.
func decodeAnswer(o *vault.Opened, from string, c *iam.Caller, op *request.Operation, answer []byte) (any, error) {
	a := new(forwardpb.Answer)
	if err := openMessage(o, forwardContext("answer", from, c.RequestID), answer, a); err != nil {
		forward.Wipe(a.Output)
		if errors.Is(err, kmsapi.ErrUnavailable) {
			return nil, err
		}
		return nil, fmt.Errorf("the leader's answer to %s cannot be read: %w", op.Name, err)
	}
	c.Record = a.Record
	if a.Code != "" {
		return nil, &kmsapi.Error{Code: kmsapi.Code(a.Code), Message: a.Message, Encoded: a.Encoded}
	}
	out := op.NewOutput()
	if err := forward.Unpack(op.Output(), out, a.Output); err != nil {
		forward.Wipe(a.Output) // Output shares memory with it
		return nil, fmt.Errorf("the leader's answer to %s cannot be read: %w", op.Name, err)
	}
	return out, nil
}
