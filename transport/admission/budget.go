// Package admission decides who may hold a connection, or anything else that a
// node has little of, before and after it is known who they are.
//
// The reader may rely on this. Every listener of a node takes its connections
// from one Budget, which is derived from the descriptors that the process may
// have and leaves some to the disk. Each connection begins as a stranger's.
// Strangers have a share of the budget, each listener a part of it, and each
// source (an IPv4 address, a /64 of IPv6) a quarter of that part; when it is used
// up the oldest stranger of the busiest source goes, never the newcomer for what
// others hold. A connection leaves that share once its other end has proved who
// it is: then it counts for the clients, the operators or the nodes, whose places
// no stranger can take.
package admission

import (
	"context"
	"fmt"
	"net"

	"github.com/prometheus/client_golang/prometheus"
)

// Class is whom a connection is known to be of.
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

// String is the class's label in metrics.
func (c Class) String() string { return classNames[c] }

const (
	// reservedFiles are descriptors for what is no inbound connection: the audit
	// log, Raft's log and snapshots, listeners, and connections to others.
	reservedFiles = 256
	// minConnections is the least that a node can serve with.
	minConnections = 256
	// maxConnections bounds memory where the process may have more descriptors.
	maxConnections = 16 << 10
)

// Config of a Budget.
type Config struct {
	// Files is how many descriptors may be open; 0 for the process's own limit,
	// after it was raised as far as it may be.
	Files uint64
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Budget is what all listeners of a node share.
type Budget struct {
	limits [classes]int64
	open   [classes]Gate

	connections *prometheus.GaugeVec
	evicted     *prometheus.CounterVec
	refused     *prometheus.CounterVec
}

// New makes the budget of a node.
func New(cfg Config) (*Budget, error) {
	if cfg.Files == 0 {
		var err error
		if cfg.Files, err = fileLimit(); err != nil {
			return nil, fmt.Errorf("reading how many files may be open: %w", err)
		}
	}
	if cfg.Files < reservedFiles+minConnections {
		return nil, fmt.Errorf("the process may have %d files open, and a node needs %d: raise the hard limit (ulimit -Hn, LimitNOFILE=)",
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

// Limit is how many connections of a class may be open at once.
func (b *Budget) Limit(c Class) int { return int(b.limits[c]) }

// Share is a listener's part of the budget's strangers, in sixteenths. The parts
// of all listeners of a node together are at most sixteen.
type Share struct {
	// Face is the listener's name in metrics.
	Face string
	// Sixteenths of the strangers' share that are this listener's.
	Sixteenths int
	// Max bounds the strangers of this listener; 0 for the share alone.
	Max int64
}

// Listen opens a TCP listener within the budget.
func (b *Budget) Listen(ctx context.Context, addr string, s Share) (*Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return b.Listener(l, s), nil
}

// Listener takes an open listener into the budget. TLS belongs on top of it: a
// connection counts from before its handshake.
func (b *Budget) Listener(inner net.Listener, s Share) *Listener {
	return &Listener{Listener: inner, door: b.Door(s)}
}

// Door is the budget's for connections that something else accepts.
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
