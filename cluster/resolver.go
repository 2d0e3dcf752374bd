package cluster

import (
	"slices"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
)

// The Raft configuration says who belongs to the cluster and where they are.
// Before there is one, the static peers do. Gossip adds addresses, never nodes.

// configuration is the latest Raft configuration; empty before there is one.
func (n *Node) configuration() raft.Configuration {
	if r := n.raft.Load(); r != nil {
		if f := r.GetConfiguration(); f.Error() == nil {
			return f.Configuration()
		}
	}
	return raft.Configuration{}
}

// isMember reports whether that node belongs to the cluster.
func (n *Node) isMember(node string) bool {
	servers := n.configuration().Servers
	if len(servers) == 0 {
		_, ok := n.cfg.Peers[node]
		return ok
	}
	return slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == node })
}

// isKnown refuses the ids of what is neither a member nor a static peer.
func (n *Node) isKnown(node string) error {
	if _, ok := n.cfg.Peers[node]; ok || node == n.cfg.NodeID || n.isMember(node) {
		return nil
	}
	return peerport.ErrNotMember
}

// admit decides at the handshake. A static peer may always ask Hello, even one
// that is no member: that is how a wiped or removed node learns what it is.
func (n *Node) admit(node, alpn string) error {
	if n.isMember(node) {
		return nil
	}
	if _, ok := n.cfg.Peers[node]; ok && alpn == pki.ALPNPeer {
		return nil
	}
	return peerport.ErrNotMember
}

// addressesOf are where a node may be reached, best first.
func (n *Node) addressesOf(node string) []string {
	var list []string
	for _, s := range n.configuration().Servers {
		if string(s.ID) == node {
			list = appendNew(list, string(s.Address))
		}
	}
	list = appendNew(list, n.cfg.Peers[node])
	if n.gossip != nil {
		list = appendNew(list, n.gossip.Address(node))
	}
	return list
}

// nodeAt is the node that has that Raft address.
func (n *Node) nodeAt(addr string) (string, bool) {
	for _, s := range n.configuration().Servers {
		if string(s.Address) == addr {
			return string(s.ID), true
		}
	}
	for id, a := range n.cfg.Peers {
		if a == addr {
			return id, true
		}
	}
	return "", false
}

// Peers are the ids of the other nodes of the cluster, ascending.
func (n *Node) Peers() []string {
	var ids []string
	if servers := n.configuration().Servers; len(servers) > 0 {
		for _, s := range servers {
			ids = append(ids, string(s.ID))
		}
	} else {
		for id := range n.cfg.Peers {
			ids = append(ids, id)
		}
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == n.cfg.NodeID })
	slices.Sort(ids)
	return ids
}

// voters counts the nodes that vote.
func (n *Node) voters() (ids []string) {
	for _, s := range n.configuration().Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}

// appendNew appends what is not there yet.
func appendNew(list []string, more ...string) []string {
	for _, s := range more {
		if s != "" && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}
