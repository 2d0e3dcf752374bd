// Package rewrap wraps by the newest generation of the keyring what older generations still
// wrap: the material of keys, the secrets and MACs of credentials, the secrets of key
// stores, and the key of the CA. Once nothing is left, the generation is settled.
//
// What is left to do is found in the state itself, so the work goes on after any failure, on
// whichever node leads. Each record depends on the versions of the objects that it changes:
// if one has changed in the meantime, nothing happens, and the next round finds what is left.
package rewrap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	// look is how often the leader looks whether there is a generation to settle, and again
	// how often it looks for what another node has since wrapped by an older generation.
	look  = time.Second
	again = 10 * time.Minute

	// A record wraps at most batch objects, of at most batchBytes. Between two records, the
	// leader rests for pause, or for twice as long as the record took: requests come first.
	batch      = 16
	batchBytes = 128 << 10
	pause      = 20 * time.Millisecond
	// passTime bounds how long one state is read, and thus kept in memory.
	passTime = 10 * time.Second

	// SettleAfter is how long, in cluster time, the key of a new generation is handed over
	// in the state, at least. A node that is unsealed and lags further behind than that is
	// sealed once it catches up.
	SettleAfter = 5 * time.Minute
)

// Replica is the part of the replicated log that is used here.
type Replica interface {
	State() *fsm.State
	// IsLeader reports whether this node believes that it leads.
	IsLeader() bool
}

// Config configures a Rewrapper.
type Config struct {
	Vault   *vault.Vault
	Replica Replica
	Events  *record.Recorder
	Log     *slog.Logger
}

// Rewrapper does the work of one node while it leads.
type Rewrapper struct {
	cfg    Config
	clean  uint32    // newest generation for which nothing was left, when looked at last
	looked time.Time // when that was
	pause  func(ctx context.Context, d time.Duration)
}

// New returns a Rewrapper.
func New(cfg Config) *Rewrapper {
	return &Rewrapper{cfg: cfg, pause: func(ctx context.Context, d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}}
}

// Run wraps what is left until ctx ends, while this node leads and is unsealed.
func (r *Rewrapper) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if r.cfg.Replica.IsLeader() {
			if _, err := r.Round(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, vault.ErrSealed) {
				r.cfg.Log.Warn("wrapping by the newest generation of the keyring failed and will be retried", "err", err)
				r.pause(ctx, 5*look)
			}
		}
		r.pause(ctx, look)
	}
}

// errLeft says that objects have changed while they were wrapped.
var errLeft = errors.New("some objects changed meanwhile")

// Round wraps everything that an older generation wraps, and settles the newest one if that
// was all and its time has come. It returns the number of objects that it has wrapped.
func (r *Rewrapper) Round(ctx context.Context) (wrapped int, err error) {
	o, err := r.cfg.Vault.Current()
	if err != nil {
		return 0, err
	}
	s := r.cfg.Replica.State()
	c, _ := s.Cluster()
	if len(c.GetKeyring()) < 2 {
		return 0, nil
	}
	newest := c.Keyring[len(c.Keyring)-1]
	if newest.Generation != vault.Newest(o) {
		return 0, vault.ErrBehind
	}
	handedOver := len(newest.Handover) == 0
	if r.clean != newest.Generation || time.Since(r.looked) >= again {
		if wrapped, err = r.pass(ctx, s, o, newest.Generation); err == errLeft {
			return wrapped, nil
		} else if err != nil {
			return wrapped, err
		}
		if wrapped > 0 {
			r.cfg.Log.Info("wrapped by the newest generation of the keyring", "generation", newest.Generation, "objects", wrapped)
			return wrapped, nil // and look again
		}
		r.clean, r.looked = newest.Generation, time.Now()
	}
	if !handedOver && s.Time()-newest.Created >= int64(SettleAfter) {
		// A node may have wrapped something by the old generation since.
		if wrapped, err = r.pass(ctx, r.cfg.Replica.State(), o, newest.Generation); err == nil && wrapped == 0 {
			err = r.settle(ctx, newest.Generation)
		} else if err == errLeft {
			err = nil
		}
	}
	return wrapped, err
}

// rewrapped is an object that is to be put.
type rewrapped struct {
	change *fsmpb.Change
	size   int
}

// pass wraps what a state has that an older generation wraps, or a part of it. It returns
// errLeft if something has changed meanwhile. An object that cannot be unwrapped is left as
// it is: no generation would help.
func (r *Rewrapper) pass(ctx context.Context, s *fsm.State, o *vault.Opened, generation uint32) (wrapped int, err error) {
	var changes []*fsmpb.Change
	size, left, start := 0, false, time.Now()
	flush := func() error {
		if len(changes) == 0 {
			return nil
		}
		began := time.Now()
		err := r.commit(ctx, s, changes, generation, wrapped+len(changes))
		switch {
		case err == record.ErrConflict:
			left = true
		case err != nil:
			return err
		default:
			wrapped += len(changes)
		}
		changes, size = nil, 0
		r.pause(ctx, max(pause, 2*time.Since(began)))
		return ctx.Err()
	}
	for n, err := range stale(s, o) {
		if errors.Is(err, vault.ErrSealed) || errors.Is(err, vault.ErrBehind) || errors.Is(err, vault.ErrNoRoom) {
			return wrapped, err
		}
		if err != nil {
			r.cfg.Log.Error("the state has something that the keyring does not open, and that is not wrapped again", "err", err)
			continue
		}
		if len(changes) == batch || len(changes) > 0 && size+n.size > batchBytes {
			if err := flush(); err != nil {
				return wrapped, err
			}
			if time.Since(start) >= passTime {
				break
			}
		}
		changes, size = append(changes, n.change), size+n.size
	}
	if err := flush(); err != nil {
		return wrapped, err
	}
	if left {
		return wrapped, errLeft
	}
	return wrapped, nil
}

// stale returns what an older generation wraps, wrapped again.
func stale(s *fsm.State, o *vault.Opened) iter.Seq2[rewrapped, error] {
	return func(yield func(rewrapped, error) bool) {
		give := func(m proto.Message, c *fsmpb.Change, err error) bool {
			if err != nil {
				return yield(rewrapped{}, err)
			}
			return yield(rewrapped{c, proto.Size(m)}, nil)
		}
		cluster, _ := s.Cluster()
		if n, err := vault.RewrapAuthority(o, cluster); (n != nil || err != nil) && !give(n, &fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: n}}, err) {
			return
		}
		for k := range s.AllKeys() {
			if n, err := vault.RewrapKey(o, k); (n != nil || err != nil) && !give(n, &fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: n}}, err) {
				return
			}
		}
		for c := range fsm.Objects[*fsmpb.Credential](s, nil, "") {
			n, err := vault.RewrapCredential(o, c)
			if err != nil {
				err = fmt.Errorf("credential %s: %w", c.Id, err)
			}
			if (n != nil || err != nil) && !give(n, &fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: n}}, err) {
				return
			}
		}
		for k := range fsm.Objects[*fsmpb.KeyStore](s, nil, "") {
			if n, err := vault.RewrapStore(o, k); (n != nil || err != nil) && !give(n, &fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: n}}, err) {
				return
			}
		}
	}
}

// commit puts objects, provided that none of them has changed since s. Its record says how
// many there have been in this round.
func (r *Rewrapper) commit(ctx context.Context, s *fsm.State, changes []*fsmpb.Change, generation uint32, sofar int) error {
	ev := r.event("RewrapSecrets", generation, auditfield.Number("objects", len(changes)), auditfield.Number("objectsInRound", sofar))
	ev.Changes = changes
	for _, c := range changes {
		kind, id, ok := fsm.Subject(c)
		if !ok {
			return fmt.Errorf("a change of %T has no subject", c.Change)
		}
		ev.Reads = append(ev.Reads, &fsmpb.Read{Kind: kind, Id: id, Version: s.VersionOf(kind, id)})
	}
	d, err := r.cfg.Events.Propose(ctx, ev)
	return r.cfg.Events.Settle(ctx, d, err)
}

// settle ends the handover of a generation.
func (r *Rewrapper) settle(ctx context.Context, generation uint32) error {
	_, err := r.cfg.Events.CommitEvent(ctx, func(s *fsm.State) (record.Event, error) {
		c, version := s.Cluster()
		n := proto.CloneOf(c)
		newest := n.Keyring[len(n.Keyring)-1]
		if newest.Generation != generation || len(newest.Handover) == 0 {
			return record.Event{}, errLeft
		}
		newest.Handover = nil
		ev := r.event("SettleKeyring", generation)
		ev.ReplaceCluster(version, n)
		return ev, nil
	})
	if err == errLeft || err == record.ErrConflict {
		return nil // another leader did it, or the record has changed: the next round will see
	}
	if err == nil {
		r.cfg.Log.Info("everything is wrapped by the newest generation of the keyring", "generation", generation)
	}
	return err
}

func (r *Rewrapper) event(name string, generation uint32, details ...*auditpb.Field) record.Event {
	ev := record.ServiceEvent(name, r.cfg.Events.Clock.Now(), append([]*auditpb.Field{auditfield.Number("generation", int(generation))}, details...)...)
	ev.Kind = record.KindOperator
	return ev
}
