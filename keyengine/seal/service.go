package seal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// neededLevel is the feature level from which on seals can be in the state.
	neededLevel = 2

	// tick is how often Run looks what there is to do. After a failure it waits for retry, or
	// for twice as long as before, up to maxRetry.
	tick     = 250 * time.Millisecond
	retry    = time.Second
	maxRetry = 30 * time.Second

	// pendingFor is how long a node keeps trying to add a seal after it was unsealed.
	pendingFor = 15 * time.Minute

	maxWrapped = 64 << 10 // bytes
)

// Config configures a Service. Everything but Seals is required.
type Config struct {
	NodeID  string
	Seals   []Seal // that this node is configured with
	Vault   *vault.Vault
	Replica record.Log
	Events  *record.Recorder
	Clock   record.Clock
	Log     *slog.Logger
}

// Service unseals one node by its seals. It is safe for concurrent use.
type Service struct {
	cfg Config

	mu sync.Mutex
	// was is set once the node was unsealed. A node that an operator seals afterwards is not
	// unsealed again by its seals until it restarts.
	was     bool
	status  string
	pending []*slot
}

// slot is a seal that is to be added.
type slot struct {
	seal  Seal
	key   *keymat.Secret // wraps the root key
	root  []byte
	epoch uint32 // of the cluster's record; another may have another root key
	until time.Time
}

// New returns the Service of a node.
func New(cfg Config) *Service {
	for _, s := range cfg.Seals {
		if strings.HasPrefix(s.Name(), "file:") {
			cfg.Log.Warn("THIS NODE IS UNSEALED BY A KEY FILE: whoever can read that file and a copy of the data, such as a backup, has all keys of the cluster. Use it only where that does not matter",
				"seal", s.Name())
		}
	}
	return &Service{cfg: cfg}
}

// Status says why the node's seals have not unsealed it yet; "" if there is nothing to say.
func (s *Service) Status() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Service) setStatus(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text != "" && text != s.status {
		s.cfg.Log.Warn("waiting to be unsealed", "status", text)
	}
	s.status = text
}

func about(c *fsmpb.Cluster, name string) Context {
	return Context{Cluster: record.ClusterID(c), Seal: name}
}

// find returns the seal with that name in the state, or nil.
func find(c *fsmpb.Cluster, name string) *fsmpb.Seal {
	for _, s := range c.GetSeals() {
		if s.GetName() == name {
			return s
		}
	}
	return nil
}

// Opened is called when the custodians have unsealed this node, with the root key. It prepares
// to add the seals that this node is configured with and that the state does not have.
func (s *Service) Opened(c *fsmpb.Cluster, root *keymat.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.was = true
	s.dropLocked()
	for _, seal := range s.cfg.Seals {
		if find(c, seal.Name()) != nil {
			continue
		}
		key, err := s.cfg.Vault.Arena().Random(keymat.KeySize)
		if err == nil {
			var wrapped []byte
			if wrapped, err = vault.WrapRoot(c, seal.Name(), key, root); err == nil {
				s.pending = append(s.pending, &slot{seal: seal, key: key, root: wrapped, epoch: c.Shares.GetEpoch(), until: time.Now().Add(pendingFor)})
				continue
			}
			key.Destroy()
		}
		s.cfg.Log.Error("a seal cannot be added", "seal", seal.Name(), "err", err)
	}
}

// dropLocked gives up all seals that were to be added.
func (s *Service) dropLocked() {
	for _, p := range s.pending {
		p.key.Destroy()
	}
	s.pending = nil
}

// Run unseals the node by its seals, and adds those that Opened has prepared, until ctx ends.
func (s *Service) Run(ctx context.Context) {
	if len(s.cfg.Seals) == 0 {
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.dropLocked()
	}()
	wait := time.NewTicker(tick)
	defer wait.Stop()
	var next time.Time
	pause := retry
	for {
		if now := time.Now(); !now.Before(next) {
			if s.step(ctx) {
				pause = retry
			} else {
				next, pause = now.Add(pause), min(2*pause, maxRetry)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
	}
}

// step does what there is to do now, and reports whether that was all.
func (s *Service) step(ctx context.Context) bool {
	sealed := s.cfg.Vault.Sealed()
	s.mu.Lock()
	s.was = s.was || !sealed
	if sealed {
		s.dropLocked()
	}
	asks, pending := sealed && !s.was, slices.Clone(s.pending)
	s.mu.Unlock()
	if asks {
		return s.unseal(ctx)
	}
	s.setStatus("")
	done := true
	for _, p := range pending {
		err := s.add(ctx, p)
		if err != nil {
			s.cfg.Log.Error("a seal is not added yet", "seal", p.seal.Name(), "err", err)
			if !errors.Is(err, ceremony.ErrNotUpgraded) && !errors.Is(err, errReplaced) && time.Now().Before(p.until) {
				done = false
				continue
			}
			s.cfg.Log.Error("the seal is not added: have the custodians unseal this node again", "seal", p.seal.Name())
		}
		s.mu.Lock()
		p.key.Destroy()
		s.pending = slices.DeleteFunc(s.pending, func(o *slot) bool { return o == p })
		s.mu.Unlock()
	}
	return done
}

// unseal tries the node's seals, and reports whether there is nothing left to try.
func (s *Service) unseal(ctx context.Context) bool {
	c, _ := s.cfg.Replica.State().Cluster()
	if c == nil {
		return true // not yet
	}
	var why []string
	for _, seal := range s.cfg.Seals {
		name := seal.Name()
		in := find(c, name)
		if in == nil {
			why = append(why, name+": the custodians have to unseal a node that is configured with it, so that it is added")
			continue
		}
		err := s.open(ctx, c, seal, in)
		if err == nil {
			s.cfg.Log.Info("node unsealed by a seal", "seal", name)
			s.cfg.Events.Pending.Add(record.ServiceEvent("UnsealBySeal", s.cfg.Clock.Now(), auditfield.Text("node", s.cfg.NodeID), auditfield.Text("seal", name)))
			s.mu.Lock()
			defer s.mu.Unlock()
			s.was, s.status = true, ""
			return true
		}
		why = append(why, name+": "+err.Error())
	}
	s.setStatus("auto-unseal: " + strings.Join(why, "; "))
	return false
}

func (s *Service) open(ctx context.Context, c *fsmpb.Cluster, seal Seal, in *fsmpb.Seal) error {
	key, err := seal.Unwrap(ctx, s.cfg.Vault.Arena(), in.WrappedKey, about(c, seal.Name()))
	if err != nil {
		return err
	}
	defer key.Destroy()
	keymat.Scrub(func() { err = s.cfg.Vault.OpenSealed(c, seal.Name(), key, in.WrappedRoot) })
	if err != nil {
		return fmt.Errorf("it does not have the cluster's root key, which may have been replaced: %w", err)
	}
	return nil
}

// errReplaced is returned when the root key or the shares were replaced meanwhile.
var errReplaced = errors.New("the cluster's keys were replaced since the custodians unsealed this node")

// add puts a seal into the state, with a record.
func (s *Service) add(ctx context.Context, p *slot) error {
	if err := allowed(s.cfg.Replica.State()); err != nil {
		return err
	}
	name := p.seal.Name()
	c, _ := s.cfg.Replica.State().Cluster()
	wrapped, err := p.seal.Wrap(ctx, s.cfg.Vault.Arena(), p.key, about(c, name))
	if err == nil && len(wrapped) > maxWrapped {
		err = errors.New("what the seal answers is too long")
	}
	if err != nil {
		return err
	}
	// A seal that cannot be read again would be noticed when it is needed.
	again, err := p.seal.Unwrap(ctx, s.cfg.Vault.Arena(), wrapped, about(c, name))
	if err != nil {
		return fmt.Errorf("what the seal has wrapped cannot be read again: %w", err)
	}
	again.Destroy()
	now := s.cfg.Clock.Now()
	_, err = s.cfg.Events.CommitEvent(ctx, func(state *fsm.State) (record.Event, error) {
		c, version := state.Cluster()
		if c.GetShares().GetEpoch() != p.epoch {
			return record.Event{}, errReplaced
		}
		c = proto.CloneOf(c)
		c.Seals = slices.DeleteFunc(c.Seals, func(o *fsmpb.Seal) bool { return o.GetName() == name })
		c.Seals = append(c.Seals, &fsmpb.Seal{Name: name, WrappedKey: wrapped, WrappedRoot: p.root, Created: now.UnixNano()})
		ev := record.ServiceEvent("PutSeal", now, auditfield.Text("node", s.cfg.NodeID), auditfield.Text("seal", name))
		ev.ReplaceCluster(version, c)
		return ev, nil
	})
	if err == nil {
		s.cfg.Log.Warn("a seal was added: it unseals the nodes that are configured with it", "seal", name)
	}
	return err
}

func allowed(s *fsm.State) error {
	if err := level.Allows(s.Level(), neededLevel); err != nil {
		return kmsapi.Errorf(ceremony.ErrNotUpgraded, "A seal cannot be added: %v.", err)
	}
	return nil
}

// Slot is a seal of the cluster.
type Slot struct {
	Name    string
	Created time.Time
	// Configured is set if this node is configured with it.
	Configured bool
}

// List returns the seals in this node's state.
func (s *Service) List() (list []Slot) {
	c, _ := s.cfg.Replica.State().Cluster()
	for _, in := range c.GetSeals() {
		list = append(list, Slot{Name: in.Name, Created: time.Unix(0, in.Created), Configured: slices.ContainsFunc(s.cfg.Seals, func(o Seal) bool { return o.Name() == in.Name })})
	}
	return list
}

// Remove removes a seal from the state: it unseals no node any more. Errors: ErrNotFound,
// ErrUnavailable.
func (s *Service) Remove(ctx context.Context, op ceremony.Operator, name string) error {
	d, err := s.cfg.Events.ChangeCluster(ctx, func(state *fsm.State) (record.Event, error) {
		c, version := state.Cluster()
		if find(c, name) == nil {
			return record.Event{}, kmsapi.Errorf(kmsapi.ErrNotFound, "The cluster has no seal with that name.")
		}
		ev := op.Event("RemoveSeal", c)
		ev.Parameters = []*auditpb.Field{auditfield.Text("seal", name)}
		c = proto.CloneOf(c)
		c.Seals = slices.DeleteFunc(c.Seals, func(o *fsmpb.Seal) bool { return o.GetName() == name })
		ev.ReplaceCluster(version, c)
		return ev, nil
	})
	if err != nil {
		return err
	}
	if err := s.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		return record.Unavailable(err)
	}
	s.cfg.Log.Warn("a seal was removed", "operator", op.Name, "seal", name)
	return nil
}
