package cluster

import (
	"crypto/tls"
	"sync/atomic"
)

// FaceTLS is the TLS configuration of a port that clients connect to, with the
// node's certificate and, to tell operators by, the cluster's CA for theirs. It
// follows Reload. protocols are the ALPN names to offer.
func (id *Identity) FaceTLS(minVersion uint16, protocols ...string) *tls.Config {
	type face struct {
		of  *loadedIdentity
		cfg *tls.Config
	}
	var current atomic.Pointer[face]
	return &tls.Config{
		MinVersion: minVersion,
		NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			l := id.loaded.Load()
			// One configuration as long as the identity stays, so that clients can
			// resume their connections.
			f := current.Load()
			if f == nil || f.of != l {
				f = &face{of: l, cfg: &tls.Config{
					MinVersion:   minVersion,
					NextProtos:   protocols,
					Certificates: []tls.Certificate{l.cert},
					ClientAuth:   tls.VerifyClientCertIfGiven,
					ClientCAs:    l.pool,
				}}
				current.Store(f)
			}
			return f.cfg, nil
		},
	}
}
