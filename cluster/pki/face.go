package pki

import "crypto/tls"

// FaceTLS is the TLS configuration of a port that clients connect to, with the
// node's certificate and, to tell operators by, the cluster's CA for theirs. It
// follows Reload. protocols are the ALPN names to offer. Revoked certificates of
// clients are refused, and the connection of one that is revoked later is closed; it
// has to be of an admission.Budget.
func (id *Identity) FaceTLS(minVersion uint16, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: minVersion,
		NextProtos: protocols,
		// The keys of session tickets are those of this configuration, so that clients
		// can resume their connections.
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			l := id.loaded.Load()
			return &tls.Config{
				MinVersion:   minVersion,
				NextProtos:   protocols,
				Certificates: []tls.Certificate{l.cert},
				ClientAuth:   tls.VerifyClientCertIfGiven,
				ClientCAs:    l.pool,
				// Called for resumed connections as well.
				VerifyConnection: func(cs tls.ConnectionState) error { return id.watchClient(cs, hello.Conn) },
			}, nil
		},
	}
}
