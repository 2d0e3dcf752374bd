package grpcapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/transport"
)

const (
	regionHeader = "x-conclave-region"
	maxRegion    = 64

	// ownScheme is that of the URIs of nodes and operators.
	ownScheme   = "conclave"
	operatorURI = ownScheme + "://operator/"
	// maxOperator bounds an operator's name, maxAuthorization a session token with its
	// scheme.
	maxOperator      = 128
	maxAuthorization = len("Bearer ") + iam.MaxToken
)

var (
	errNoCredentials = &kmsapi.Error{Code: transport.ErrMissingAuthentication.Code,
		Message: "The call needs a session token (authorization: Bearer TOKEN) or the client certificate of a principal."}
	errBadToken = &kmsapi.Error{Code: kmsapi.ErrUnrecognizedClient.Code,
		Message: "The security token included in the request is invalid."}
	errCertificate = &kmsapi.Error{Code: kmsapi.ErrUnrecognizedClient.Code,
		Message: "The client certificate is not one of a principal, or is no longer valid."}
	errNotOperator = &kmsapi.Error{Code: kmsapi.ErrAccessDenied.Code,
		Message: "This call needs the client certificate of an operator."}
	errRegion = &kmsapi.Error{Code: kmsapi.ErrValidation.Code,
		Message: "The region of " + regionHeader + " is not the name of a region."}
)

// connection is what the transport knows about the other end.
type connection struct {
	loopback bool
	leaf     *x509.Certificate    // verified; nil if there is none
	state    *tls.ConnectionState // nil without TLS
}

// verified returns the certificate of the other end, if it has one that was
// verified.
func verified(info credentials.AuthInfo) *x509.Certificate {
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.VerifiedChains) > 0 && len(t.State.PeerCertificates) > 0 {
		return t.State.PeerCertificates[0]
	}
	return nil
}

func connectionOf(ctx context.Context) connection {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return connection{}
	}
	var c connection
	if a, ok := p.Addr.(*net.TCPAddr); ok {
		c.loopback = a.IP.IsLoopback()
	}
	if auth, ok := p.AuthInfo.(authInfo); ok {
		if info, ok := auth.AuthInfo.(credentials.TLSInfo); ok {
			c.state = &info.State
			c.leaf = verified(info)
		}
	}
	return c
}

// channel returns the connection's channel binding tls-exporter (RFC 9266);
// nothing without TLS.
func (c *connection) channel() ([]byte, error) {
	if c.state == nil {
		return nil, nil
	}
	return c.state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
}

// caller authenticates a call on keys. If a token is invalid, the certificate is
// not used in its place: the caller intended to be another principal.
func (s *Server) caller(ctx context.Context) (*iam.Caller, error) {
	call, conn := callOf(ctx), connectionOf(ctx)
	call.Trace.Next(trace.Verify)
	defer call.Trace.Stop()
	c := call.Caller(userAgent(ctx), authority(ctx), conn.state)
	if call.caller == nil { // a stream authenticates its caller again
		call.caller = c
	}
	var err error
	if c.Region, err = region(ctx); err != nil {
		return nil, err
	}
	if auth := metadata.ValueFromIncomingContext(ctx, "authorization"); len(auth) > 0 {
		token, ok := bearer(auth)
		if !ok {
			return nil, errBadToken
		}
		if c.Identity, err = s.cfg.Engine.AuthenticateSession(ctx, token); err != nil {
			return nil, err
		}
		call.Proved()
		return c, call.Work(&s.api.Calls)
	}
	if conn.leaf == nil {
		return nil, errNoCredentials
	}
	cert, ok := s.certificate(conn)
	if !ok {
		return nil, errCertificate
	}
	if c.Identity, err = s.cfg.Engine.AuthenticateCertificate(ctx, cert); err != nil {
		return nil, err
	}
	call.Proved()
	return c, call.Work(&s.api.Calls)
}

// callerOrStranger authenticates a call whose input proves who calls, if it says who calls
// besides. If it does not, its caller has no identity, and the call keeps its place among
// those that are coming in: it can be evicted until it is answered.
func (s *Server) callerOrStranger(ctx context.Context) (*iam.Caller, error) {
	conn := connectionOf(ctx)
	if len(metadata.ValueFromIncomingContext(ctx, "authorization")) > 0 || conn.leaf != nil {
		return s.caller(ctx)
	}
	call := callOf(ctx)
	c := call.Caller(userAgent(ctx), authority(ctx), conn.state)
	call.caller = c
	var err error
	c.Region, err = region(ctx)
	return c, err
}

// operator authenticates an operator's call.
func (s *Server) operator(ctx context.Context) (ceremony.Operator, error) {
	call, conn := callOf(ctx), connectionOf(ctx)
	op := ceremony.Operator{SourceIP: call.SourceIP, RequestID: call.ID}
	if s.cfg.LoopbackOperators && conn.loopback {
		op.Name = "root"
		return op, call.Work(&s.gates.ceremonies)
	}
	var ok bool
	if op.Name, ok = s.operatorName(conn); !ok {
		return ceremony.Operator{}, errNotOperator
	}
	return op, call.Work(&s.gates.ceremonies)
}

// operatorName returns the URI in an operator's verified certificate.
func (s *Server) operatorName(conn connection) (string, bool) {
	cert, ok := s.certificate(conn)
	return cert.URI, ok && strings.HasPrefix(cert.URI, operatorURI)
}

// certificate returns the verified certificate of a client, which has one URI: if it had
// several, it would not be clear who the client is. Certificates of nodes come from the same
// CA, but are not accepted here. Connections can outlive certificates, so the dates are
// checked again.
func (s *Server) certificate(conn connection) (iam.Certificate, bool) {
	leaf := conn.leaf
	if leaf == nil {
		return iam.Certificate{}, false
	}
	if now := s.cfg.Clock.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return iam.Certificate{}, false
	}
	if len(leaf.URIs) != 1 {
		return iam.Certificate{}, false
	}
	uri := leaf.URIs[0]
	c := iam.Certificate{URI: uri.String(), Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()), NotAfter: leaf.NotAfter}
	if uri.Scheme == ownScheme {
		name, ok := strings.CutPrefix(c.URI, operatorURI)
		return c, ok && plainName(name)
	}
	return c, true
}

// plainName reports whether an operator's name consists of characters that need
// no escaping and cannot form a path, so that no two names look alike.
func plainName(name string) bool {
	if name == "" || len(name) > maxOperator {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("._@+-", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// bearer returns the token from the values of an authorization header.
func bearer(values []string) (string, bool) {
	if len(values) != 1 || len(values[0]) > maxAuthorization {
		return "", false
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	return token, ok && strings.EqualFold(scheme, "Bearer") && token != ""
}

func userAgent(ctx context.Context) string { return header(ctx, "user-agent") }

// authority returns the host that the client asks for.
func authority(ctx context.Context) string { return header(ctx, ":authority") }

// header returns the first value of a header, or "".
func header(ctx context.Context, name string) string {
	if v := metadata.ValueFromIncomingContext(ctx, name); len(v) > 0 {
		return v[0]
	}
	return ""
}

func region(ctx context.Context) (string, error) {
	v := metadata.ValueFromIncomingContext(ctx, regionHeader)
	if len(v) == 0 {
		return "", nil
	}
	if len(v) > 1 || v[0] == "" || len(v[0]) > maxRegion {
		return "", errRegion
	}
	for _, c := range []byte(v[0]) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return "", errRegion
		}
	}
	return v[0], nil
}
