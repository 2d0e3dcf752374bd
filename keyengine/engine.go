package keyengine

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/attest"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Clock is the engine's time; tests turn it.
type Clock interface{ Now() time.Time }

// AuditLog is what the engine needs of the node's audit log; *auditlog.Log is one.
type AuditLog interface {
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
	Size() uint64
	Changed() <-chan struct{}
	Sync() error
	WriteCheckpoint(note []byte) error
}

// Config is what an engine works with.
type Config struct {
	// NodeID stands in the records that this node originates.
	NodeID  string
	Replica Replica
	Audit   AuditLog
	Clock   Clock
	Logger  *slog.Logger
	Metrics prometheus.Registerer

	// AllowUnlockedMemory lets keys stand in memory that the system may swap out,
	// where locking is not permitted.
	AllowUnlockedMemory bool
	// ShareTimeout is how long shares of an unfinished ceremony are kept; 0 for
	// fifteen minutes.
	ShareTimeout time.Duration
	// RefusalRate bounds the refusals that one principal may cause a second, and
	// RefusalBurst at once; 0 for 10 and 500. Beyond it the principal is
	// throttled, so that refusals cannot flood the log.
	RefusalRate  float64
	RefusalBurst int
	// AttestationRoots are what the attestation documents of enclaves have to chain
	// to; nil refuses requests with a Recipient.
	AttestationRoots *x509.CertPool

	// MayGrow reports whether the nodes' disks have room for what makes the state
	// grow, and DiskFull whether this one's has none; nil for not to be asked.
	MayGrow, DiskFull func() bool

	KeyStores keystore.Config

	Quotas request.Quotas

	// Seeds lets Plant make keys whose material is known: for development.
	Seeds bool
}

// Engine answers requests on one node. It is safe for concurrent use.
type Engine struct {
	// Who callers are.
	*iam.Authenticator
	// What operators do with its seal.
	*ceremony.Ceremonies

	cfg        Config
	replica    Replica
	clock      Clock
	log        *slog.Logger
	vault      *vault.Vault
	events     *record.Recorder
	withheld   *record.Withheld
	checkpoint checkpointing
	limits     *limits
	services   *request.Services
	newest     atomic.Pointer[clusterState] // that was applied
	metrics    *metrics
	refusals   map[string]time.Time // when a node was named last; OnApply's alone
}

// New returns a sealed engine.
func New(cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{cfg: cfg, replica: cfg.Replica, clock: cfg.Clock, log: cfg.Logger, refusals: make(map[string]time.Time)}
	var err error
	if e.vault, err = vault.New(cfg.Clock.Now, !cfg.AllowUnlockedMemory); err != nil {
		return nil, err
	}
	if !e.vault.Arena().Locked() {
		cfg.Logger.Warn("key memory is not locked: the system may swap keys out")
	}
	e.checkpoint.every = checkpointEvery
	e.limits = newLimits(cfg)
	stores, err := keystore.Open(cfg.KeyStores, cfg.Clock.Now)
	if err != nil {
		return nil, errors.Join(err, e.vault.Close())
	}
	e.metrics = newMetrics(cfg, e)
	e.events = &record.Recorder{Node: cfg.NodeID, Vault: e.vault, Replica: cfg.Replica, Clock: cfg.Clock, Log: cfg.Logger, Pending: record.NewPending()}
	e.withheld = &record.Withheld{Late: e.metrics.late, Pending: e.events.Pending}
	e.Authenticator = iam.NewAuthenticator(iam.AuthenticatorConfig{
		Vault: e.vault, Replica: cfg.Replica, Clock: cfg.Clock, Log: cfg.Logger, Events: e.events, Withheld: e.withheld, Forged: e.metrics.forged,
	})
	e.Ceremonies = ceremony.New(ceremony.Config{
		NodeID: cfg.NodeID, Vault: e.vault, Replica: cfg.Replica, Clock: cfg.Clock, Log: cfg.Logger, Events: e.events,
		Fresh: e.Authenticator.FreshState, ShareTimeout: cfg.ShareTimeout,
	})
	e.services = &request.Services{
		NodeID: cfg.NodeID, MayGrow: cfg.MayGrow,
		Authenticator: e.Authenticator, Vault: e.vault, Clock: cfg.Clock, Log: cfg.Logger, Quotas: cfg.Quotas.OrDefault(),
		Policies: request.NewPolicyCache(), Keys: new(request.KeyCount), Stores: stores, AttestationRoots: cfg.AttestationRoots, ClusterOf: e.cluster,
	}
	return e, nil
}

// OnApply keeps the engine's caches in step with the state. The node calls it
// after each published state; it does not block.
func (e *Engine) OnApply(s *fsm.State, ev fsm.Events) {
	c, _ := s.Cluster()
	e.newest.Store(&clusterState{s, c})
	e.vault.Follow(ev)
	e.refused(ev.Refused)
}

// clusterState is a state with its cluster, which every request asks for.
type clusterState struct {
	state   *fsm.State
	cluster *fsmpb.Cluster
}

// cluster is the cluster's identity and seal in a state; nil before init.
func (e *Engine) cluster(s *fsm.State) *fsmpb.Cluster {
	if n := e.newest.Load(); n != nil && n.state == s {
		return n.cluster
	}
	c, _ := s.Cluster()
	return c
}

// Run does the engine's background work until ctx ends: signing checkpoints,
// dropping abandoned ceremonies, recording what happened while the node was
// sealed.
func (e *Engine) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { e.runCheckpoints(ctx) })
	wg.Go(func() { e.events.Run(ctx) })
	wg.Go(func() { e.runSweeps(ctx) })
	wg.Go(func() { e.runThrottled(ctx) })
}

// Lead does the work that only the leader does, while it leads: what is due on
// keys, such as deleting them.
func (e *Engine) Lead(ctx context.Context) {
	schedule.New(schedule.Config{Services: e.services, Replica: e.replica, Events: e.events}).Run(ctx)
}

// Close seals the node and gives its locked memory back. It records nothing: call
// Seal for that, and Checkpoint before, while the node still has peers.
func (e *Engine) Close() error {
	e.Authenticator.Close()
	e.services.Stores.Close()
	return e.vault.Close()
}

// runSweeps drops, every second until ctx ends, what must not be kept: shares of
// an abandoned ceremony, keys of what is no more.
func (e *Engine) runSweeps(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		e.Ceremonies.Expire()
		e.withheld.Record(e.replica.State())
		e.vault.Sweep(e.replica.State(), e.clock.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// hasRoom refuses everything while this node's disk is full.
func (e *Engine) hasRoom() error {
	if e.cfg.DiskFull == nil || !e.cfg.DiskFull() {
		return nil
	}
	return kmsapi.Errorf(kmsapi.ErrUnavailable, "The disk of this node is full. Ask another node, or make room.")
}

// ParseAttestationRoots reads the certificates, in PEM, that enclaves' attestation
// documents have to chain to: for Config.
func ParseAttestationRoots(pem []byte) (*x509.CertPool, error) { return attest.ParseRoots(pem) }
