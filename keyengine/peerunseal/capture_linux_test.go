package peerunseal_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/canary"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/peerunseal"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// receiverKeys is a source of random bytes that keeps the private keys of receivers, which are
// nowhere but in locked memory that a test cannot reach.
type receiverKeys struct {
	source io.Reader
	mu     sync.Mutex
	keys   [][]byte
}

// Read implements io.Reader.
func (r *receiverKeys) Read(b []byte) (int, error) {
	n, err := r.source.Read(b)
	pc := make([]uintptr, 24)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for more := len(b) == keymat.KeySize; more; {
		var f runtime.Frame
		f, more = frames.Next()
		if strings.HasSuffix(f.Function, "/keymat.NewReceiver") {
			r.mu.Lock()
			r.keys = append(r.keys, bytes.Clone(b))
			r.mu.Unlock()
			break
		}
	}
	return n, err
}

// capture is a capture of the packets of the loopback interface. It keeps what TCP carried
// from each port to each other one.
type capture struct {
	fd   int
	done chan error

	mu    sync.Mutex
	flows map[[2]uint16]*bytes.Buffer
}

func startCapture(t *testing.T) *capture {
	t.Helper()
	all := int(uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all)
	if errors.Is(err, unix.EPERM) {
		optional.Skip(t, "capturing packets needs CAP_NET_RAW: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	lo, err := net.InterfaceByName("lo")
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: lo.Index})
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	}
	if err == nil && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20)
	}
	if err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	c := &capture{fd: fd, done: make(chan error, 1), flows: make(map[[2]uint16]*bytes.Buffer)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { c.done <- c.read(ctx) }()
	t.Cleanup(func() { cancel(); unix.Close(fd) })
	return c
}

func (c *capture) read(ctx context.Context) error {
	b := make([]byte, 1<<17)
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(c.fd, b, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		// Each packet of the loopback interface is seen on its way out and on its way in.
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING {
			c.packet(b[:n])
		}
	}
	return nil
}

// packet adds the payload of a TCP segment over IPv4, in the order of arrival.
func (c *capture) packet(b []byte) {
	const ethernet = 14
	if len(b) < ethernet+20 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP {
		return
	}
	ip := b[ethernet:]
	head := int(ip[0]&15) * 4
	if ip[9] != unix.IPPROTO_TCP || len(ip) < head+20 {
		return
	}
	tcp := ip[head:]
	offset := int(tcp[12]>>4) * 4
	if len(tcp) <= offset {
		return
	}
	ports := [2]uint16{binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flows[ports] == nil {
		c.flows[ports] = new(bytes.Buffer)
	}
	c.flows[ports].Write(tcp[offset:])
}

// dropped is how many packets the kernel had no room for since it was asked last.
func (c *capture) dropped(t *testing.T) uint32 {
	t.Helper()
	st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatal(err)
	}
	return st.Drops
}

// search returns what was found in the traffic, and how much of it went to and from a port.
func (c *capture) search(s *canary.Set, ports []uint16) (found []string, size map[uint16]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size = make(map[uint16]int)
	for flow, b := range c.flows {
		for _, p := range flow {
			if slices.Contains(ports, p) {
				size[p] += b.Len()
			}
		}
		for _, f := range s.In(b.Bytes()) {
			found = append(found, fmt.Sprintf("from port %d to port %d: %s", flow[0], flow[1], f))
		}
	}
	return found, size
}

// sends sends bytes in the clear over the loopback interface, and returns once they arrived.
func sends(t *testing.T, b []byte) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if _, err := to.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(from, make([]byte, len(b))); err != nil {
		t.Fatal(err)
	}
}

// hierarchy adds the unseal key, the root key and the keyring, which it obtains from shares. The
// vault that it returns is open.
func hierarchy(t *testing.T, s *canary.Set, c *fsmpb.Cluster, shares []string) *vault.Vault {
	t.Helper()
	v, err := vault.New(time.Now, false)
	if err != nil {
		t.Fatal(err)
	}
	set := shamir.SetInfo{Cluster: [16]byte(c.Id), Set: [16]byte(c.Shares.Id), Threshold: int(c.Shares.Threshold), Count: int(c.Shares.Count)}
	var commitments [][32]byte
	for _, b := range c.Shares.Commitments {
		commitments = append(commitments, [32]byte(b))
	}
	all, err := shamir.NewCollector(set, commitments)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range shares {
		share, err := shamir.ParseShare([]byte(text))
		if err == nil {
			_, _, err = all.Add(share)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := all.Secret()
	if err != nil {
		t.Fatal(err)
	}
	s.Add("unseal key", key)
	unseal, err := v.Arena().Store(key)
	if err != nil {
		t.Fatal(err)
	}
	add := func(what string, secret *keymat.Secret) {
		t.Helper()
		if err := secret.With(func(b []byte) error { s.Add(what, b); return nil }); err != nil {
			t.Error(err)
		}
	}
	err = v.OpenWith(c, unseal, func(c *fsmpb.Cluster, root *keymat.Secret) {
		add("root key", root)
		for _, g := range c.Keyring {
			kek, err := keymat.UnwrapKEK(v.Arena(), root, [16]byte(c.Id), g.Generation, g.Wrapped)
			if err != nil {
				t.Error(err)
				continue
			}
			add(fmt.Sprintf("generation %d of the keyring", g.Generation), kek)
			kek.Destroy()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// release is the record of a part that was given.
type release struct {
	Node, Incarnation, Session string
	Agreements                 uint32
	Peers                      []string
}

// TestSecretsAreNowhere captures all packets between the nodes while one of them is unsealed by
// its peers, and searches the capture, the complete data directories of all nodes and their logs
// at debug level for the root key, the unseal key, the keyring, and what the session had: the
// ephemeral private key, the session's key, and the parts.
//
// Those are in locked memory only. The test combines the first ones from the shares, sees
// the ephemeral keys where they are made, and derives the others from the keyring. That it has the
// right ones is shown by the session's id, which is in the record of each part.
func TestSecretsAreNowhere(t *testing.T) {
	keys := &receiverKeys{source: rand.Reader}
	rand.Reader = keys // before there is anybody who reads it; this test is not parallel
	t.Cleanup(func() { rand.Reader = keys.source })
	dir := t.TempDir()
	c := harness.NewCluster(t, 3, harness.Options{Dir: dir})
	admin := harness.Administration(c.Nodes[0])
	if _, err := admin.FinalizeUpgrade(t.Context(), &kmspb.FinalizeUpgradeRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.SetPeerUnseal(t.Context(), &kmspb.SetPeerUnsealRequest{Agreements: 2}); err != nil {
		t.Fatal(err)
	}
	c.Eventually("waiting for return keys", func(ctx context.Context) error {
		res, err := admin.GetPeerUnseal(ctx, &kmspb.GetPeerUnsealRequest{})
		if err == nil && len(res.GetState().GetNodes()) != 3 {
			err = errors.New("nodes are missing")
		}
		return err
	})
	n := c.Nodes[2]
	n.Stop()
	wire := startCapture(t)
	n.Start()
	c.WaitReady(n)
	const patience = 10 * time.Second

	var s canary.Set
	for i, share := range c.Shares {
		s.AddShare(t, fmt.Sprintf("share %d", i+1), share)
	}
	cluster, _ := c.Nodes[0].InProcess().Cluster().State().Cluster()
	v := hierarchy(t, &s, cluster, c.Shares[:harness.Threshold])
	opened, err := v.Current()
	if err != nil {
		t.Fatal(err)
	}
	sessions := 0
	for _, line := range harness.ReadAudit(t, c.Nodes[0], 0) {
		if line.EventName != "ReleaseUnsealPart" {
			continue
		}
		var rec struct{ ServiceEventDetails release }
		if err := json.Unmarshal([]byte(line.Raw), &rec); err != nil {
			t.Fatal(err)
		}
		r := rec.ServiceEventDetails
		incarnation, err := strconv.ParseUint(r.Incarnation, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		known := false
		for i, k := range keys.keys {
			private, err := ecdh.P256().NewPrivateKey(k)
			if err != nil {
				continue // it was refused, and another one was made
			}
			var add []func()
			id, err := peerunseal.Exchanged(v.Arena(), opened, cluster, r.Node, incarnation, private.PublicKey().Bytes(), r.Agreements, r.Peers, func(what string, secret []byte) {
				secret = bytes.Clone(secret)
				add = append(add, func() {
					if strings.HasPrefix(what, "part") {
						s.AddShare(t, what, string(secret))
					} else {
						s.Add(what, secret)
					}
				})
			})
			if err != nil {
				t.Fatal(err)
			}
			if id == r.Session {
				known = true
				s.Add(fmt.Sprintf("ephemeral key %d", i), k)
				for _, add := range add {
					add()
				}
			}
		}
		if !known {
			t.Errorf("the ephemeral key of session %s, in which a part was given, is not known", r.Session)
		}
		sessions++
	}
	if sessions < 2 {
		t.Fatalf("the log has %d records of parts, want 2 at least", sessions)
	}

	// The control of the capture is sent last, so that all before it is there once it is.
	control := make([]byte, 48)
	rand.Read(control)
	var planted canary.Set
	planted.Add("planted", control)
	if found, _ := wire.search(&planted, nil); len(found) > 0 {
		t.Errorf("a secret was found before it was sent: %v", found)
	}
	for _, b := range [][]byte{control, []byte(hex.EncodeToString(control)), []byte(base64.StdEncoding.EncodeToString(control))} {
		sends(t, b)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		found, _ := wire.search(&planted, nil)
		all := strings.Join(found, "\n")
		if strings.Contains(all, "raw") && strings.Contains(all, "hex") && strings.Contains(all, "base64") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("of secrets that were sent in the clear, the capture has only %v", found)
		}
	}
	if n := wire.dropped(t); n > 0 {
		t.Errorf("the capture lacks %d packets", n)
	}
	var ports []uint16
	for _, n := range c.Nodes {
		_, p, err := net.SplitHostPort(n.Peer)
		if err != nil {
			t.Fatal(err)
		}
		number, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, uint16(number))
	}
	found, size := wire.search(&s, ports)
	for _, f := range found {
		t.Errorf("the wire, %s", f)
	}
	for _, p := range ports {
		if size[p] < 4<<10 {
			t.Errorf("the capture has %d bytes of peer port %d: it is not of the traffic between the nodes", size[p], p)
		}
	}
	for _, n := range c.Nodes {
		n.Stop()
	}
	found, bytes, _ := s.InDir(t, dir)
	for _, f := range found {
		t.Errorf("the disk, %s", f)
	}
	t.Logf("%d forms of secrets of %d parts, in %d bytes between the nodes and %d bytes on disk", s.Count, sessions, size[ports[0]]+size[ports[1]]+size[ports[2]], bytes)

	// The control of the disk: in a data directory, and in a log of a node.
	if log, err := os.ReadFile(filepath.Join(dir, n.ID+".log")); err != nil || !strings.Contains(string(log), "node unsealed by its peers") {
		t.Errorf("the log of %s does not say that it was unsealed by its peers: %v", n.ID, err)
	}
	for _, name := range []string{filepath.Join(n.Data, "groups", "planted"), filepath.Join(dir, n.ID+".log")} {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Fprintf(f, "time=x level=DEBUG msg=%x\n", control)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if found, _, _ := planted.InDir(t, dir); len(found) < 2 {
		t.Errorf("of two planted secrets, the search has found %v", found)
	}
}
