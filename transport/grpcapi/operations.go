package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/conclavekms/conclave/keyengine"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
	"github.com/conclavekms/conclave/transport/trailpb"
)

// method is one operation of this face.
type method struct {
	op       *keyengine.Operation
	in, out  *message
	request  protoreflect.MessageType
	response reflect.Type // struct
}

// newMethod binds an operation to the messages of the method with that name.
func newMethod(op *keyengine.Operation, md protoreflect.MethodDescriptor) (*method, error) {
	m := &method{op: op}
	response, err := messageType(md.Output())
	if err != nil {
		return nil, err
	}
	if m.request, err = messageType(md.Input()); err != nil {
		return nil, err
	}
	m.response = reflect.TypeOf(response.New().Interface()).Elem()
	if m.in, err = bind(op.Input(), reflect.TypeOf(m.request.New().Interface()).Elem()); err != nil {
		return nil, err
	}
	m.out, err = bind(op.Output(), m.response)
	return m, err
}

func messageType(d protoreflect.MessageDescriptor) (protoreflect.MessageType, error) {
	return protoregistry.GlobalTypes.FindMessageByName(d.FullName())
}

// decode converts a request to the engine's input.
func (m *method) decode(msg proto.Message) (any, error) {
	in := m.op.NewInput()
	if err := m.in.decode(reflect.ValueOf(in).Elem(), reflect.ValueOf(msg).Elem()); err != nil {
		return nil, &kmsapi.Error{Code: kmsapi.ErrValidation.Code, Message: capital(err.Error())}
	}
	return in, nil
}

// encode converts the engine's output to a response.
func (m *method) encode(out any) (any, error) {
	msg := reflect.New(m.response)
	if !m.op.HasOutput() {
		return msg.Interface(), nil
	}
	from, err := m.op.Output().Of(out)
	if err != nil {
		return nil, err
	}
	m.out.encode(msg.Elem(), from)
	return msg.Interface(), nil
}

// wipeRequest overwrites the blobs of a request, once it is answered or refused.
func (m *method) wipeRequest(msg proto.Message) { m.in.wipe(reflect.ValueOf(msg).Elem(), true) }

// awsServices are the services with AWS's operations.
var awsServices = []awsService{
	{"kms", &kmspb.KMS_ServiceDesc, kmspb.File_transport_kmspb_kms_proto.Services().ByName("KMS")},
	{"iam", &iampb.IAM_ServiceDesc, iampb.File_transport_iampb_iam_proto.Services().ByName("IAM")},
	{"sts", &iampb.STS_ServiceDesc, iampb.File_transport_iampb_sts_proto.Services().ByName("STS")},
	{"cloudtrail", &trailpb.CloudTrail_ServiceDesc, trailpb.File_transport_trailpb_cloudtrail_proto.Services().ByName("CloudTrail")},
}

type awsService struct {
	name  string // as operations have it
	desc  *grpc.ServiceDesc
	proto protoreflect.ServiceDescriptor
}

// service returns an AWS service with a handler for each operation of the engine. It fails
// if the API lacks one of them, or has other members.
func (s *Server) service(of awsService, ops []*keyengine.Operation) (*grpc.ServiceDesc, error) {
	desc := &grpc.ServiceDesc{ServiceName: of.desc.ServiceName, HandlerType: (*any)(nil), Metadata: of.desc.Metadata}
	var faults []error
	for _, op := range ops {
		if string(op.Service) != of.name {
			continue
		}
		md := of.proto.Methods().ByName(protoreflect.Name(op.Name))
		if md == nil {
			faults = append(faults, fmt.Errorf("the API has no %s", op.Name))
			continue
		}
		m, err := newMethod(op, md)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", op.Name, err))
			continue
		}
		s.answers[m.response] = m.out
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: op.Name, Handler: s.operationHandler(m)})
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("the operations of the gRPC API and of the engine differ: %w", err)
	}
	return desc, nil
}

// operationHandler returns the handler of an operation.
func (s *Server) operationHandler(m *method) grpc.MethodHandler {
	authenticate := s.caller
	if m.op.Unsigned {
		authenticate = s.callerOrStranger
	}
	return func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		// Before the request is decoded, as nothing is decoded for strangers, but of
		// operations whose input proves who calls.
		caller, err := authenticate(ctx)
		if err != nil {
			return nil, err
		}
		msg := m.request.New().Interface()
		defer m.wipeRequest(msg)
		if err := dec(msg); err != nil {
			return nil, err
		}
		in, err := m.decode(msg)
		if err != nil {
			return nil, err
		}
		out, err := s.cfg.Engine.Do(ctx, caller, m.op, in)
		if err != nil {
			return nil, err
		}
		answer, err := m.encode(out)
		if err != nil {
			return nil, err
		}
		// Checked last, right before the answer is handed over to be written.
		if err := caller.Overdue(); err != nil {
			s.answers.wipe(answer)
			return nil, err
		}
		return answer, nil
	}
}

// capital turns the text of an error into a sentence for a caller.
func capital(text string) string {
	return string(text[0]-'a'+'A') + text[1:] + "."
}
