// Package gossip is the cluster's address book: nodes tell each other their addresses. It
// only adds addresses. No decision depends on it, and a wrong address costs a failed TLS
// handshake. Without the gossip key it can be neither read nor written, and no one can make
// a node hold much memory.
package gossip

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
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/conclavekms/conclave/transport/admission"
)

// Config configures the address book. Without it, the cluster uses the addresses in its
// Raft configuration.
type Config struct {
	// Enable turns gossip on.
	Enable bool
	// Listen is the UDP and TCP address, as host:port.
	Listen string
	// Advertise is the IP address and port at which other nodes reach Listen. It defaults
	// to the address of Listen, or to a private address of the machine.
	Advertise string
	// Seeds are the gossip addresses of some nodes, as host:port.
	Seeds []string
	// Key encrypts gossip. It is 32 bytes long and comes from DeriveKey.
	Key []byte
}

const label = "conclave"

// DeriveKey derives the gossip key from the content of a key file, which must hold at least
// 32 bytes of secret. Surrounding white space is ignored.
func DeriveKey(secret []byte) ([]byte, error) {
	secret = bytes.TrimSpace(secret)
	if len(secret) < 32 {
		return nil, errors.New("gossip key file has fewer than 32 bytes")
	}
	return hkdf.Key(sha256.New, secret, nil, "conclave gossip key v1", 32)
}

// Validate returns all errors in c.
func (c Config) Validate() []error {
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

// Self describes this node to the address book.
type Self struct {
	// ID is the node's id, and Peer the address of its peer port.
	ID, Peer string
	// Known returns an error for an id that is not a node of the cluster.
	Known func(node string) error
	// Budget is the admission budget of the connections. Prefer reports whether an address
	// is that of a node; connections from such addresses are the last to be closed when
	// there are too many.
	Budget *admission.Budget
	Prefer func(admission.Source) bool
	Log    *slog.Logger
}

// Book is the address book.
type Book struct {
	self Self
	list *memberlist.Memberlist
	stop chan struct{}
	wg   sync.WaitGroup

	mu sync.Mutex
	// alive has the meta data of each node that is alive, as memberlist reported it. The
	// members of list must not be read: memberlist changes them under a lock of its own.
	alive map[string][]byte
}

// meta is the data that a node adds to its gossip entry.
type meta struct {
	Peer string `json:"p"`
}

// Start joins gossip until Close is called.
func Start(c Config, self Self) (*Book, error) {
	g := &Book{self: self, stop: make(chan struct{}), alive: make(map[string][]byte)}
	mc := memberlist.DefaultLANConfig()
	mc.Name = self.ID
	mc.Label = label
	mc.SecretKey = c.Key
	mc.GossipVerifyIncoming, mc.GossipVerifyOutgoing = true, true
	mc.MsgpackUseNewTimeFormat = true
	mc.DeadNodeReclaimTime = 30 * time.Second // a node may come back at another address
	mc.Delegate, mc.Alive, mc.Merge, mc.Events = delegate{g}, delegate{g}, delegate{g}, delegate{g}
	mc.Logger = log.New(logWriter{self.Log}, "", 0)
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
	door := self.Budget.Door(admission.Share{Face: "gossip", Sixteenths: 1, Max: maxStreams})
	door.Prefer(self.Prefer)
	network, err := newNetwork(mc, door)
	if err != nil {
		return nil, err
	}
	mc.Transport = network
	if mc.BindPort == 0 {
		mc.BindPort = network.GetAutoBindPort()
		if c.Advertise == "" {
			mc.AdvertisePort = mc.BindPort
		}
	}
	if g.list, err = memberlist.Create(mc); err != nil {
		network.Shutdown()
		return nil, err
	}
	g.wg.Add(1)
	go g.join(c.Seeds)
	return g, nil
}

// join contacts the seeds until one answers, and again when all other nodes are lost.
func (g *Book) join(seeds []string) {
	defer g.wg.Done()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		if len(seeds) > 0 && g.list.NumMembers() < 2 {
			g.list.Join(seeds) // memberlist logs its errors itself
		}
		select {
		case <-time.After(wait):
		case <-g.stop:
			return
		}
	}
}

// Close leaves gossip.
func (g *Book) Close() {
	close(g.stop)
	g.wg.Wait()
	g.list.Leave(100 * time.Millisecond)
	g.list.Shutdown()
}

// Alive reports whether gossip has the node as alive, which is a hint only.
func (g *Book) Alive(node string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.alive[node]
	return ok
}

// Address returns the address of a node's peer port according to gossip, or "". A wrong one
// costs a failed handshake: the other end must show the node's certificate.
func (g *Book) Address(node string) string {
	g.mu.Lock()
	data, ok := g.alive[node] // replaced, never changed
	g.mu.Unlock()
	var said meta
	if !ok || json.Unmarshal(data, &said) != nil || len(said.Peer) > 255 {
		return ""
	}
	if _, _, err := splitPort(said.Peer); err != nil {
		return ""
	}
	return said.Peer
}

// delegate implements the callbacks of memberlist.
type delegate struct{ g *Book }

// NotifyAlive implements memberlist.AliveDelegate.
func (d delegate) NotifyAlive(m *memberlist.Node) error { return d.g.self.Known(m.Name) }

// NotifyMerge implements memberlist.MergeDelegate.
func (d delegate) NotifyMerge(ms []*memberlist.Node) error {
	for _, m := range ms {
		if err := d.g.self.Known(m.Name); err != nil {
			return err
		}
	}
	return nil
}

// NotifyJoin implements memberlist.EventDelegate, like the two methods below. memberlist
// holds a lock meanwhile, so that m can be read.
func (d delegate) NotifyJoin(m *memberlist.Node) {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	d.g.alive[m.Name] = bytes.Clone(m.Meta)
}

func (d delegate) NotifyUpdate(m *memberlist.Node) { d.NotifyJoin(m) }

func (d delegate) NotifyLeave(m *memberlist.Node) {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	delete(d.g.alive, m.Name)
}

// NodeMeta implements memberlist.Delegate, like the methods below.
func (d delegate) NodeMeta(limit int) []byte {
	b, err := json.Marshal(meta{Peer: d.g.self.Peer})
	if err != nil || len(b) > limit {
		return nil
	}
	return b
}

func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

// logWriter writes memberlist's log lines at the debug level: none of them needs attention.
type logWriter struct{ l *slog.Logger }

// Write implements io.Writer.
func (g logWriter) Write(b []byte) (int, error) {
	g.l.Debug(string(bytes.TrimSpace(b)))
	return len(b), nil
}
