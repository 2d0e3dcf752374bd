// Package membership says who belongs to the cluster and where they are.
//
// What may be relied on: the Raft configuration decides; before there is one, the static
// peers do. Gossip adds addresses, never nodes.
package membership

import (
	"slices"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
)

// Config is what Members asks of its node. The functions may be called from any
// goroutine.
type Config struct {
	Node string // this node's id
	// Peers are the peer addresses of the first nodes by id.
	Peers map[string]string
	// Raft is nil before it was started.
	Raft func() *raft.Raft
	// Gossiped is where a node is as gossip has it; "" when it does not know.
	Gossiped func(node string) string
}

// Members are the nodes of the cluster, as one of them knows.
type Members struct{ cfg Config }

// New are the members as cfg has them.
func New(cfg Config) *Members { return &Members{cfg: cfg} }

// Configuration is the latest Raft configuration; empty before there is one.
func (m *Members) Configuration() raft.Configuration {
	if r := m.cfg.Raft(); r != nil {
		if f := r.GetConfiguration(); f.Error() == nil {
			return f.Configuration()
		}
	}
	return raft.Configuration{}
}

// Has reports whether that node belongs to the cluster.
func (m *Members) Has(node string) bool {
	servers := m.Configuration().Servers
	if len(servers) == 0 {
		_, ok := m.cfg.Peers[node]
		return ok
	}
	return slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == node })
}

// Known refuses the ids of what is neither a member nor a static peer.
func (m *Members) Known(node string) error {
	if _, ok := m.cfg.Peers[node]; ok || node == m.cfg.Node || m.Has(node) {
		return nil
	}
	return peerport.ErrNotMember
}

// Admit decides at the handshake. A static peer may always ask Hello, even one
// that is no member: that is how a wiped or removed node learns what it is.
func (m *Members) Admit(node, alpn string) error {
	if m.Has(node) {
		return nil
	}
	if _, ok := m.cfg.Peers[node]; ok && alpn == pki.ALPNPeer {
		return nil
	}
	return peerport.ErrNotMember
}

// Addresses are where a node may be reached, best first.
func (m *Members) Addresses(node string) []string {
	var list []string
	for _, addr := range []string{string(m.Address(node)), m.cfg.Peers[node], m.cfg.Gossiped(node)} {
		if addr != "" && !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	return list
}

// Address is where the Raft configuration has a node; "" for nowhere.
func (m *Members) Address(node string) (addr raft.ServerAddress) {
	for _, s := range m.Configuration().Servers {
		if string(s.ID) == node {
			addr = s.Address
		}
	}
	return addr
}

// NodeAt is the node that has that Raft address.
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

// Others are the ids of the other nodes, ascending.
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

// Voters are the nodes that vote.
func (m *Members) Voters() (ids []string) {
	for _, s := range m.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}
