package peerunseal

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// quiet is how long a node must not have proved that it is unsealed before a peer helps
	// to unseal it, in heartbeat timeouts. Every voter is asked for a proof every two. A
	// node that restarts needs longer than that, and another process that uses the
	// identity of a running node is refused for as long as that one runs.
	quiet = 6

	// giveTimeout bounds one question of another node.
	giveTimeout = 15 * time.Second

	// A node may ask burst times at once, and then once after each askEvery.
	askEvery = time.Second
	burst    = 5

	// alarmEvery is how often the log and the audit log name the same suspicious node.
	alarmEvery = time.Minute

	stateDomain = "conclave peer unseal state v1"
)

// Asker is a node that asks to be unsealed, as far as the cluster has checked it.
type Asker struct {
	Node        string
	Address     string // in the Raft configuration
	Incarnation uint64
	// Members are the nodes of the Raft configuration, in ascending order.
	Members []string
	Session [32]byte
}

// Unsealer is the engine's part of peer-assisted unsealing.
type Unsealer interface {
	// Willing returns why this node does not unseal others, or "".
	Willing() (refusal string)
	// Release commits the record of a release and returns this node's part for the node that
	// gave that answer to the nonce. The error is a *Refusal if the answer is wrong.
	Release(ctx context.Context, to Asker, nonce, answer []byte) (part []byte, err error)
	// Suspect records that a process that asked to be unsealed as the given node was refused,
	// because it may not be that node. It does not block.
	Suspect(node, reason string)

	// Answer returns the answer of this node, which is sealed and has asked its peers, to a
	// peer's nonce. It returns an error if this node has not asked.
	Answer(peer string, nonce []byte) (session [32]byte, answer []byte, err error)
	// Accept takes a peer's part.
	Accept(ctx context.Context, peer string, nonce, part []byte) error
}

// Refusal is the reason why a node is not helped.
type Refusal struct {
	Reason string
	// Suspicious refusals are recorded: an honest node does not cause them.
	Suspicious bool
}

// Error implements error.
func (r *Refusal) Error() string { return r.Reason }

func refuse(format string, args ...any) error { return &Refusal{Reason: fmt.Sprintf(format, args...)} }

func suspect(format string, args ...any) error {
	return &Refusal{Reason: fmt.Sprintf(format, args...), Suspicious: true}
}

// Config configures Peers. Everything is required. The functions may be called from any
// goroutine.
type Config struct {
	ID          string
	Incarnation uint64
	// DiskIndex returns the newest Raft index that was on this node's disk when it started.
	DiskIndex func() uint64
	Heartbeat time.Duration

	// Members returns the nodes of the Raft configuration with their addresses, and Voters
	// those that vote.
	Members func() map[string]string
	Voters  func() []string
	// Client returns the client of another node, and At one for a single connection to the
	// given address.
	Client func(node string) (clusterpb.PeerClient, error)
	At     func(ctx context.Context, node, addr string) (client clusterpb.PeerClient, end func(), err error)
	// ProvedAt returns when a node last proved that it is unsealed.
	ProvedAt func(node string) time.Time

	// State returns the newest applied state, and Registered a node's registration in it.
	State       func() *fsm.State
	Registered  func(node string) *fsmpb.RegisterNode
	StateAt     func(index uint64) *fsm.State
	WaitApplied func(ctx context.Context, index uint64) error
	Watermark   func(node string) (uint64, bool)
	// Barrier waits until this node has applied everything that was committed before.
	Barrier func(ctx context.Context) error
	// KeyFile is the path of the file with the node's return keys.
	KeyFile string
	Log     *slog.Logger
}

// Peers is one node's part in the unsealing of others, and the way to ask them.
type Peers struct {
	cfg      Config
	unsealer atomic.Pointer[Unsealer]

	mu    sync.Mutex
	nodes map[string]*asking
}

// asking is what a peer knows of a node that asked it.
type asking struct {
	busy    bool
	limit   *rate.Limiter
	session [32]byte
	since   time.Time // when it first asked with this session
	alarmed time.Time
}

// New returns Peers that refuse everything until SetUnsealer is called.
func New(cfg Config) *Peers { return &Peers{cfg: cfg, nodes: make(map[string]*asking)} }

// SetUnsealer registers the engine, once.
func (p *Peers) SetUnsealer(u Unsealer) { p.unsealer.Store(&u) }

// Others returns the voters other than this node, in ascending order.
func (p *Peers) Others() []string {
	list := slices.DeleteFunc(p.cfg.Voters(), func(id string) bool { return id == p.cfg.ID })
	slices.Sort(list)
	return list
}

// Incarnation returns the incarnation of this node.
func (p *Peers) Incarnation() uint64 { return p.cfg.Incarnation }

// Ask asks a peer to help unseal this node. It returns once the peer has delivered its part
// or refused.
func (p *Peers) Ask(ctx context.Context, peer string, session [32]byte) (refusal string, err error) {
	client, err := p.cfg.Client(peer)
	if err != nil {
		return "", err
	}
	r, err := client.AskUnseal(ctx, &clusterpb.AskUnsealRequest{Group: wire.Group, Session: session[:]})
	if status.Code(err) == codes.Unimplemented {
		return "its release does not know peer-assisted unsealing", nil
	}
	if err != nil {
		return "", errors.New(status.Convert(err).Message())
	}
	return r.Refusal, nil
}

// Challenge answers a peer's challenge.
func (p *Peers) Challenge(peer string, nonce []byte) (*clusterpb.ChallengeUnsealResponse, error) {
	u := p.unsealer.Load()
	if u == nil {
		return nil, errors.New("this node is starting")
	}
	session, answer, err := (*u).Answer(peer, nonce)
	if err != nil {
		return nil, err
	}
	s := p.cfg.State()
	hash := s.Hash()
	return &clusterpb.ChallengeUnsealResponse{
		Session: session[:], Answer: answer, Incarnation: p.cfg.Incarnation, DiskIndex: p.cfg.DiskIndex(),
		StateIndex: s.Index(), StateProof: stateProof(nonce, p.cfg.ID, peer, s.Index(), hash),
	}, nil
}

// Deliver takes a peer's part.
func (p *Peers) Deliver(ctx context.Context, peer string, nonce, part []byte) error {
	u := p.unsealer.Load()
	if u == nil {
		return errors.New("this node is starting")
	}
	return (*u).Accept(ctx, peer, nonce, part)
}

// stateProof shows that a node has the state with that hash. The nonce makes it worthless
// for anybody else.
func stateProof(nonce []byte, node, peer string, index uint64, hash [32]byte) []byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(stateDomain), nonce, []byte(node), []byte(peer), hash[:]} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, index))
	return h.Sum(nil)
}

// Give is the answer to another node's AskUnseal. refusal is empty if that node has got this
// node's part.
func (p *Peers) Give(ctx context.Context, node string, session [32]byte) (refusal string, err error) {
	ctx, cancel := context.WithTimeout(ctx, giveTimeout)
	defer cancel()
	u := p.unsealer.Load()
	if u == nil {
		return "this node is starting", nil
	}
	if why := (*u).Willing(); why != "" {
		return why, nil
	}
	since, err := p.begin(node, session, time.Now())
	if err == nil {
		defer p.end(node)
		err = p.give(ctx, *u, node, session, since)
	}
	var r *Refusal
	if !errors.As(err, &r) {
		return "", err
	}
	if r.Suspicious && p.alarm(node, time.Now()) {
		p.cfg.Log.Error("a process that asks to be unsealed may not be the node that it says it is: it is refused. The node's disk or identity may have been copied",
			"node", node, "reason", r.Reason)
		(*u).Suspect(node, r.Reason)
	}
	return r.Reason, nil
}

// begin admits one question of a node at a time. It returns when the node first asked with
// that session.
func (p *Peers) begin(node string, session [32]byte, now time.Time) (since time.Time, err error) {
	if _, ok := p.cfg.Members()[node]; !ok {
		return now, suspect("%s is not a member of the cluster", node)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.nodes[node]
	if a == nil {
		a = &asking{limit: rate.NewLimiter(rate.Every(askEvery), burst)}
		p.nodes[node] = a // one for each member at most
	}
	if a.busy {
		return now, refuse("another question of %s is being answered", node)
	}
	if !a.limit.AllowN(now, 1) {
		return now, refuse("%s asks too often", node)
	}
	if a.session != session {
		a.session, a.since = session, now
	}
	a.busy = true
	return a.since, nil
}

func (p *Peers) end(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes[node].busy = false
}

// alarm reports whether a suspicion is to be recorded.
func (p *Peers) alarm(node string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.nodes[node]
	if a == nil || now.Sub(a.alarmed) < alarmEvery {
		return false
	}
	a.alarmed = now
	return true
}

// silent returns a refusal if a process with the node's identity is unsealed.
func (p *Peers) silent(node string, since, now time.Time) error {
	at := p.cfg.ProvedAt(node)
	switch {
	case at.IsZero(), now.Sub(at) >= quiet*p.cfg.Heartbeat:
		return nil
	case at.After(since):
		return suspect("%s proved %v ago that it is unsealed, after another process had asked in its name", node, now.Sub(at).Round(time.Millisecond))
	}
	return refuse("%s proved %v ago that it is unsealed: wait", node, now.Sub(at).Round(time.Millisecond))
}

func (p *Peers) give(ctx context.Context, u Unsealer, node string, session [32]byte, since time.Time) error {
	if err := p.silent(node, since, time.Now()); err != nil {
		return err
	}
	// The Raft configuration, the state and the node's watermark are those of now.
	if err := p.cfg.Barrier(ctx); err != nil {
		return fmt.Errorf("no majority of the cluster can be reached: %w", err)
	}
	members := p.cfg.Members()
	to := Asker{Node: node, Address: members[node], Session: session}
	if to.Address == "" {
		return suspect("%s is not a member of the cluster", node)
	}
	for id := range members {
		to.Members = append(to.Members, id)
	}
	slices.Sort(to.Members)
	client, end, err := p.cfg.At(ctx, node, to.Address)
	if err != nil {
		return suspect("%s is not at its address %s", node, to.Address)
	}
	defer end()
	nonce := peerproof.NewNonce()
	r, err := client.ChallengeUnseal(ctx, &clusterpb.ChallengeUnsealRequest{Group: wire.Group, Nonce: nonce})
	switch {
	case status.Code(err) == codes.FailedPrecondition:
		return suspect("the node at the address of %s has not asked: %s", node, status.Convert(err).Message())
	case err != nil:
		return fmt.Errorf("asking %s at %s: %w", node, to.Address, err)
	case subtle.ConstantTimeCompare(r.Session, session[:]) != 1:
		return suspect("the node at the address of %s has asked in another session", node)
	}
	to.Incarnation = r.Incarnation
	if err := p.current(ctx, node, nonce, r); err != nil {
		return err
	}
	part, err := u.Release(ctx, to, nonce, r.Answer)
	if err != nil {
		return err
	}
	if err := p.silent(node, since, time.Now()); err != nil {
		return err
	}
	if _, err := client.DeliverUnseal(ctx, &clusterpb.DeliverUnsealRequest{Group: wire.Group, Nonce: nonce, Part: part}); err != nil {
		return fmt.Errorf("delivering to %s at %s: %w", node, to.Address, err)
	}
	return nil
}

// current returns a refusal unless the node's data is what the cluster knows of it.
func (p *Peers) current(ctx context.Context, node string, nonce []byte, r *clusterpb.ChallengeUnsealResponse) error {
	reg := p.cfg.Registered(node)
	if reg == nil {
		return suspect("%s has never been unsealed", node)
	}
	if r.Incarnation <= reg.Incarnation {
		return suspect("%s was started before the process that was unsealed last", node)
	}
	mark, _ := p.cfg.Watermark(node)
	mark = max(mark, reg.Watermark)
	if r.DiskIndex < mark {
		return suspect("the disk of %s was at index %d when it started, and had been at index %d", node, r.DiskIndex, mark)
	}
	if r.StateIndex < mark {
		return refuse("the state of %s is at index %d, and was at index %d: wait", node, r.StateIndex, mark)
	}
	if err := p.cfg.WaitApplied(ctx, r.StateIndex); err != nil {
		return err
	}
	s := p.cfg.StateAt(r.StateIndex)
	if s == nil {
		return refuse("the state of %s is at index %d, which is no longer kept here: wait", node, r.StateIndex)
	}
	if subtle.ConstantTimeCompare(r.StateProof, stateProof(nonce, node, p.cfg.ID, r.StateIndex, s.Hash())) != 1 {
		return suspect("the state of %s at index %d differs", node, r.StateIndex)
	}
	return nil
}
