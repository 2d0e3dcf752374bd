// Package membership tracks the nodes of the cluster and their addresses.
//
// The Raft configuration decides who is a member, and before there is one the static peers
// do. A node that missed changes of the configuration, or that joins the cluster, learns a
// newer one from the others when it starts. Gossip adds addresses, never nodes.
package membership

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
)

// Config configures Members. The functions may be called from any goroutine.
type Config struct {
	Node string // id of this node
	// Peers are the peer addresses of the first nodes by id.
	Peers map[string]string
	// Raft returns nil before Raft has started.
	Raft func() *raft.Raft
	// Gossiped returns the address of a node according to gossip, or "".
	Gossiped func(node string) string
	// Registered returns the address that a node registered, or "".
	Registered func(node string) string
	// Stranger is called when a node that is not a member, as far as this node knows, wants
	// to connect. It must not block.
	Stranger func(node string)
}

// Members are the members of the cluster as one node knows them.
type Members struct {
	cfg     Config
	history History
	learned atomic.Pointer[learned]
	// hinted are the servers of Hint.
	hinted atomic.Pointer[[]raft.Server]
}

// learned is a committed configuration that another node told.
type learned struct {
	index   uint64
	servers []raft.Server
	// own is the index of this node's newest configuration when it asked. If that is a later
	// one, it was not committed then.
	own uint64
}

// New returns the Members of a node.
func New(cfg Config) *Members { return &Members{cfg: cfg} }

// Configuration returns the latest Raft configuration; empty before there is one.
func (m *Members) Configuration() raft.Configuration {
	if r := m.cfg.Raft(); r != nil {
		if f := r.GetConfiguration(); f.Error() == nil {
			return f.Configuration()
		}
	}
	return raft.Configuration{}
}

// Latest returns the newest configuration on the disk and its index; 0 for none.
func (m *Members) Latest() (index uint64, c raft.Configuration) { return m.history.Latest() }

// History returns the record of the configurations on the disk.
func (m *Members) History() *History { return &m.history }

// Learn records the newest committed configuration, which another node told. own is the index
// of this node's newest one when it asked. The learned one counts until this node's own one is
// as new, and also instead of the own one of that index until this node knows it to be
// committed: this node may have been the leader that wanted to remove a node, and have ended
// when only its own log had the entry, and the node that it has to follow now may be that one.
// The caller has made sure that the other node can be trusted, and had all that was committed
// when it was asked.
func (m *Members) Learn(index uint64, servers []raft.Server, own uint64) {
	for {
		was := m.learned.Load()
		if was != nil && (was.index > index || was.index == index && was.own >= own) {
			return
		}
		if m.learned.CompareAndSwap(was, &learned{index, servers, own}) {
			return
		}
	}
}

// Hint records servers that another node told without proof. They are members as well until
// this node's own configuration contains this node: one that joins reads the log from its
// beginning, where its leader may not be a member yet, and cannot verify proofs.
func (m *Members) Hint(servers []raft.Server) { m.hinted.Store(&servers) }

// servers returns the newest configuration that this node knows of, its own or a learned
// one.
func (m *Members) servers() []raft.Server {
	index, c := m.Latest()
	if l := m.learned.Load(); l != nil && (l.index > index || l.own == index && !m.committed(index)) {
		return l.servers
	}
	now := m.Configuration().Servers
	if len(now) == 0 { // Raft has not started
		now = c.Servers
	}
	if h := m.hinted.Load(); h != nil && !has(now, m.cfg.Node) {
		all := slices.Clone(now)
		for _, s := range *h {
			if !has(now, string(s.ID)) {
				all = append(all, s)
			}
		}
		return all
	}
	return now
}

// Committed returns the newest configuration on the disk and its index if this node knows that
// it is committed; 0 otherwise.
func (m *Members) Committed() (index uint64, c raft.Configuration) {
	if index, c = m.Latest(); !m.committed(index) {
		return 0, raft.Configuration{}
	}
	return index, c
}

// committed reports whether this node knows that the entry of that index is committed.
func (m *Members) committed(index uint64) bool {
	r := m.cfg.Raft()
	return r != nil && r.CommitIndex() >= index
}

func has(servers []raft.Server, node string) bool {
	return slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == node })
}

// Decode reads an encoded configuration. Raft's own decoder panics if it cannot.
func Decode(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("configuration that cannot be read: %v", p)
		}
	}()
	return raft.DecodeConfiguration(b), nil
}

// Has reports whether the node is a member.
func (m *Members) Has(node string) bool {
	servers := m.servers()
	if len(servers) == 0 {
		_, ok := m.cfg.Peers[node]
		return ok
	}
	return has(servers, node)
}

// Known returns an error for an id that is neither this node nor a member.
func (m *Members) Known(node string) error {
	if node == m.cfg.Node || m.Has(node) {
		return nil
	}
	return peerport.ErrNotMember
}

// Admit decides during the handshake whether a node may connect. A node that was removed
// may not, even if it is a static peer. A wiped node still is a member, and learns from Hello
// what it is.
func (m *Members) Admit(node, _ string) error {
	if m.Has(node) {
		return nil
	}
	m.cfg.Stranger(node)
	return peerport.ErrNotMember
}

// Addresses returns the addresses at which a node may be reached, best first.
func (m *Members) Addresses(node string) []string {
	var list []string
	for _, addr := range []string{string(m.Address(node)), m.cfg.Peers[node], m.cfg.Gossiped(node), m.cfg.Registered(node)} {
		if addr != "" && !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	return list
}

// Address returns the address of a node in the Raft configuration, or "".
func (m *Members) Address(node string) (addr raft.ServerAddress) {
	for _, s := range m.servers() {
		if string(s.ID) == node {
			addr = s.Address
		}
	}
	return addr
}

// All returns the members and their addresses in the Raft configuration.
func (m *Members) All() map[string]string {
	all := make(map[string]string)
	for _, s := range m.Configuration().Servers {
		all[string(s.ID)] = string(s.Address)
	}
	return all
}

// NodeAt returns the node that has the given Raft address.
func (m *Members) NodeAt(addr string) (string, bool) {
	for _, s := range m.servers() {
		if string(s.Address) == addr {
			return string(s.ID), true
		}
	}
	for id, a := range m.cfg.Peers {
		if a == addr {
			return id, true
		}
	}
	return "", false
}

// Others returns the ids of the other nodes, in ascending order.
func (m *Members) Others() []string {
	var ids []string
	if servers := m.servers(); len(servers) > 0 {
		for _, s := range servers {
			ids = append(ids, string(s.ID))
		}
	} else {
		for id := range m.cfg.Peers {
			ids = append(ids, id)
		}
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == m.cfg.Node })
	slices.Sort(ids)
	return ids
}

// Voters returns the ids of the nodes that vote.
func (m *Members) Voters() (ids []string) {
	for _, s := range m.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}
