// Package membership tracks the nodes of the cluster and their addresses.
//
// The Raft configuration decides who is a member, and before there is one the static peers
// do. Gossip adds addresses, never nodes.
package membership

import (
	"slices"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
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
}

// Members are the members of the cluster as one node knows them.
type Members struct{ cfg Config }

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

// Has reports whether the node is a member.
func (m *Members) Has(node string) bool {
	servers := m.Configuration().Servers
	if len(servers) == 0 {
		_, ok := m.cfg.Peers[node]
		return ok
	}
	return slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == node })
}

// Known returns an error for an id that is neither a member nor a static peer.
func (m *Members) Known(node string) error {
	if _, ok := m.cfg.Peers[node]; ok || node == m.cfg.Node || m.Has(node) {
		return nil
	}
	return peerport.ErrNotMember
}

// Admit decides during the handshake whether a node may connect. A static peer may always
// call Hello, even if it is not a member: that is how a wiped or removed node learns what
// it is.
func (m *Members) Admit(node, alpn string) error {
	if m.Has(node) {
		return nil
	}
	if _, ok := m.cfg.Peers[node]; ok && alpn == pki.ALPNPeer {
		return nil
	}
	return peerport.ErrNotMember
}

// Addresses returns the addresses at which a node may be reached, best first.
func (m *Members) Addresses(node string) []string {
	var list []string
	for _, addr := range []string{string(m.Address(node)), m.cfg.Peers[node], m.cfg.Gossiped(node)} {
		if addr != "" && !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	return list
}

// Address returns the address of a node in the Raft configuration, or "".
func (m *Members) Address(node string) (addr raft.ServerAddress) {
	for _, s := range m.Configuration().Servers {
		if string(s.ID) == node {
			addr = s.Address
		}
	}
	return addr
}

// NodeAt returns the node that has the given Raft address.
func (m *Members) NodeAt(addr string) (string, bool) {
	for _, s := range m.Configuration().Servers {
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
	if servers := m.Configuration().Servers; len(servers) > 0 {
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
