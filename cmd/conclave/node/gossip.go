package node

import (
	"fmt"
	"net"
	"os"

	"github.com/conclavekms/conclave/cluster/gossip"
)

// gossip is the address book's configuration. Seeds are the peers' hosts on this
// node's gossip port: every node of a cluster uses the same.
func (c *Config) gossip() (gossip.Config, error) {
	if c.GossipListen == "" || c.BootstrapExpect == 1 {
		return gossip.Config{}, nil
	}
	secret, err := os.ReadFile(c.GossipKeyFile)
	if err != nil {
		return gossip.Config{}, fmt.Errorf("gossip key: %w", err)
	}
	defer clear(secret)
	key, err := gossip.DeriveKey(secret)
	if err != nil {
		return gossip.Config{}, fmt.Errorf("gossip key: %s: %w", c.GossipKeyFile, err)
	}
	_, port, err := net.SplitHostPort(or(c.GossipAdvertise, c.GossipListen))
	if err != nil {
		return gossip.Config{}, err
	}
	g := gossip.Config{Enable: true, Listen: c.GossipListen, Advertise: c.GossipAdvertise, Key: key}
	for id, addr := range c.Peers {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return gossip.Config{}, err
		}
		if id != c.NodeID {
			g.Seeds = append(g.Seeds, net.JoinHostPort(host, port))
		}
	}
	return g, nil
}
