package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Limits bound what a peer can make a listener hold before it is known who it
// is. Zero fields stand for the defaults.
type Limits struct {
	// MaxConnections open at once; 10,000. One more is closed as soon as it is
	// accepted, so that the client tries another node instead of waiting here.
	MaxConnections int
	// HeaderTimeout bounds the TLS handshake, and the time from a request's first
	// byte to the end of its headers; 5 s.
	HeaderTimeout time.Duration
	// ReadTimeout bounds a whole request, its body included; 15 s.
	ReadTimeout time.Duration
	// WriteTimeout bounds the time from the end of the headers to the end of the
	// answer; 60 s. Longer than any face lets the engine take.
	WriteTimeout time.Duration
	// IdleTimeout is how long a connection may wait for its next request; 2 min.
	IdleTimeout time.Duration
	// MaxHeaderBytes of a request; 32 KiB.
	MaxHeaderBytes int
	// MaxStreams open at once on an HTTP/2 connection; 250.
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
	setInt(&l.MaxConnections, 10_000)
	set(&l.HeaderTimeout, 5*time.Second)
	set(&l.ReadTimeout, 15*time.Second)
	set(&l.WriteTimeout, time.Minute)
	set(&l.IdleTimeout, 2*time.Minute)
	setInt(&l.MaxHeaderBytes, 32<<10)
	setInt(&l.MaxStreams, 250)
	return l
}

// ListenConfig describes one listener.
type ListenConfig struct {
	// Address as "host:port".
	Address string
	// Face that is served, "aws" or "grpc"; a label of the metrics.
	Face   string
	Limits Limits
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Listen opens a TCP listener that keeps to the limit of connections.
func Listen(ctx context.Context, cfg ListenConfig) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, err
	}
	limited, err := LimitListener(l, cfg)
	if err != nil {
		l.Close()
		return nil, err
	}
	return limited, nil
}

// LimitListener makes an open listener keep to the limit of connections. TLS
// belongs on top of it: a connection counts from before its handshake.
func LimitListener(l net.Listener, cfg ListenConfig) (net.Listener, error) {
	open := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "conclave_connections_open",
		Help: "Client connections open now, by face.",
	}, []string{"face"})
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "conclave_connections_refused_total",
		Help: "Client connections closed because too many were open, by face.",
	}, []string{"face"})
	if cfg.Metrics != nil {
		// Each face registers them; all but the first find them there.
		var err error
		if open, err = register(cfg.Metrics, open); err != nil {
			return nil, err
		}
		if refused, err = register(cfg.Metrics, refused); err != nil {
			return nil, err
		}
	}
	return &limitListener{
		Listener: l,
		max:      int64(cfg.Limits.withDefaults().MaxConnections),
		gauge:    open.WithLabelValues(cfg.Face),
		refused:  refused.WithLabelValues(cfg.Face),
	}, nil
}

func register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	if there, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if old, ok := there.ExistingCollector.(C); ok {
			return old, nil
		}
	}
	return c, err
}

type limitListener struct {
	net.Listener
	max     int64
	open    atomic.Int64
	gauge   prometheus.Gauge
	refused prometheus.Counter
}

// Accept waits for a connection that there is room for.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			l.gauge.Inc()
			return &limitedConn{Conn: c, listener: l}, nil
		}
		l.open.Add(-1)
		l.refused.Inc()
		c.Close()
	}
}

// limitedConn gives its place back when it is closed, once.
type limitedConn struct {
	net.Conn
	listener *limitListener
	closed   atomic.Bool
}

func (c *limitedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.listener.open.Add(-1)
		c.listener.gauge.Dec()
	}
	return c.Conn.Close()
}

// HTTPConfig describes an HTTP server.
type HTTPConfig struct {
	// TLS of the server: usually GetCertificate, so that certificates are renewed
	// without a restart. nil serves plain HTTP, for development on loopback.
	TLS    *tls.Config
	Limits Limits
	// Logger is given what net/http says of bad connections, at debug level: it is
	// the doing of peers who are not authenticated.
	Logger *slog.Logger
}

// NewHTTPServer returns a server of HTTP/1.1 and, over TLS, HTTP/2 that keeps to
// the limits. Serve starts it. It takes TLS 1.2, for clients of the AWS protocol
// that have no newer one; key exchanges are the library's choice, in which
// X25519MLKEM768 comes first.
func NewHTTPServer(cfg HTTPConfig, h http.Handler) *http.Server {
	l := cfg.Limits.withDefaults()
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: l.HeaderTimeout,
		ReadTimeout:       l.ReadTimeout,
		WriteTimeout:      l.WriteTimeout,
		IdleTimeout:       l.IdleTimeout,
		MaxHeaderBytes:    l.MaxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: l.MaxStreams,
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          15 * time.Second,
			WriteByteTimeout:     15 * time.Second,
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

// Serve serves connections of l until the server is shut down, with TLS if the
// server has it. It returns nil after a shutdown.
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
