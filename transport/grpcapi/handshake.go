package grpcapi

import (
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/conclavekms/conclave/transport/admission"
)

// authInfo is what is known about a connection after its handshake.
type authInfo struct {
	credentials.AuthInfo
	// conn has the connection's place in the node's budget; nil if its listener
	// has no budget.
	conn *admission.Conn
	// operator is set if the other end has a valid certificate of an operator.
	// This decides about places only. What an operator may do is decided with
	// each call.
	operator bool
}

// handshakes performs the handshakes of TLS, and promotes the connections of
// operators in the budget.
type handshakes struct {
	credentials.TransportCredentials
	server *Server
}

// ServerHandshake implements credentials.TransportCredentials.
func (h handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, auth, err := h.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	info := authInfo{AuthInfo: auth, conn: admission.Of(raw)}
	if _, ok := h.server.operatorName(connection{leaf: verified(auth)}); ok {
		info.operator = true
		if info.conn != nil {
			info.conn.Promote(admission.Operator)
		}
	}
	return c, info, nil
}

// Clone implements credentials.TransportCredentials.
func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{h.TransportCredentials.Clone(), h.server}
}
