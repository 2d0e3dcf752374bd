package grpcapi

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
)

// gates bound how many calls are in flight, before a byte of a request's message is
// read. A call takes a place in the pool of the class that it seems to belong to:
// strangers (the API's own pool), clients (if its token is one of the cluster's, or
// its connection has presented one before) or operators (by the connection's
// certificate). It passes a gate, to be worked on, only once its message is complete
// and its caller is known. What is buffered for strangers is bounded by the places in
// their pool.
type gates struct {
	api                *transport.API
	clients, operators *admission.Pool // coming in
	ceremonies, audits admission.Gate  // being worked on
	watches            *admission.Pool
	// knows reports whether a token is one of the cluster's, without waiting.
	knows func(token string) bool
}

// The number of places in the pools. A stranger's call takes some milliseconds,
// and up to maxMessage bytes may be buffered for it.
const (
	maxStrangers     = 128
	maxStrangersFrom = 32
	maxOperators     = 256
)

func (g *gates) init(cfg Config, api *transport.API) {
	g.api = api
	g.ceremonies.SetLimit(maxOperators)
	g.audits.SetLimit(int64(cfg.MaxStreams))
	g.clients = api.Pool(int64(cfg.MaxCalls), int64(cfg.MaxCalls))
	g.operators = api.Pool(maxOperators, maxOperators)
	g.watches = api.Pool(int64(cfg.MaxStreams), max(int64(cfg.MaxStreams)/4, 1))
	g.knows = cfg.Engine.KnowsToken
}

// call is what handlers know about the call that they handle.
type call struct {
	*transport.Request
	// status is an error of the gRPC library itself, which the caller may see or
	// has seen already. No other status may be passed on: one that a handler
	// received from elsewhere may contain anything.
	status error
	caller *iam.Caller // whose request it is; nil for calls of operators
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

var errFull = &kmsapi.Error{Code: kmsapi.ErrThrottling.Code, Message: "This node has too many requests in flight. Try again, or try another node."}

// enter is called on a connection's reader for each new stream. The context that
// it returns also governs reading the request, so a client that sends headers
// and then nothing is dropped in time.
func (g *gates) enter(ctx context.Context, info *tap.Info) (context.Context, error) {
	in := transport.Arrival{Pool: g.api.Strangers, Lasts: true, Forwarded: info.Header.Get(transport.HeaderForwardedFor), TraceParent: info.Header.Get(transport.HeaderTraceParent)}
	if p, ok := peer.FromContext(ctx); ok {
		auth, _ := p.AuthInfo.(authInfo)
		in.Conn = auth.conn
		in.Remote = p.Addr.String()
		in.Pool = g.poolOf(auth, info)
	}
	r, timed, err := g.api.Arrive(ctx, in)
	if err != nil {
		r.End()
		return nil, status.Error(codes.ResourceExhausted, errFull.Message)
	}
	// The stream's own context always ends with the stream.
	context.AfterFunc(ctx, r.End)
	return context.WithValue(timed, callKey{}, &call{Request: r}), nil
}

// poolOf returns the pool in which a call takes a place. This decides about
// places only: the caller is authenticated when the call has arrived.
func (g *gates) poolOf(auth authInfo, info *tap.Info) *admission.Pool {
	switch {
	case auth.operator:
		return g.operators
	case auth.conn != nil && auth.conn.Class() != admission.Stranger:
		return g.clients
	}
	if token, ok := bearer(info.Header.Get("authorization")); ok && g.knows(token) {
		return g.clients
	}
	return g.api.Strangers
}
