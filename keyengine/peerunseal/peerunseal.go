package peerunseal

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// Peers gives access to the other nodes, and to the file that proves which node this one is.
type Peers interface {
	KeyFile
	// Others returns the nodes that vote without this one, in ascending order.
	Others() []string
	// Incarnation returns the incarnation of this node.
	Incarnation() uint64
	// Ask asks a peer to unseal this node in a session. It returns after the peer has
	// delivered its part to Accept, or has refused.
	Ask(ctx context.Context, peer string, session [32]byte) (refusal string, err error)
}

// Config configures a Service. Everything is required, but without Peers the Service does
// nothing.
type Config struct {
	NodeID  string
	Peers   Peers
	Vault   *vault.Vault
	Replica record.Log
	Events  *record.Recorder
	Clock   record.Clock
	Log     *slog.Logger
	// Released and Refused are called for each part that this node gave, and for each
	// suspicious question that it refused.
	Released, Refused func()
	// Fresh returns a state with everything that was committed before the call.
	Fresh func(context.Context) (*fsm.State, error)
}

const (
	// tick is how often Run looks what there is to do.
	tick = 250 * time.Millisecond

	// While it is sealed, a node asks its peers every askEvery for askSoon, and then every
	// askLater.
	askEvery = 1200 * time.Millisecond
	askSoon  = time.Minute
	askLater = 5 * time.Second
	// askTimeout bounds one question.
	askTimeout = 20 * time.Second

	// sessionAge is how long a session lasts. Its parts count as long.
	sessionAge = time.Minute
)

// Service is the part of one node in peer-assisted unsealing. It is safe for concurrent use.
type Service struct {
	cfg Config

	// keys is held while the file of return keys is used. Nobody waits for other nodes
	// meanwhile.
	keys sync.Mutex

	mu sync.Mutex
	// was is set once the node was unsealed. A node that an operator seals afterwards does
	// not ask its peers.
	was     bool
	session *session
	status  string
	// enrolled is the return key that this process has put into the state.
	enrolled []byte
	// forgotten counts the calls of Forget, and sealing those after which the node is not
	// sealed yet.
	forgotten, sealing int
}

// New returns the Service of a node.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// Status says what this node waits for while it asks its peers to unseal it; "" if it does
// not.
func (s *Service) Status() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Service) setStatus(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text != "" && text != s.status {
		s.cfg.Log.Info("waiting to be unsealed", "status", text)
	}
	s.status = text
}

// cluster returns the cluster's record if peer-assisted unsealing is enabled, or nil.
func (s *Service) cluster() *fsmpb.Cluster {
	if c, _ := s.cfg.Replica.State().Cluster(); c.GetPeerUnseal().GetAgreements() > 0 {
		return c
	}
	return nil
}

// Run asks the peers of a sealed node to unseal it, and keeps the return key of an unsealed
// one in the state, until ctx ends.
func (s *Service) Run(ctx context.Context) {
	if s.cfg.Peers == nil {
		return
	}
	defer s.end()
	began := time.Now()
	next := began
	wait := time.NewTicker(tick)
	defer wait.Stop()
	for {
		c := s.cluster()
		sealed := s.cfg.Vault.Sealed()
		s.mu.Lock()
		s.was = s.was || !sealed
		asks := sealed && !s.was
		s.mu.Unlock()
		switch now := time.Now(); {
		case c == nil || !asks && sealed:
			s.end()
		case asks && !now.Before(next):
			s.ask(ctx, c)
			every := askEvery
			if now.Sub(began) > askSoon {
				every = askLater
			}
			next = time.Now().Add(every/2 + rand.N(every))
		case !sealed:
			s.end()
			if !now.Before(next) && !s.enrol(ctx, c) {
				next = time.Now().Add(askEvery/2 + rand.N(askEvery)) // so that nodes do not meet again
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
	}
}

// Forget removes the file with the return key of this node. It is called when an operator
// seals the node. add removes the key from the state with the record of that, and done is
// called when the node is sealed; until then it gets no other return key. The peers do not
// unseal the node any more until the custodians have. Forget waits for no other node:
// whatever happens, the node has to be sealed.
func (s *Service) Forget() (add func(*fsm.State, *record.Event), done func()) {
	if s.cfg.Peers == nil {
		return func(*fsm.State, *record.Event) {}, func() {}
	}
	s.keys.Lock()
	defer s.keys.Unlock()
	s.mu.Lock()
	s.was, s.enrolled = true, nil
	s.forgotten++
	s.sealing++
	s.mu.Unlock()
	if err := s.cfg.Peers.RemoveKeys(); err != nil {
		s.cfg.Log.Error("the file with the return key of a node that is sealed could not be removed", "err", err)
	}
	add = func(state *fsm.State, ev *record.Event) {
		if c, _ := state.Cluster(); returnKeyOf(c, s.cfg.NodeID) != nil {
			s.changeKey(state, ev, nil)
		}
	}
	return add, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sealing--
	}
}
