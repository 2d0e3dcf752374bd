package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/archive"
	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/backup/scheduled"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
	"github.com/conclavekms/conclave/transport/awsapi"
	"github.com/conclavekms/conclave/transport/containercreds"
	"github.com/conclavekms/conclave/transport/grpcapi"
	"github.com/conclavekms/conclave/transport/queryapi"
	"github.com/conclavekms/conclave/transport/tlogapi"
)

// Hooks are replaced by tests only. Nil ones mean the real implementation.
type Hooks struct {
	Cluster cluster.Hooks
	Clock   keyengine.Clock
	// Listen opens ports, like net.ListenConfig.Listen.
	Listen func(ctx context.Context, network, addr string) (net.Listener, error)
	// OnApply is called after each entry that was applied; see cluster.Config.
	OnApply func(*fsm.State, fsm.Events)
	// SnapshotEntries and TrailingLogs are those of cluster.Config.
	SnapshotEntries, TrailingLogs uint64
	// Replica wraps the engine's view of the cluster.
	Replica func(keyengine.Replica) keyengine.Replica
	// Files is how many file descriptors the node assumes that it may have.
	Files uint64
	// XKSTimeout bounds calls to external key stores.
	XKSTimeout time.Duration
}

// GCPercent is the GC percentage of a server's process, unless GOGC sets another.
// Nearly everything that a request allocates is garbage once it is answered, so
// collecting less often costs some tens of megabytes and saves a tenth of the CPU
// time.
const GCPercent = 400

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// Node is a running server.
type Node struct {
	cfg      Config
	log      *slog.Logger
	identity *pki.Identity
	registry *prometheus.Registry
	// crlNumber has the numbers of the certificate revocation lists.
	crlNumber *prometheus.GaugeVec
	budget    *admission.Budget
	audit     *archive.Reader
	cluster   *cluster.Node
	engine    *keyengine.Engine
	aws       *http.Server
	grpc      *grpcapi.Server
	ops       *http.Server
	pprof     *http.Server
	// snapshots makes backups by itself; nil if it is not to.
	snapshots *scheduled.Runner

	addresses Addresses
	serving   sync.WaitGroup
	life      context.Context
	endLife   context.CancelFunc

	done  chan struct{}
	fault atomic.Pointer[error]
	once  sync.Once
	stop  sync.Once
}

// Addresses are the addresses at which the node actually listens.
type Addresses struct{ AWS, GRPC, Peer, Gossip, Ops, Pprof string }

// Start starts a server. It returns as soon as the ports are open; the cluster
// may not have a leader yet. On an error, everything that was started is
// stopped again.
//
// The order follows the dependencies: the audit log is open before Raft replays
// into it, and the engine exists before requests can reach it. Stop uses the
// reverse order.
func Start(ctx context.Context, cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration:\n%w", err)
	}
	log := cfg.logger()
	n := &Node{cfg: cfg, done: make(chan struct{}), log: log.With("node", cfg.NodeID), registry: prometheus.NewRegistry()}
	n.life, n.endLife = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			n.Stop(ctx)
		}
	}()
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "conclave_build_info", Help: "1, with the version of the binary.", ConstLabels: prometheus.Labels{"version": cfg.Release},
		}, func() float64 { return 1 }))

	if n.identity, err = cfg.identity(); err != nil {
		return nil, err
	}
	if id := n.identity.NodeID(); id != cfg.NodeID {
		return nil, fmt.Errorf("the certificate belongs to node %q, but this is node %q", id, cfg.NodeID)
	}
	n.registerExpiry()
	if err := n.privateData(); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := n.loadCRLs(); err != nil {
		return nil, fmt.Errorf("certificate revocation lists: %w", err)
	}
	local, err := auditlog.Open(AuditDir(cfg.Data), auditlog.Options{Logger: n.log})
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	n.audit = archive.NewReader(local)
	ports, err := n.listen(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ports.close()
		}
	}()
	if err := n.startCluster(ports.peer); err != nil {
		return nil, err
	}
	ports.peer = nil // the cluster closes it from now on
	if err := n.startEngine(); err != nil {
		return nil, err
	}
	if err := n.startFaces(ports); err != nil {
		return nil, err
	}
	n.serving.Go(func() { n.watchExpiry(n.life, expiryInterval) })
	n.log.Info("node started", "aws", n.addresses.AWS, "grpc", n.addresses.GRPC, "peer", n.addresses.Peer, "ops", n.addresses.Ops)
	return n, nil
}

func (c *Config) logger() *slog.Logger {
	var w io.Writer = os.Stderr
	if c.LogOutput != nil {
		w = c.LogOutput
	}
	opts := &slog.HandlerOptions{Level: c.LogLevel}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if c.LogJSON {
		h = slog.NewJSONHandler(w, opts)
	}
	return slog.New(h)
}

func (c *Config) identity() (*pki.Identity, error) {
	if c.Identity != nil {
		return pki.NewIdentity(c.Identity.Cert, c.Identity.Key, c.Identity.CA)
	}
	return pki.LoadIdentity(c.TLSCert, c.TLSKey, c.TLSCA)
}

// ports are opened first, as other parts need their numbers.
type ports struct{ aws, grpc, peer, ops, pprof net.Listener }

func (p *ports) close() {
	for _, l := range []net.Listener{p.aws, p.grpc, p.peer, p.ops, p.pprof} {
		if l != nil {
			l.Close()
		}
	}
}

func (n *Node) listen(ctx context.Context) (_ *ports, err error) {
	p := &ports{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if n.budget, err = admission.New(admission.Config{Files: n.cfg.Test.Files, Metrics: n.registry}); err != nil {
		return nil, err
	}
	listen := n.cfg.Test.Listen
	if listen == nil {
		listen = new(net.ListenConfig).Listen
	}
	face := func(addr string, s admission.Share) (net.Listener, error) {
		l, err := listen(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return n.budget.Listener(l, s), nil
	}
	// The rest of the strangers' share is for the peer port and the address book,
	// which the cluster opens.
	if p.aws, err = face(n.cfg.AWSListen, admission.Share{Face: "aws", Sixteenths: 8}); err != nil {
		return nil, fmt.Errorf("AWS API: %w", err)
	}
	if p.grpc, err = face(n.cfg.GRPCListen, admission.Share{Face: "grpc", Sixteenths: 4}); err != nil {
		return nil, fmt.Errorf("gRPC API: %w", err)
	}
	if p.peer, err = listen(ctx, "tcp", n.cfg.PeerListen); err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	n.addresses = Addresses{AWS: p.aws.Addr().String(), GRPC: p.grpc.Addr().String(), Peer: p.peer.Addr().String(), Gossip: n.cfg.GossipListen}
	if n.cfg.OpsListen != "" {
		if p.ops, err = face(n.cfg.OpsListen, admission.Share{Face: "ops", Sixteenths: 1}); err != nil {
			return nil, fmt.Errorf("metrics and health: %w", err)
		}
		n.addresses.Ops = p.ops.Addr().String()
	}
	if n.cfg.PprofAddress != "" {
		if p.pprof, err = listen(ctx, "tcp", n.cfg.PprofAddress); err != nil {
			return nil, fmt.Errorf("pprof: %w", err)
		}
		n.addresses.Pprof = p.pprof.Addr().String()
		p.pprof = n.budget.Listener(p.pprof, admission.Share{Face: "pprof"})
	}
	return p, nil
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (n *Node) startCluster(peer net.Listener) error {
	gossip, err := n.cfg.gossip()
	if err != nil {
		return err
	}
	// Entries are replayed before the engine exists. It starts with empty
	// caches, which these entries cannot affect.
	var engine atomic.Pointer[keyengine.Engine]
	cfg := cluster.Config{
		NodeID: n.cfg.NodeID, DataDir: n.cfg.Data, ReturnKeyFile: n.cfg.ReturnKey, Identity: n.identity,
		Listener: peer, Budget: n.budget, Advertise: or(n.cfg.PeerAdvertise, n.cfg.Peers[n.cfg.NodeID]),
		Peers: n.cfg.named(), BootstrapExpect: n.cfg.BootstrapExpect,
		AWSAddress: or(n.cfg.AWSAdvertise, n.addresses.AWS), GRPCAddress: or(n.cfg.GRPCAdvertise, n.addresses.GRPC),
		Release: n.cfg.Release, Gossip: gossip, Audit: n.audit,
		Timeouts: n.cfg.Timeouts, Space: n.cfg.Space, Hooks: n.cfg.Test.Cluster,
		SnapshotEntries: n.cfg.Test.SnapshotEntries, TrailingLogs: n.cfg.Test.TrailingLogs,
		Logger: n.log, Registerer: n.registry, OnFault: n.fail,
		OnApply: func(s *fsm.State, ev fsm.Events) {
			if e := engine.Load(); e != nil {
				e.OnApply(s, ev)
			}
			if n.cfg.Test.OnApply != nil {
				n.cfg.Test.OnApply(s, ev)
			}
		},
		OnForgery: func(node, reason string) {
			if e := engine.Load(); e != nil {
				e.RecordForgery(node, reason)
			}
		},
	}
	if n.cfg.Test.Clock != nil {
		cfg.Clock = n.cfg.Test.Clock
	}
	if n.cluster, err = cluster.Open(cfg); err != nil {
		return err
	}
	n.engine, err = n.newEngine()
	if err != nil {
		return err
	}
	engine.Store(n.engine)
	n.audit.SetSource(func() (*archive.Archive, []auditlog.Hash) {
		s := n.cluster.State()
		c, _ := s.Cluster()
		_, roots := s.Audit()
		return n.engine.Archive.Archive(c), roots
	})
	return nil
}

func (n *Node) newEngine() (*keyengine.Engine, error) {
	var replica keyengine.Replica = n.cluster
	if n.cfg.Test.Replica != nil {
		replica = n.cfg.Test.Replica(replica)
	}
	var clock keyengine.Clock = systemClock{}
	if n.cfg.Test.Clock != nil {
		clock = n.cfg.Test.Clock
	}
	roots, err := n.cfg.attestationRoots()
	if err != nil {
		return nil, fmt.Errorf("attestation roots: %w", err)
	}
	stores, err := n.cfg.keyStores()
	if err != nil {
		return nil, err
	}
	issuers, err := n.cfg.webIdentities()
	if err != nil {
		return nil, err
	}
	sinks, err := n.cfg.sinks()
	if err != nil {
		return nil, err
	}
	witnesses, err := n.cfg.witnesses()
	if err != nil {
		return nil, err
	}
	archived, err := n.cfg.archive()
	if err != nil {
		return nil, err
	}
	seals, err := n.cfg.seals(n.life)
	if err != nil {
		return nil, err
	}
	return keyengine.New(keyengine.Config{
		NodeID: n.cfg.NodeID, Replica: replica, Audit: n.audit, Clock: clock, Logger: n.log, Metrics: n.registry,
		AllowUnlockedMemory: n.cfg.AllowUnlockedMemory, AttestationRoots: roots,
		RefusalRate: n.cfg.RefusalRate, Alerts: n.cfg.Alerts, AlertsFile: alertsFile(n.cfg.Data), UsageFile: usageFile(n.cfg.Data),
		CA: nodeCA{n.identity}, Members: nodeMembers{n},
		KeyStores: stores, WebIdentities: issuers, Quotas: n.cfg.Quotas, Seeds: n.cfg.Seeds, Peers: n.cluster.PeerUnseal, Seals: seals, Sinks: sinks, Witnesses: witnesses,
		AuditIndex: auditIndexFile(n.cfg.Data), Archive: archived, ArchivedLog: n.audit,
		Release: n.cfg.Release, Settings: n.cfg.recorded(sinks),
		MayGrow: n.cluster.MayGrow, DiskFull: func() bool { return n.cluster.Space() >= diskspace.Full },
	})
}

// startEngine starts the engine's background work and its answers to peers.
func (n *Node) startEngine() error {
	n.cluster.SetExecutor(n.engine.ServeForwarded)
	n.cluster.SetCanLead(func() bool { return !n.engine.Sealed() })
	n.cluster.SetAuthority(Authority(n.engine))
	n.cluster.OnLeader(n.engine.Lead)
	n.cluster.PeerUnseal.SetUnsealer(unsealer{n.engine.PeerUnseal})
	n.serving.Go(func() { n.engine.Run(n.life) })
	if n.cfg.RemoveDeadAfter > 0 {
		n.serving.Go(func() { n.watchDead(time.Now) }) // its differences do not depend on the wall clock
	}
	return n.startSnapshots()
}

func (n *Node) startFaces(p *ports) error {
	clock := n.cfg.Test.Clock
	now := time.Now
	if clock == nil {
		clock = systemClock{}
	} else {
		now = clock.Now
	}
	proxies, err := transport.ParseProxies(n.cfg.TrustedProxies)
	if err != nil {
		return err
	}
	tracer, err := n.startTraces()
	if err != nil {
		return err
	}
	handler, err := awsapi.New(awsapi.Config{
		Tracer: tracer, Engine: n.engine, Operations: keyengine.Operations(), Now: now, Logger: n.log, Metrics: n.registry,
		Origins: n.cfg.CORSOrigins, Proxies: proxies,
	})
	if err != nil {
		return err
	}
	query, err := queryapi.New(queryapi.Config{Tracer: tracer, Engine: n.engine, Operations: keyengine.Operations(), Now: now, Logger: n.log, Metrics: n.registry, Proxies: proxies})
	if err != nil {
		return err
	}
	containers, err := containercreds.New(containercreds.Config{Tracer: tracer, Engine: n.engine, Logger: n.log, Metrics: n.registry, Proxies: proxies})
	if err != nil {
		return err
	}
	grpcConfig := grpcapi.Config{
		Tracer: tracer, Engine: n.engine, Operations: keyengine.Operations(), Ceremony: operations{n}, Serving: func() bool { return n.health().Ready() },
		Clock: clock, Logger: n.log, Metrics: n.registry, Proxies: proxies,
		Plaintext: n.cfg.Insecure, LoopbackOperators: n.cfg.Insecure,
	}
	var awsTLS *tls.Config
	if !n.cfg.Insecure {
		awsTLS = n.identity.FaceTLS(tls.VersionTLS12, "h2", "http/1.1")
		grpcConfig.TLS = n.identity.FaceTLS(tls.VersionTLS13, "h2")
	}
	if n.grpc, err = grpcapi.New(grpcConfig); err != nil {
		return err
	}
	faces := containers.Before(query.Before(handler))
	if n.cfg.PublishAuditLog {
		published, err := tlogapi.New(tlogapi.Config{Log: n.audit, Engine: n.engine, Logger: n.log, Metrics: n.registry, Proxies: proxies})
		if err != nil {
			return err
		}
		faces = published.Before(faces)
	}
	n.aws = transport.NewHTTPServer(transport.HTTPConfig{TLS: awsTLS, Logger: n.log}, faces)
	n.serve("AWS API", func() error { return transport.Serve(n.aws, p.aws) })
	n.serve("gRPC API", func() error { return n.grpc.Serve(p.grpc) })
	if p.ops != nil {
		n.ops = transport.NewHTTPServer(transport.HTTPConfig{Logger: n.log}, n.opsHandler())
		n.serve("metrics and health", func() error { return transport.Serve(n.ops, p.ops) })
	}
	if p.pprof != nil {
		n.pprof = transport.NewHTTPServer(transport.HTTPConfig{Logger: n.log, Limits: transport.Limits{WriteTimeout: pprofWrite}}, pprofHandler())
		n.serve("pprof", func() error { return transport.Serve(n.pprof, p.pprof) })
	}
	return nil
}

// serve runs a face. If the face ends by itself, the node ends too.
func (n *Node) serve(name string, run func() error) {
	n.serving.Go(func() {
		if err := run(); err != nil {
			n.fail(fmt.Errorf("%s: %w", name, err))
		}
	})
}

// fail ends the node's service for good, as its answers could be wrong from now
// on.
func (n *Node) fail(err error) {
	n.once.Do(func() {
		n.log.Error("node stopped", "err", err)
		n.fault.Store(&err)
		close(n.done)
	})
}

// Done is closed when the node can no longer serve; Err says why.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err returns why Done was closed; nil before, and after a graceful stop.
func (n *Node) Err() error {
	if err := n.fault.Load(); err != nil {
		return *err
	}
	return nil
}

// Addresses returns the addresses at which the node actually listens.
func (n *Node) Addresses() Addresses { return n.addresses }

// Engine returns the node's engine.
func (n *Node) Engine() *keyengine.Engine { return n.engine }

// Cluster returns the node's part of the cluster.
func (n *Node) Cluster() *cluster.Node { return n.cluster }

// AuditLog returns the node's copy of the audit log.
func (n *Node) AuditLog() *auditlog.Log { return n.audit.Log }

// Metrics returns the node's metrics.
func (n *Node) Metrics() prometheus.Gatherer { return n.registry }

// Reload reads the TLS files again, which new connections then use. A newer
// certificate revocation list also applies to open connections.
func (n *Node) Reload() error {
	err := n.identity.Reload()
	if err == nil {
		n.log.Info("certificates reloaded", "not_after", n.identity.NotAfter())
		n.noteCRLs()
	}
	return errors.Join(err, n.readCRLs())
}

// Stop stops the node: new requests are refused, those in flight finish, the
// newest audit records are signed, leadership is handed over, and the keys are
// wiped. It takes at most Config.ShutdownTimeout, or until ctx ends.
func (n *Node) Stop(ctx context.Context) error {
	var errs []error
	n.stop.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, n.shutdownTimeout())
		defer cancel()
		errs = n.shutdown(ctx)
		n.once.Do(func() { close(n.done) })
	})
	return errors.Join(errs...)
}

func (n *Node) shutdownTimeout() time.Duration {
	if t := n.cfg.ShutdownTimeout; t != 0 {
		return t
	}
	return 10 * time.Second
}

func (n *Node) shutdown(ctx context.Context) (errs []error) {
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	// Both faces drain concurrently, but not for ever: without a majority,
	// requests wait for an outcome until the node leaves the cluster.
	draining, cancel := context.WithTimeout(ctx, n.shutdownTimeout()/2)
	defer cancel()
	var faces sync.WaitGroup
	if n.aws != nil {
		faces.Go(func() {
			if n.aws.Shutdown(draining) != nil {
				n.aws.Close()
			}
		})
	}
	if n.grpc != nil {
		faces.Go(func() { n.grpc.Stop(draining) })
	}
	drained := make(chan struct{})
	go func() {
		faces.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-draining.Done():
	}
	if n.audit != nil {
		n.audit.OnNoSpace(nil) // stopping must not wait for space
	}
	if n.engine != nil && n.Err() == nil && !n.engine.Sealed() {
		n.engine.Sinks.Rest(ctx)
		note("signing the last checkpoint", n.engine.Checkpoint(ctx))
	}
	n.endLife()
	if n.cluster != nil {
		note("leaving the cluster", n.cluster.Shutdown(ctx))
	}
	<-drained
	for _, s := range []*http.Server{n.ops, n.pprof} {
		if s != nil {
			s.Close()
		}
	}
	n.serving.Wait()
	if n.engine != nil {
		note("wiping keys", n.engine.Close())
	}
	if n.audit != nil {
		note("closing the audit log", n.audit.Close())
	}
	return errs
}
