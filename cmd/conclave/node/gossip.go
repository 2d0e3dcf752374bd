package node

import (
	"fmt"
	"net"
	"os"

	"github.com/conclavekms/conclave/cluster/gossip"
)

// gossip returns the configuration of the address book. Its seeds are the peers'
// hosts with this node's gossip port, as all nodes of a cluster use the same
// port.
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
	for id, addr := range c.named() {
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
