package harness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/client"
)

// unanswered is the code of a call that no node of the cluster answered.
const unanswered = "(unanswered)"

// Op is one call as its client saw it.
type Op struct {
	Name string // of the operation
	Node string // the node that was asked
	// RequestID is the server's request id, or "" if none was received.
	RequestID string
	// Record is the index of the request's record in the audit log, as the answer says; nil if
	// it does not.
	Record *uint64
	// Times since the history began.
	Invoked, Returned time.Duration
	// Code is "" for success, or AWS's name of the error. Message is for display.
	Code, Message string
}

// String describes the call in one line, for error messages.
func (o Op) String() string {
	s := fmt.Sprintf("%s %s on %s, %v to %v", o.Name, o.RequestID, o.Node, o.Invoked, o.Returned)
	if o.Code != "" {
		s += ": " + o.Code + ": " + o.Message
	}
	return s
}

// indefinite are the answers after which a client does not know what became of its request,
// and the errors that need not have a record.
var indefinite = []string{
	unanswered, "ServiceUnavailable", "ThrottlingException", "KMSInternalException",
	"UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException", "MissingAuthenticationTokenException",
}

// Definite reports whether the answer says what became of the request.
func (o Op) Definite() bool { return !slices.Contains(indefinite, o.Code) }

// History records calls. It is safe for concurrent use.
type History struct {
	start time.Time

	mu  sync.Mutex
	ops []Op
}

// NewHistory returns a history that begins now.
func NewHistory() *History { return &History{start: time.Now()} }

// Now returns the time since the history began.
func (h *History) Now() time.Duration { return time.Since(h.start) }

// Ops returns the calls that have returned.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}

func (h *History) add(o Op) Op {
	o.Returned = h.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
	return o
}

// GRPC makes and records a call of the gRPC API.
func (h *History) GRPC(ctx context.Context, n *Node, name string, call func(context.Context, ...grpc.CallOption) error) Op {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o := Op{Name: name, Node: n.ID, Invoked: h.Now()}
	var head, trailer metadata.MD
	err := call(ctx, grpc.Header(&head), grpc.Trailer(&trailer))
	if id := head.Get("x-conclave-request-id"); len(id) == 1 {
		o.RequestID = id[0]
	}
	o.Record = recordIndex(trailer.Get("x-conclave-audit-index"))
	if err != nil {
		o.Code, o.Message = unanswered, err.Error()
		if f, ok := client.FromError(err); ok && f.Type != "" {
			o.Code, o.Message, o.RequestID = f.Type, f.Message, f.RequestID
		}
	}
	return h.add(o)
}

// SDK makes and records a call of the AWS API.
func (h *History) SDK(ctx context.Context, n *Node, name string, call func(context.Context) (middleware.Metadata, error)) Op {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o := Op{Name: name, Node: n.ID, Invoked: h.Now()}
	meta, err := call(ctx)
	o.RequestID, o.Code = sdkOutcome(meta, err)
	if r, ok := awsmiddleware.GetRawResponse(meta).(*smithyhttp.Response); ok {
		o.Record = recordIndex(r.Header.Values(transport.HeaderAuditIndex))
	} else if r, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		o.Record = recordIndex(r.Response.Header.Values(transport.HeaderAuditIndex))
	}
	if err != nil {
		o.Message = err.Error()
	}
	return h.add(o)
}

// recordIndex parses the index of a record in an answer's header or trailer.
func recordIndex(values []string) *uint64 {
	if len(values) != 1 {
		return nil
	}
	n, err := strconv.ParseUint(values[0], 10, 64)
	if err != nil {
		return nil
	}
	return &n
}
