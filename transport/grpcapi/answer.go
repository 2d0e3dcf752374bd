package grpcapi

import (
	"context"
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

// requestIDHeader names the request in every answer.
const requestIDHeader = "x-conclave-request-id"

// maxStatusMessage bounds a status's text. It travels in trailers twice, and
// clients of other languages take 8 KiB of trailers.
const maxStatusMessage = 1536

// register adds a service whose methods all run behind answer. A generated
// handler decodes before it runs its interceptors; here answer runs first, so
// that whatever goes wrong is answered in the same way.
func (s *Server) register(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		d.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: s.answer(desc.ServiceName+"/"+m.MethodName, m.Handler)}
	}
	s.grpc.RegisterService(&d, impl)
}

// answer wraps the handler of one method, which is named for the log.
func (s *Server) answer(name string, handle grpc.MethodHandler) grpc.MethodHandler {
	return func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (out any, err error) {
		c := callOf(ctx)
		c.Method = name
		defer func() {
			if p := recover(); p != nil {
				out, err = nil, s.api.Panicked(c.Request, p)
			}
			if err != nil {
				out, err = nil, s.refusal(c, err)
			}
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
			err = ctx.Err() // the caller has gone, which is all that sending failed for
		}
		err = s.refusal(c, err)
	}()
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
	gone bool // the caller does not take what is sent
}

// SendMsg notes that the caller has gone, which the context may say only later.
func (s *stream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	s.gone = err != nil
	return err
}

// RecvMsg notes that the call's message is there.
func (s *stream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return callOf(s.ctx).Arrived()
}

func (s *stream) Context() context.Context { return s.ctx }

// unknownMethod answers calls of methods that there are not.
func unknownMethod(any, grpc.ServerStream) error {
	return &kmsapi.Error{Code: transport.ErrUnknownOperation.Code, Message: "There is no such method."}
}

// refusal is the status of an error.
func (s *Server) refusal(c *call, err error) error {
	if c.status != nil && !c.Evicted() {
		return c.status
	}
	id := transport.FormatRequestID(c.ID)
	a := s.api.Answer(c.Request, err)
	a.Message = shortened(a.Message)
	p := status.New(a.GRPC, a.Message)
	if d, err := p.WithDetails(&kmspb.ErrorDetail{Type: a.Type, Message: a.Message, RequestId: id}); err == nil {
		p = d
	}
	return p.Err()
}

// shortened is text fit for a status.
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

// received is what handlers have the codec fill in, so that they learn of bytes
// that are no message: the library would answer such by itself, as its own fault.
type received struct {
	msg proto.Message
	err error
}

var errNotAMessage = &kmsapi.Error{Code: transport.ErrSerialization.Code, Message: "The request is not a message of this method, or not valid UTF-8."}

// decoder makes dec report messages that cannot be read as callers' errors.
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
