// Package admission limits connections, and other scarce resources of a node,
// by class of caller, both before and after callers are authenticated.
//
// The reader may rely on this. All listeners of a node share one Budget, which is
// derived from the number of file descriptors that the process may have, less
// some for the disk. Each connection begins in the class of strangers. Strangers
// have a share of the budget, each listener has a part of that share, and each
// source (an IPv4 address, or a /64 of IPv6) has a quarter of that part. When a
// part is used up, the oldest connection of the source with the most is closed; a
// new connection is never refused because of what others hold. A connection
// leaves the share of strangers once its other end is authenticated. Then it
// counts as that of a client, an operator or a peer, whose places no stranger can
// take.
package admission

import (
	"fmt"
	"net"

	"github.com/prometheus/client_golang/prometheus"
)

// Class says what is known about the other end of a connection.
type Class int32

// The classes. A connection is promoted from Stranger to one of the others.
const (
	Stranger Class = iota
	Client
	Operator
	Peer
	classes
)

var classNames = [classes]string{"stranger", "client", "operator", "peer"}

// String returns the label of the class in metrics.
func (c Class) String() string { return classNames[c] }

const (
	// reservedFiles is the number of descriptors for everything but inbound
	// connections: the audit log, Raft's log and snapshots, listeners, and
	// outbound connections.
	reservedFiles = 256
	// minConnections is the smallest number of connections with which a node
	// starts.
	minConnections = 256
	// maxConnections bounds memory if the process may have more descriptors.
	maxConnections = 16 << 10
)

// Config configures a Budget.
type Config struct {
	// Files is how many descriptors may be open; 0 for the limit of the
	// process, after it was raised as far as possible.
	Files uint64
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Budget is shared by all listeners of a node.
type Budget struct {
	limits [classes]int64
	open   [classes]Gate

	connections *prometheus.GaugeVec
	evicted     *prometheus.CounterVec
	refused     *prometheus.CounterVec
}

// New returns the budget of a node.
func New(cfg Config) (*Budget, error) {
	if cfg.Files == 0 {
		var err error
		if cfg.Files, err = fileLimit(); err != nil {
			return nil, fmt.Errorf("reading how many files may be open: %w", err)
		}
	}
	if cfg.Files < reservedFiles+minConnections {
		return nil, fmt.Errorf("the process may have %d files open, but a node needs %d: raise the hard limit (ulimit -Hn, LimitNOFILE=)",
			cfg.Files, reservedFiles+minConnections)
	}
	all := int64(min(cfg.Files-reservedFiles, maxConnections))
	b := &Budget{}
	b.limits[Operator] = min(all/16, 64)
	b.limits[Peer] = min(all/8, 512)
	b.limits[Stranger] = min(all/4, 2048)
	b.limits[Client] = all - b.limits[Operator] - b.limits[Peer] - b.limits[Stranger]
	for c := range classes {
		b.open[c].SetLimit(b.limits[c])
	}
	b.connections = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "conclave_connections_open",
		Help: "Inbound connections open now, by face and by whose they are: stranger, client, operator or peer.",
	}, []string{"face", "class"})
	b.evicted = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "conclave_connections_evicted_total",
		Help: "Strangers' connections that were closed to make room for newer ones, by face.",
	}, []string{"face"})
	b.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "conclave_connections_refused_total",
		Help: "Connections that found no place in their class, by face and class: strangers' are closed, others stay among the strangers or are closed by the face.",
	}, []string{"face", "class"})
	limit := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "conclave_connections_limit",
		Help: "Inbound connections that may be open at once, by class.",
	}, []string{"class"})
	for c := range classes {
		limit.WithLabelValues(c.String()).Set(float64(b.limits[c]))
	}
	if cfg.Metrics != nil {
		for _, c := range []prometheus.Collector{b.connections, b.evicted, b.refused, limit} {
			if err := cfg.Metrics.Register(c); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// Limit returns how many connections of a class may be open at once.
func (b *Budget) Limit(c Class) int { return int(b.limits[c]) }

// Share is a listener's part of the strangers' share, in sixteenths. The parts
// of all listeners of a node add up to at most sixteen.
type Share struct {
	// Face is the listener's name in metrics.
	Face string
	// Sixteenths is the listener's part of the strangers' share.
	Sixteenths int
	// Max also bounds the strangers of this listener; 0 for no further bound.
	Max int64
}

// Listener wraps an open listener so that its connections count in the budget.
// TLS belongs on top of it, as a connection counts from before its handshake.
func (b *Budget) Listener(inner net.Listener, s Share) *Listener {
	return &Listener{Listener: inner, door: b.Door(s)}
}

// Door returns a door for connections that something else accepts.
func (b *Budget) Door(s Share) *Door {
	total := max(b.limits[Stranger]*int64(s.Sixteenths)/16, 4)
	if s.Max > 0 {
		total = min(total, s.Max)
	}
	d := &Door{budget: b, face: s.Face, strangers: NewPool(total, max(total/4, 2))}
	d.strangers.OnEvict(b.evicted.WithLabelValues(s.Face).Inc)
	for c := range classes {
		d.open[c] = b.connections.WithLabelValues(s.Face, c.String())
		d.refused[c] = b.refused.WithLabelValues(s.Face, c.String())
	}
	return d
}
