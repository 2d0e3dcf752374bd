package keyengine

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/alert"
	"github.com/conclavekms/conclave/keyengine/auditarchive"
	"github.com/conclavekms/conclave/keyengine/auditsink"
	"github.com/conclavekms/conclave/keyengine/auditwitness"
	"github.com/conclavekms/conclave/keyengine/backup"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/attest"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/auditindex"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/metering"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/rewrap"
	"github.com/conclavekms/conclave/keyengine/internal/schedule"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/internal/webidentity"
	"github.com/conclavekms/conclave/keyengine/joining"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/peerunseal"
	"github.com/conclavekms/conclave/keyengine/seal"
)

// Clock is the engine's source of time. Tests replace it.
type Clock interface{ Now() time.Time }

// AuditLog is the part of the node's audit log that the engine uses. *auditlog.Log
// implements it.
type AuditLog interface {
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
	Size() uint64
	Changed() <-chan struct{}
	Marks(segment uint64) ([]int64, error)
	Remember(segment uint64, marks []int64)
	Forget(segment uint64)
	Sync() error
	WriteCheckpoint(note []byte) error
	Checkpoint() []byte
	ProveInclusion(index, size uint64) ([]auditlog.Hash, error)
	ProveConsistency(old, size uint64) ([]auditlog.Hash, error)
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
	// RefusalBurst the number at once; the defaults are 10, and fifty times the rate. A
	// principal that exceeds them is throttled, so that refusals cannot flood the log.
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

	// Peers gives access to the other nodes for peer-assisted unsealing. If nil, there is
	// none on this node.
	Peers peerunseal.Peers
	// Seals unseal this node when it starts.
	Seals []seal.Seal
	// CA and Members are what machines that join with a token need.
	CA      joining.CA
	Members joining.Members

	// Alerts are the names of the rules of package alert that are on. AlertsFile is where this
	// node remembers what principals have done; it is required if there are any.
	Alerts     []string
	AlertsFile string

	// UsageFile is where the requests are counted; empty for nowhere.
	UsageFile string
	// Sinks receive the audit log while this node leads.
	Sinks []auditsink.Sink
	// Witnesses cosign the checkpoints of the audit log; nil for nobody.
	Witnesses *auditwitness.Configuration

	// Archive says where the audit log is archived, and from when on the nodes remove what is
	// there. Segments are removed from ArchivedLog, which may be nil if there is no archive.
	Archive     auditarchive.Policy
	ArchivedLog auditarchive.Log

	// AuditIndex is the file with the index of the audit log. If empty, there is none.
	AuditIndex string

	// Release is the version of the program, and Settings are those settings of this node that
	// matter to its security and are not the default, by name. Both are in the record StartNode,
	// which is made when the node is unsealed for the first time since it started. If Settings is
	// nil, there is no such record.
	Release  string
	Settings map[string]string

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
	// metered says who made how many requests.
	metered
	// The proofs show others what is in the audit log.
	proofs
	// The searches find records of the audit log.
	searches
	// streaming says how far those are who receive the audit log.
	streaming
	// Backups writes backups of the cluster.
	Backups *backup.Saver
	// PeerUnseal lets unsealed nodes unseal others that restart.
	PeerUnseal *peerunseal.Service
	// Seals unseal this node by keys outside of the cluster.
	Seals *seal.Service
	// Joining has the cluster's CA, and lets machines join with a token.
	Joining *joining.Service
	// Sinks receive the audit log.
	Sinks *auditsink.Service
	// Witnesses cosign the checkpoints of the audit log.
	Witnesses *auditwitness.Service
	// Archive archives the audit log.
	Archive *auditarchive.Service

	alerts     *alert.Service // nil if no rule is on
	cfg        Config
	replica    Replica
	clock      Clock
	log        *slog.Logger
	vault      *vault.Vault
	feed       *auditfeed.Feed
	meter      *metering.Meter   // nil if nothing is counted
	index      *auditindex.Index // nil if there is none
	events     *record.Recorder
	withheld   *record.Withheld
	checkpoint checkpointing
	limits     *limits
	services   *request.Services
	newest     atomic.Pointer[clusterState] // the last applied state
	metrics    *metrics
	refusals   map[string]time.Time // when each node was last reported; used by OnApply only
}

// CheckLockedMemory reports whether this process may lock the memory that an engine keeps
// keys in, as New does.
func CheckLockedMemory() error {
	v, err := vault.New(time.Now, true)
	if err != nil {
		return err
	}
	return v.Close()
}

// New returns a sealed engine.
func New(cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{cfg: cfg, replica: cfg.Replica, clock: cfg.Clock, log: cfg.Logger, refusals: make(map[string]time.Time)}
	e.mappings, e.metered, e.proofs, e.searches, e.streaming = mappings{e}, metered{e}, proofs{e}, searches{e}, streaming{e}
	var err error
	if e.vault, err = vault.New(cfg.Clock.Now, !cfg.AllowUnlockedMemory); err != nil {
		return nil, err
	}
	if !e.vault.Arena().Locked() {
		cfg.Logger.Warn("key memory is not locked: the system may swap keys out")
	}
	e.feed = &auditfeed.Feed{Log: cfg.Audit, Vault: e.vault}
	if cfg.UsageFile != "" {
		e.meter = metering.New(metering.Config{Path: cfg.UsageFile, Feed: e.feed, Log: cfg.Logger})
	}
	if cfg.AuditIndex != "" {
		e.index = auditindex.New(auditindex.Config{
			Path: cfg.AuditIndex, Log: cfg.Audit, Feed: e.feed, Vault: e.vault, MayGrow: cfg.MayGrow, Logger: cfg.Logger,
		})
	}
	e.checkpoint.every = checkpointEvery
	e.limits = newLimits(cfg)
	stores, err := keystore.Open(cfg.KeyStores, cfg.Clock.Now)
	if err != nil {
		return nil, errors.Join(err, e.vault.Close())
	}
	e.metrics = newMetrics(cfg, e)
	e.events = &record.Recorder{Node: cfg.NodeID, Vault: e.vault, Replica: cfg.Replica, Clock: cfg.Clock, Log: cfg.Logger, Pending: record.NewPending()}
	if cfg.Settings != nil {
		e.events.Pending.Add(startNode(cfg))
	}
	e.withheld = &record.Withheld{Late: e.metrics.late, Pending: e.events.Pending}
	e.Authenticator = iam.NewAuthenticator(iam.AuthenticatorConfig{
		Vault: e.vault, Replica: cfg.Replica, Clock: cfg.Clock, Log: cfg.Logger, Events: e.events, Withheld: e.withheld, Forged: e.metrics.forged,
	})
	e.Backups = backup.New(backup.Config{NodeID: cfg.NodeID, Vault: e.vault, Audit: cfg.Audit, Clock: cfg.Clock, Events: e.events})
	e.services = &request.Services{
		NodeID: cfg.NodeID, MayGrow: cfg.MayGrow,
		Authenticator: e.Authenticator, Vault: e.vault, Clock: cfg.Clock, Log: cfg.Logger, Quotas: cfg.Quotas.OrDefault(),
		Policies: request.NewPolicyCache(), Keys: request.NewKeyCount(), Users: request.NewUserCount(), Stores: stores, Issuers: webidentity.NewIssuers(cfg.WebIdentities, cfg.Clock.Now), Index: e.index, AttestationRoots: cfg.AttestationRoots, ClusterOf: e.cluster,
	}
	e.PeerUnseal = peerunseal.New(peerunseal.Config{
		NodeID: cfg.NodeID, Peers: cfg.Peers, Vault: e.vault, Replica: cfg.Replica, Events: e.events, Clock: cfg.Clock, Log: cfg.Logger,
		Released: e.metrics.unsealParts.Inc, Refused: e.metrics.unsealSuspects.Inc, Fresh: e.Authenticator.FreshState,
	})
	e.Seals = seal.New(seal.Config{
		NodeID: cfg.NodeID, Seals: cfg.Seals, Vault: e.vault, Replica: cfg.Replica, Events: e.events, Clock: cfg.Clock, Log: cfg.Logger,
	})
	if len(cfg.Alerts) > 0 {
		e.alerts = alert.New(alert.Config{
			Rules: cfg.Alerts, Path: cfg.AlertsFile, Feed: e.feed, State: cfg.Replica.State, Events: e.events, Clock: cfg.Clock,
			Recorded: e.metrics.alerts, Log: cfg.Logger,
		})
	}
	e.Joining = joining.New(joining.Config{
		NodeID: cfg.NodeID, CA: cfg.CA, Members: cfg.Members, Vault: e.vault, Replica: cfg.Replica, Events: e.events, Clock: cfg.Clock, Log: cfg.Logger,
		Fresh: e.Authenticator.FreshState,
	})
	if e.Sinks, err = auditsink.New(auditsink.Config{
		NodeID: cfg.NodeID, Sinks: cfg.Sinks, Feed: e.feed, Vault: e.vault, Replica: cfg.Replica, Events: e.events, Log: cfg.Logger, Metrics: cfg.Metrics,
	}); err != nil {
		return nil, errors.Join(err, e.vault.Close())
	}
	if e.Witnesses, err = auditwitness.New(auditwitness.Config{
		Configuration: cfg.Witnesses, Log: cfg.Audit, LogKey: e.VerifierKey, Leads: cfg.Replica.IsLeader, AskLeader: e.askCosigned, Logger: cfg.Logger, Metrics: cfg.Metrics,
	}); err != nil {
		return nil, errors.Join(err, e.vault.Close())
	}
	if e.Archive, err = auditarchive.New(auditarchive.Config{
		Policy: cfg.Archive, Log: cfg.ArchivedLog, Read: func(index uint64) bool { return readBelow(e, index) }, Vault: e.vault, Replica: cfg.Replica, Events: e.events, Logger: cfg.Logger, Metrics: cfg.Metrics,
	}); err != nil {
		return nil, errors.Join(err, e.vault.Close())
	}
	e.Ceremonies = ceremony.New(ceremony.Config{
		NodeID: cfg.NodeID, Vault: e.vault, Replica: cfg.Replica, Clock: cfg.Clock, Log: cfg.Logger, Events: e.events,
		Fresh: e.Authenticator.FreshState, ShareTimeout: cfg.ShareTimeout, Services: e.services,
		Sealing: e.sealing, Waiting: func() string { return joined(e.PeerUnseal.Status(), e.Seals.Status()) }, Opened: e.Seals.Opened,
	})
	return e, nil
}

// readBelow reports whether all that follows the audit log on this node, and its sinks, have
// read the records below an index.
func readBelow(e *Engine, index uint64) bool {
	return (e.index == nil || e.index.Indexed() >= index) && (e.meter == nil || e.meter.Has(index)) && (e.alerts == nil || e.alerts.Has(index)) &&
		e.Sinks.Has(index)
}

// startNode returns the event of a node that starts.
func startNode(cfg Config) record.Event {
	details := []*auditpb.Field{auditfield.Text("node", cfg.NodeID), auditfield.Text("release", cfg.Release)}
	for _, name := range slices.Sorted(maps.Keys(cfg.Settings)) {
		details = append(details, auditfield.Text(name, cfg.Settings[name]))
	}
	return record.ServiceEvent("StartNode", cfg.Clock.Now(), details...)
}

// sealing prepares for being sealed by an operator.
func (e *Engine) sealing() (add func(*fsm.State, *record.Event), done func()) {
	e.Sinks.Rest(context.Background()) // it takes no more than a few seconds
	return e.PeerUnseal.Forget()
}

// joined joins the texts that are not empty.
func joined(texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(t string) bool { return t == "" }), "; ")
}

// OnApply keeps the engine's caches in step with the state. The node calls it after it has
// published a state. It does not block.
func (e *Engine) OnApply(s *fsm.State, ev fsm.Events) {
	c, _ := s.Cluster()
	e.newest.Store(&clusterState{s, c})
	e.vault.Follow(ev)
	_ = e.Adopt(c) // Expire tries again
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
	if e.meter != nil {
		wg.Go(func() { e.meter.Run(ctx) })
	}
	wg.Go(func() { e.runThrottled(ctx) })
	if e.index != nil {
		wg.Go(func() { e.index.Run(ctx) })
	}
	wg.Go(func() { e.Witnesses.Run(ctx) })
	wg.Go(func() { e.Archive.Run(ctx) })
	wg.Go(func() { e.PeerUnseal.Run(ctx) })
	wg.Go(func() { e.Seals.Run(ctx) })
	if e.alerts != nil {
		wg.Go(func() { e.alerts.Run(ctx) })
	}
}

// Lead does the work of the leader until ctx ends: deleting keys whose waiting period is over,
// for example, and wrapping by a new generation of the keyring what older ones wrap.
func (e *Engine) Lead(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		rewrap.New(rewrap.Config{Vault: e.vault, Replica: e.replica, Events: e.events, Log: e.log}).Run(ctx)
	})
	if e.alerts != nil {
		wg.Go(func() { e.alerts.Lead(ctx) })
	}
	wg.Go(func() { e.Sinks.Lead(ctx) })
	wg.Go(func() { e.Witnesses.Lead(ctx) })
	wg.Go(func() { e.Archive.Lead(ctx) })
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
