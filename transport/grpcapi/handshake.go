package grpcapi

import (
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/conclavekms/conclave/transport/admission"
)

// authInfo is what is known of a connection after its handshake.
type authInfo struct {
	credentials.AuthInfo
	// conn has the connection's place in the node's budget; nil if the listener is
	// of none.
	conn *admission.Conn
	// operator says that an operator's certificate was shown and is valid: that
	// decides on places. What an operator may do is decided with each call.
	operator bool
}

// handshakes are the transport's, with the budget told of operators.
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
