package transport

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/conclavekms/conclave/transport/admission"
)

// Limits bound what one connection can make the server hold. The admission budget
// limits the number of connections. Zero fields stand for the defaults.
type Limits struct {
	// HeaderTimeout bounds the TLS handshake, and the time from a request's first
	// byte to the end of its headers; 5 s.
	HeaderTimeout time.Duration
	// ReadTimeout bounds a whole request, its body included; 15 s.
	ReadTimeout time.Duration
	// WriteTimeout bounds the time from the end of the headers to the end of the
	// answer; 60 s. This must be longer than any face lets the engine take.
	WriteTimeout time.Duration
	// IdleTimeout is how long a connection may wait for its next request; 2 min.
	IdleTimeout time.Duration
	// MaxHeaderBytes bounds the headers of a request; 32 KiB.
	MaxHeaderBytes int
	// MaxStreams bounds the streams that are open at once on an HTTP/2
	// connection; 250.
	MaxStreams int
}

func (l Limits) withDefaults() Limits {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	setInt := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	set(&l.HeaderTimeout, 5*time.Second)
	set(&l.ReadTimeout, 15*time.Second)
	set(&l.WriteTimeout, time.Minute)
	set(&l.IdleTimeout, 2*time.Minute)
	setInt(&l.MaxHeaderBytes, 32<<10)
	setInt(&l.MaxStreams, 250)
	return l
}

// HTTPConfig configures an HTTP server.
type HTTPConfig struct {
	// TLS is the configuration of the server, usually with GetCertificate, so
	// that certificates are renewed without a restart. If it is nil, the server
	// uses plain HTTP, for development on loopback.
	TLS    *tls.Config
	Limits Limits
	// Logger receives what net/http logs about bad connections, at debug level,
	// since clients that are not authenticated can cause it.
	Logger *slog.Logger
}

// NewHTTPServer returns a server for HTTP/1.1 and, over TLS, HTTP/2 that
// enforces the limits. Serve starts it. It accepts TLS 1.2, for clients of the
// AWS protocol that have no newer version. Key exchanges are those of the
// library, which prefers X25519MLKEM768.
func NewHTTPServer(cfg HTTPConfig, h http.Handler) *http.Server {
	l := cfg.Limits.withDefaults()
	srv := &http.Server{
		Handler: h,
		// So that handlers can promote authenticated connections in the budget.
		ConnContext:       admission.NewContext,
		ReadHeaderTimeout: l.HeaderTimeout,
		ReadTimeout:       l.ReadTimeout,
		WriteTimeout:      l.WriteTimeout,
		IdleTimeout:       l.IdleTimeout,
		MaxHeaderBytes:    l.MaxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: l.MaxStreams,
			// How much clients may send before a handler reads: little, as they are
			// not authenticated yet, but enough for nearly every request.
			MaxReceiveBufferPerConnection: 256 << 10,
			MaxReceiveBufferPerStream:     64 << 10,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              15 * time.Second,
		},
		Protocols: new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	if cfg.Logger != nil {
		srv.ErrorLog = slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)
	}
	if cfg.TLS != nil {
		srv.TLSConfig = cfg.TLS.Clone()
		srv.TLSConfig.MinVersion = max(srv.TLSConfig.MinVersion, tls.VersionTLS12)
	}
	return srv
}

// Serve serves connections of l, with TLS if the server has it, until the
// server is shut down. Then it returns nil.
func Serve(srv *http.Server, l net.Listener) error {
	var err error
	if srv.TLSConfig != nil {
		err = srv.ServeTLS(l, "", "")
	} else {
		err = srv.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
