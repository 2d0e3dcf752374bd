package grpcapi

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
)

// gates bound what is under way at once, before a byte of a request's message is
// read. A call comes in through the pool of whoever seems to make it: a stranger (the
// API's own pool), a client (its token is one of the cluster's, or its connection has
// shown one before) or an operator (by the connection's certificate). It passes the
// gate to the work only once all of its message is there and its caller is known. What
// is buffered for strangers is bounded by the places in their pool.
type gates struct {
	api                *transport.API
	clients, operators *admission.Pool // coming in
	ceremonies, audits admission.Gate  // being worked on
	watches            *admission.Pool
	// knows reports whether a token is one of the cluster's, without waiting.
	knows func(token string) bool
}

// Places in the pools: a stranger's call takes some milliseconds, and may have a
// message of maxMessage buffered.
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

// call is what handlers know of the call that they are in.
type call struct {
	*transport.Request
	// status is an error of the library's own, which it has told the caller of
	// already or which is fit to be told. No other status is: one that a handler
	// was given by somebody else may say anything.
	status error
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

var errFull = &kmsapi.Error{Code: kmsapi.ErrThrottling.Code, Message: "This node has too many requests under way. Try again, or another node."}

// enter is called on a connection's reader for each new stream. The context that
// it returns governs reading the request too, so a client that sends headers and
// then nothing is let go of in time.
func (g *gates) enter(ctx context.Context, info *tap.Info) (context.Context, error) {
	in := transport.Arrival{Pool: g.api.Strangers, Lasts: true}
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
	// The stream's own context ends with the stream, whatever becomes of it.
	context.AfterFunc(ctx, r.End)
	return context.WithValue(timed, callKey{}, &call{Request: r}), nil
}

// poolOf is the pool that a call comes in through. It decides on places only: who
// the caller is will be found out when the call is there.
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
