package node

import (
	"fmt"
	"net"
	"os"

	"github.com/conclavekms/conclave/cluster"
)

// gossip is the address book's configuration. Seeds are the peers' hosts on this
// node's gossip port: every node of a cluster uses the same.
func (c *Config) gossip() (cluster.GossipConfig, error) {
	if c.GossipListen == "" || c.BootstrapExpect == 1 {
		return cluster.GossipConfig{}, nil
	}
	secret, err := os.ReadFile(c.GossipKeyFile)
	if err != nil {
		return cluster.GossipConfig{}, fmt.Errorf("gossip key: %w", err)
	}
	defer clear(secret)
	key, err := cluster.DeriveGossipKey(secret)
	if err != nil {
		return cluster.GossipConfig{}, fmt.Errorf("gossip key: %s: %w", c.GossipKeyFile, err)
	}
	_, port, err := net.SplitHostPort(or(c.GossipAdvertise, c.GossipListen))
	if err != nil {
		return cluster.GossipConfig{}, err
	}
	g := cluster.GossipConfig{Enable: true, Listen: c.GossipListen, Advertise: c.GossipAdvertise, Key: key}
	for id, addr := range c.Peers {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return cluster.GossipConfig{}, err
		}
		if id != c.NodeID {
			g.Seeds = append(g.Seeds, net.JoinHostPort(host, port))
		}
	}
	return g, nil
}
