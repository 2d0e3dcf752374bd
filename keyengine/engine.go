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
	"github.com/conclavekms/conclave/keyengine/backup"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/attest"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/internal/webidentity"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Clock is the engine's source of time. Tests replace it.
type Clock interface{ Now() time.Time }

// AuditLog is the part of the node's audit log that the engine uses. *auditlog.Log
// implements it.
type AuditLog interface {
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
	Size() uint64
	Changed() <-chan struct{}
	Sync() error
	WriteCheckpoint(note []byte) error
}

// Config configures an Engine.
type Config struct {
	// NodeID is written to the records that this node proposes.
	NodeID  string
	Replica Replica
	Audit   AuditLog
	Clock   Clock
	Logger  *slog.Logger
	Metrics prometheus.Registerer

	// AllowUnlockedMemory permits keys in memory that may be swapped out, on systems where
	// memory cannot be locked.
	AllowUnlockedMemory bool
	// ShareTimeout is how long the shares of an unfinished ceremony are kept. The default
	// is fifteen minutes.
	ShareTimeout time.Duration
	// RefusalRate is the number of refusals per second that one principal may cause, and
	// RefusalBurst the number at once; the defaults are 10 and 500. A principal that
	// exceeds them is throttled, so that refusals cannot flood the log.
	RefusalRate  float64
	RefusalBurst int
	// AttestationRoots are the root certificates for attestation documents of enclaves. If
	// nil, requests with a Recipient are refused.
	AttestationRoots *x509.CertPool

	// MayGrow reports whether the nodes' disks have room for operations that make the state
	// grow, and DiskFull whether this node's disk is full. If nil, there is no such check.
	MayGrow, DiskFull func() bool

	KeyStores keystore.Config

	WebIdentities webidentity.Config

	Quotas request.Quotas

	// Seeds allows Plant to create keys whose material is known, for development.
	Seeds bool
}

// Engine answers requests on one node. It is safe for concurrent use.
type Engine struct {
	// The Authenticator establishes the identity of callers.
	*iam.Authenticator
	// Ceremonies initialise the cluster and seal and unseal the node.
	*ceremony.Ceremonies
	// The mappings say who the clients with certificates are.
	mappings
	// Backups writes backups of the cluster.
	Backups *backup.Saver

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
	newest     atomic.Pointer[clusterState] // the last applied state
	metrics    *metrics
	refusals   map[string]time.Time // when each node was last reported; used by OnApply only
}

// New returns a sealed engine.
func New(cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{cfg: cfg, replica: cfg.Replica, clock: cfg.Clock, log: cfg.Logger, refusals: make(map[string]time.Time)}
	e.mappings = mappings{e}
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
	e.Backups = backup.New(backup.Config{NodeID: cfg.NodeID, Vault: e.vault, Audit: cfg.Audit, Clock: cfg.Clock, Events: e.events})
	e.services = &request.Services{
		NodeID: cfg.NodeID, MayGrow: cfg.MayGrow,
		Authenticator: e.Authenticator, Vault: e.vault, Clock: cfg.Clock, Log: cfg.Logger, Quotas: cfg.Quotas.OrDefault(),
		Policies: request.NewPolicyCache(), Keys: request.NewKeyCount(), Users: request.NewUserCount(), Stores: stores, Issuers: webidentity.NewIssuers(cfg.WebIdentities, cfg.Clock.Now), AttestationRoots: cfg.AttestationRoots, ClusterOf: e.cluster,
	}
	e.Ceremonies = ceremony.New(ceremony.Config{
		NodeID: cfg.NodeID, Vault: e.vault, Replica: cfg.Replica, Clock: cfg.Clock, Log: cfg.Logger, Events: e.events,
		Fresh: e.Authenticator.FreshState, ShareTimeout: cfg.ShareTimeout, Services: e.services,
	})
	return e, nil
}

// OnApply keeps the engine's caches in step with the state. The node calls it after it has
// published a state. It does not block.
func (e *Engine) OnApply(s *fsm.State, ev fsm.Events) {
	c, _ := s.Cluster()
	e.newest.Store(&clusterState{s, c})
	e.vault.Follow(ev)
	e.refused(ev.Refused)
	e.brokenGlass(ev.BreakGlass)
}

// brokenGlass makes the access keys of break-glass ceremonies known on every node. A key that
// has ended is one of an entry that is applied again after a restart.
func (e *Engine) brokenGlass(keys []*fsmpb.Credential) {
	for _, c := range keys {
		until := time.Unix(0, c.BreakGlassUntil)
		if !e.clock.Now().Before(until) {
			continue
		}
		e.metrics.breakGlass.Inc()
		e.log.Error("BREAK GLASS: the custodians let the root user of an account in; the audit log says why (CompleteBreakGlass)",
			"account", fsm.Account(c.Account).String(), "access_key", c.Id, "until", until.UTC().Format(time.RFC3339))
	}
}

// clusterState caches the cluster record of a state, because every request needs it.
type clusterState struct {
	state   *fsm.State
	cluster *fsmpb.Cluster
}

// cluster returns the cluster record of a state, or nil before Init.
func (e *Engine) cluster(s *fsm.State) *fsmpb.Cluster {
	if n := e.newest.Load(); n != nil && n.state == s {
		return n.cluster
	}
	c, _ := s.Cluster()
	return c
}

// Run does the engine's background work until ctx ends: it signs checkpoints, drops
// abandoned ceremonies, and records events that happened while the node was sealed.
func (e *Engine) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { e.runCheckpoints(ctx) })
	wg.Go(func() { e.events.Run(ctx) })
	wg.Go(func() { e.runSweeps(ctx) })
	wg.Go(func() { e.runThrottled(ctx) })
}

// Lead does the work of the leader until ctx ends, such as deleting keys whose waiting
// period is over.
func (e *Engine) Lead(ctx context.Context) {
	schedule.New(schedule.Config{Services: e.services, Replica: e.replica, Events: e.events}).Run(ctx)
}

// Close seals the node and releases its locked memory. It records nothing: for a record,
// call Seal and Checkpoint first, while the node can still reach its peers.
func (e *Engine) Close() error {
	e.Authenticator.Close()
	e.services.Stores.Close()
	e.services.Issuers.Close()
	return e.vault.Close()
}

// runSweeps wipes, every second until ctx ends, the shares of abandoned ceremonies and
// cached keys that no longer exist.
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

// hasRoom refuses all requests while this node's disk is full.
func (e *Engine) hasRoom() error {
	if e.cfg.DiskFull == nil || !e.cfg.DiskFull() {
		return nil
	}
	return kmsapi.Errorf(kmsapi.ErrUnavailable, "The disk of this node is full. Ask another node, or make room.")
}

// ParseAttestationRoots parses PEM certificates for Config.AttestationRoots.
func ParseAttestationRoots(pem []byte) (*x509.CertPool, error) { return attest.ParseRoots(pem) }
