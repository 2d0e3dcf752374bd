package pki

import "crypto/tls"

// FaceTLS returns the TLS configuration of a port for clients. It uses the node's
// certificate, and the cluster's CA to verify the certificates of operators, and follows
// Reload. protocols are the ALPN names to offer. Revoked client certificates are refused,
// and connections are closed when their certificate is revoked. The connections have to be
// from an admission.Budget.
func (id *Identity) FaceTLS(minVersion uint16, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: minVersion,
		NextProtos: protocols,
		// Session ticket keys belong to this configuration, so clients can resume sessions.
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			l := id.loaded.Load()
			return &tls.Config{
				MinVersion:   minVersion,
				NextProtos:   protocols,
				Certificates: []tls.Certificate{l.cert},
				ClientAuth:   tls.VerifyClientCertIfGiven,
				ClientCAs:    l.pool,
				// This is also called for resumed connections.
				VerifyConnection: func(cs tls.ConnectionState) error { return id.watchClient(cs, hello.Conn) },
			}, nil
		},
	}
}
