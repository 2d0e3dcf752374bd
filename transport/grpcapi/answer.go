package grpcapi

import (
	"context"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// requestIDHeader is the header of every answer with the request's id.
const requestIDHeader = "x-conclave-request-id"

// auditIndexTrailer is the trailer with the index of the call's record in the audit log. An
// answer without a record, or whose record's index is not known, has none.
const auditIndexTrailer = "x-conclave-audit-index"

// auditIndex returns the trailer with the index of the call's record; nil for none.
func (c *call) auditIndex() metadata.MD {
	if c.caller == nil || c.caller.Record == nil {
		return nil
	}
	return metadata.Pairs(auditIndexTrailer, strconv.FormatUint(*c.caller.Record, 10))
}

// maxStatusMessage bounds the text of a status. It is in the trailers twice,
// and clients in other languages accept 8 KiB of trailers.
const maxStatusMessage = 1536

// register adds a service whose methods all run within answer. A generated
// handler decodes the request before it runs interceptors. Here answer runs
// first, so that all errors are answered in the same way.
func (s *Server) register(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		d.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: s.answer(desc.ServiceName+"/"+m.MethodName, m.Handler)}
	}
	s.grpc.RegisterService(&d, impl)
}

// answer wraps the handler of one method. name is for the log.
func (s *Server) answer(name string, handle grpc.MethodHandler) grpc.MethodHandler {
	return func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (out any, err error) {
		c := callOf(ctx)
		c.Method = name
		defer func() { c.Trace.End(name) }()
		defer func() {
			if p := recover(); p != nil {
				out, err = nil, s.api.Panicked(c.Request, p)
			}
			if err != nil {
				out, err = nil, s.refusal(c, err)
			}
			_ = grpc.SetTrailer(ctx, c.auditIndex()) // it fails only for a call that has ended
		}()
		if err := grpc.SetHeader(ctx, metadata.Pairs(requestIDHeader, transport.FormatRequestID(c.ID))); err != nil {
			c.status = err
			return nil, err
		}
		return handle(srv, ctx, c.decoder(dec), nil)
	}
}

var errStopping = &kmsapi.Error{Code: kmsapi.ErrUnavailable.Code, Message: "This node is stopping. Send the request to another one."}

// answerStream is answer for streams.
func (s *Server) answerStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	c := callOf(ss.Context())
	c.Method = info.FullMethod
	defer func() { c.Trace.End(info.FullMethod) }()
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	st := &stream{ServerStream: ss, ctx: ctx}
	defer func() {
		if p := recover(); p != nil {
			err = s.api.Panicked(c.Request, p)
		}
		switch {
		case err == nil:
			return
		case s.life.Err() != nil:
			err = errStopping
		case st.gone:
			err = context.Canceled
		case strings.HasPrefix(info.FullMethod, "/grpc.reflection."):
			c.status = err
		case ctx.Err() != nil:
			err = ctx.Err() // sending failed only because the caller has gone
		}
		err = s.refusal(c, err)
	}()
	defer func() { ss.SetTrailer(c.auditIndex()) }()
	if err := ss.SetHeader(metadata.Pairs(requestIDHeader, transport.FormatRequestID(c.ID))); err != nil {
		c.status = err
		return err
	}
	return handle(srv, st)
}

// stream is a stream that also ends when the server stops.
type stream struct {
	grpc.ServerStream
	ctx  context.Context
	gone bool // the caller no longer receives
}

// SendMsg notes if the caller has gone, which the context may report only
// later.
func (s *stream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	s.gone = err != nil
	return err
}

// RecvMsg notes that the call's message has arrived.
func (s *stream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return callOf(s.ctx).Arrived()
}

func (s *stream) Context() context.Context { return s.ctx }

// unknownMethod answers calls of unknown methods.
func unknownMethod(any, grpc.ServerStream) error {
	return &kmsapi.Error{Code: transport.ErrUnknownOperation.Code, Message: "There is no such method."}
}

// refusal returns the status for an error.
func (s *Server) refusal(c *call, err error) error {
	if c.status != nil && !c.Evicted() {
		return c.status
	}
	id := transport.FormatRequestID(c.ID)
	a := s.api.Answer(c.Request, err)
	a.Message = shortened(a.Message)
	p := status.New(a.GRPC, a.Message)
	if d, err := p.WithDetails(&kmspb.ErrorDetail{Type: a.Type, Message: a.Message, RequestId: id, EncodedMessage: a.Encoded}); err == nil {
		p = d
	}
	return p.Err()
}

// shortened returns text, cut to the length that a status may have.
func shortened(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxStatusMessage {
		return text
	}
	n := maxStatusMessage
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + " …"
}

// received is what handlers pass to the codec, so that they learn of bytes that
// are not a valid message. Otherwise the library would answer those itself, as an
// internal error.
type received struct {
	msg proto.Message
	err error
}

var errNotAMessage = &kmsapi.Error{Code: transport.ErrSerialization.Code, Message: "The request is not a message of this method, or not valid UTF-8."}

// decoder makes dec report messages that cannot be decoded as errors of the
// caller.
func (c *call) decoder(dec func(any) error) func(any) error {
	return func(m any) error {
		in := received{msg: m.(proto.Message)}
		if err := dec(&in); err != nil {
			c.status = err // too long, cut off
			return err
		}
		if in.err != nil {
			return errNotAMessage
		}
		return c.Arrived()
	}
}
