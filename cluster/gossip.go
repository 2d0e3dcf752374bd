package cluster

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// GossipConfig configures the address book. Nothing is decided from it: without
// gossip the cluster works with the addresses in its Raft configuration.
type GossipConfig struct {
	// Enable turns gossip on.
	Enable bool
	// Listen is the UDP and TCP address, host:port.
	Listen string
	// Advertise is where other nodes reach Listen; an IP address and port. By
	// default the address of Listen, or a private one of the machine's.
	Advertise string
	// Seeds are gossip addresses of some nodes, host:port.
	Seeds []string
	// Key encrypts gossip: 32 bytes, from DeriveGossipKey.
	Key []byte
}

const gossipLabel = "conclave"

// DeriveGossipKey makes the gossip key of the content of a key file, which must
// hold at least 32 bytes of secret; white space around it does not count.
func DeriveGossipKey(secret []byte) ([]byte, error) {
	secret = bytes.TrimSpace(secret)
	if len(secret) < 32 {
		return nil, errors.New("gossip key file has fewer than 32 bytes")
	}
	return hkdf.Key(sha256.New, secret, nil, "conclave gossip key v1", 32)
}

func (c GossipConfig) validate() []error {
	if !c.Enable {
		return nil
	}
	var errs []error
	if len(c.Key) != 32 {
		errs = append(errs, fmt.Errorf("gossip key has %d bytes, not 32", len(c.Key)))
	}
	for _, a := range append([]string{c.Listen}, c.Seeds...) {
		if _, _, err := splitPort(a); err != nil {
			errs = append(errs, fmt.Errorf("gossip address: %w", err))
		}
	}
	if c.Advertise != "" {
		if host, _, err := splitPort(c.Advertise); err != nil || net.ParseIP(host) == nil {
			errs = append(errs, fmt.Errorf("gossip advertise address %q: want IP:port", c.Advertise))
		}
	}
	return errs
}

func splitPort(addr string) (string, int, error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port of %q: %w", addr, err)
	}
	return host, int(port), nil
}

// gossip is the address book.
type gossip struct {
	n    *Node
	list *memberlist.Memberlist
	stop chan struct{}
	wg   sync.WaitGroup
}

// gossipMeta is what a node says of itself.
type gossipMeta struct {
	Peer string `json:"p"`
}

func startGossip(n *Node) (*gossip, error) {
	c := n.cfg.Gossip
	if !c.Enable {
		return nil, nil
	}
	g := &gossip{n: n, stop: make(chan struct{})}
	mc := memberlist.DefaultLANConfig()
	mc.Name = n.cfg.NodeID
	mc.Label = gossipLabel
	mc.SecretKey = c.Key
	mc.GossipVerifyIncoming, mc.GossipVerifyOutgoing = true, true
	mc.MsgpackUseNewTimeFormat = true
	mc.DeadNodeReclaimTime = 30 * time.Second // a node may come back elsewhere
	mc.Delegate, mc.Alive, mc.Merge = gossipDelegate{g}, gossipDelegate{g}, gossipDelegate{g}
	mc.Logger = log.New(gossipLog{n.log.With("part", "gossip")}, "", 0)
	var err error
	if mc.BindAddr, mc.BindPort, err = splitPort(c.Listen); err != nil {
		return nil, err
	}
	mc.AdvertisePort = mc.BindPort
	if c.Advertise != "" {
		if mc.AdvertiseAddr, mc.AdvertisePort, err = splitPort(c.Advertise); err != nil {
			return nil, err
		}
	}
	if g.list, err = memberlist.Create(mc); err != nil {
		return nil, err
	}
	g.wg.Add(1)
	go g.join(c.Seeds)
	return g, nil
}

// join looks for the others until it found one, and again when all are lost.
func (g *gossip) join(seeds []string) {
	defer g.wg.Done()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		if len(seeds) > 0 && g.list.NumMembers() < 2 {
			g.list.Join(seeds) // its errors are in its log
		}
		select {
		case <-time.After(wait):
		case <-g.stop:
			return
		}
	}
}

func (g *gossip) close() {
	close(g.stop)
	g.wg.Wait()
	g.list.Leave(100 * time.Millisecond)
	g.list.Shutdown()
}

func (g *gossip) member(node string) *memberlist.Node {
	for _, m := range g.list.Members() {
		if m.Name == node {
			return m
		}
	}
	return nil
}

// alive is a hint.
func (g *gossip) alive(node string) bool { return g.member(node) != nil }

// address is where gossip says that node's peer port is. A wrong one costs a
// failed handshake: the other end must show the node's certificate.
func (g *gossip) address(node string) string {
	m := g.member(node)
	if m == nil {
		return ""
	}
	var meta gossipMeta
	if json.Unmarshal(m.Meta, &meta) != nil || len(meta.Peer) > 255 {
		return ""
	}
	if _, _, err := splitPort(meta.Peer); err != nil {
		return ""
	}
	return meta.Peer
}

// gossipDelegate is what memberlist asks of the node.
type gossipDelegate struct{ g *gossip }

// known refuses names that are not nodes of the cluster.
func (d gossipDelegate) known(name string) error {
	n := d.g.n
	if name == n.cfg.NodeID || slices.Contains(n.Peers(), name) {
		return nil
	}
	if _, ok := n.cfg.Peers[name]; ok {
		return nil
	}
	return errNotMember
}

func (d gossipDelegate) NotifyAlive(m *memberlist.Node) error { return d.known(m.Name) }

func (d gossipDelegate) NotifyMerge(ms []*memberlist.Node) error {
	for _, m := range ms {
		if err := d.known(m.Name); err != nil {
			return err
		}
	}
	return nil
}

func (d gossipDelegate) NodeMeta(limit int) []byte {
	b, err := json.Marshal(gossipMeta{Peer: d.g.n.advertise})
	if err != nil || len(b) > limit {
		return nil
	}
	return b
}

func (gossipDelegate) NotifyMsg([]byte)                {}
func (gossipDelegate) GetBroadcasts(int, int) [][]byte { return nil }
func (gossipDelegate) LocalState(bool) []byte          { return nil }
func (gossipDelegate) MergeRemoteState([]byte, bool)   {}

// gossipLog passes memberlist's lines on as details: none of them needs a person.
type gossipLog struct{ l *slog.Logger }

func (g gossipLog) Write(b []byte) (int, error) {
	g.l.Debug(string(bytes.TrimSpace(b)))
	return len(b), nil
}
