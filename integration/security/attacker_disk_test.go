package security

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/gossip"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/integration/canary"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestThiefRunsTheServer starts the real server on the stolen disk of the node that
// led: with certificates of the thief's own, and with the node's TLS identity. The
// thief is an operator of that server, and has shares of another cluster.
func TestThiefRunsTheServer(t *testing.T) {
	t.Parallel()
	path, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	x := steal(t, theft{leads: true})
	x.serves("after the leader is gone")
	found, size, _ := x.s.InDir(t, x.disk)
	report(t, "the stolen disk", found)
	if size < 10<<10 {
		t.Errorf("void: the stolen disk has %d bytes", size)
	}
	foreign := harness.Start(t, 1, harness.Options{})
	foreign.Init()

	ca, err := pki.NewCA("the thief's", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, key, err := ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: x.stolen.ID, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	opCert, opKey, err := ca.Issue(pki.IssueRequest{Kind: pki.KindOperator, Name: "thief", Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	operator, err := tls.X509KeyPair(opCert, opKey)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(x.c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	both := append(bytes.Clone(theirs), ca.CertPEM()...)
	var peers []string
	for _, n := range x.c.Nodes {
		peers = append(peers, n.ID+"="+n.Peer)
	}
	for _, tt := range []struct{ what, cert, key, ca string }{
		{"the disk alone", write("cert.pem", cert), write("key.pem", key), write("ca.pem", both)},
		{"disk and identity", filepath.Join(x.dir, x.stolen.ID+".pem"), filepath.Join(x.dir, x.stolen.ID+"-key.pem"), write("both.pem", both)},
	} {
		t.Run(tt.what, func(t *testing.T) {
			logs, err := os.Create(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer logs.Close()
			cmd := exec.Command(path, "server", "--node-id", x.stolen.ID, "--data", x.disk,
				"--aws-listen", x.stolen.AWS, "--grpc-listen", x.stolen.GRPC, "--peer-listen", x.stolen.Peer, "--ops-listen", x.stolen.Ops,
				"--gossip-listen", "none", "--peers", strings.Join(peers, ","), "--tls-cert", tt.cert, "--tls-key", tt.key, "--tls-ca", tt.ca,
				"--allow-unlocked-memory")
			cmd.Stdout, cmd.Stderr = logs, logs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cmd.Process.Kill()
				_ = cmd.Wait()
				b, err := os.ReadFile(logs.Name())
				if err != nil {
					t.Error(err)
				}
				report(t, "the server's log", x.s.In(b))
			}()
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(both)
			as, err := client.Dial(t.Context(), client.Config{Address: x.stolen.GRPC, TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{operator}}})
			if err != nil {
				t.Fatal(err)
			}
			defer as.Close()
			sealed := func() error {
				s, err := as.Operator().Status(t.Context(), &kmspb.StatusRequest{})
				if err == nil && !s.GetSeal().GetSealed() {
					t.Error("the stolen disk is unsealed")
				}
				if err == nil && !s.GetSeal().GetInitialised() {
					err = errors.New("it has not read its state yet")
				}
				return err
			}
			// Without the others' word it does not even know what is committed.
			if err := harness.Poll(t.Context(), 5*time.Second, func(context.Context) error { return sealed() }); err != nil {
				t.Logf("the server on the stolen disk: %v", err)
			}
			for _, share := range foreign.Shares[:harness.Threshold] {
				if s, err := client.SubmitShare(t.Context(), as.Operator(), []byte(share)); err == nil && s.GetError() == nil {
					t.Errorf("a share of another cluster was taken: %v", s)
				}
			}
			x.serves("beside the server on the stolen disk")
			// It is called to lead, again and again.
			th := x.thief()
			th.peers[x.stolen.ID] = x.stolen.Peer
			for range 3 {
				_ = th.raft.TimeoutNow(raft.ServerID(x.stolen.ID), raft.ServerAddress(x.stolen.Peer), &raft.TimeoutNowRequest{RPCHeader: th.header()}, new(raft.TimeoutNowResponse))
				x.serves("while it tries to lead")
			}
			_ = sealed()
			report(t, "the server's memory", inMemory(t, &x.s.Set, cmd.Process.Pid))
		})
	}
	x.unharmed("after the server ran on the stolen disk")
	x.end(nil)
}

// TestThiefPlantsSnapshots puts what the thief likes on the stolen node's disk and
// gives it back: it is started and unsealed by those who know nothing. Whatever it
// finds, it does not serve from another state than the cluster's.
func TestThiefPlantsSnapshots(t *testing.T) {
	t.Parallel()
	x := steal(t, theft{old: true})
	snapshots := func(data string) string { return filepath.Join(data, "groups", "0", "raft", "snapshots") }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(data, name string, meta raft.SnapshotMeta, state []byte) {
		t.Helper()
		meta.ID, meta.Size = name, int64(len(state))
		sum := crc64.New(crc64.MakeTable(crc64.ECMA))
		sum.Write(state)
		// As raft writes it, with the checksum beside the rest.
		meta.Peers = nil
		b, err := json.Marshal(struct {
			raft.SnapshotMeta
			CRC []byte
		}{meta, sum.Sum(nil)})
		must(err)
		must(os.RemoveAll(snapshots(data)))
		dir := filepath.Join(snapshots(data), name)
		must(os.MkdirAll(dir, 0o700))
		must(os.WriteFile(filepath.Join(dir, "meta.json"), b, 0o600))
		must(os.WriteFile(filepath.Join(dir, "state.bin"), state, 0o600))
	}
	// base is the node's disk as it was last when it was well: the cluster knows how far
	// that goes, and refuses older ones.
	base := x.disk
	old, oldState, _ := snapshotIn(t, x.old)
	var now *raft.SnapshotMeta
	var state []byte
	for _, tt := range []struct {
		what  string
		plant func(data string)
	}{
		{"an old snapshot", func(data string) { put(data, old.ID, *old, oldState) }},
		{"an old snapshot under a new index", func(data string) {
			m := *old
			m.Index = now.Index + 3
			put(data, fmt.Sprintf("%d-%d-%d", m.Term, m.Index, time.Now().UnixMilli()), m, oldState)
		}},
		{"an edited snapshot", func(data string) { put(data, now.ID, *now, enabledAgain(t, state, nil)) }},
		{"an edited snapshot that attests itself", func(data string) {
			_, key, err := ed25519.GenerateKey(nil)
			must(err)
			put(data, now.ID, *now, enabledAgain(t, state, key))
		}},
		{"an old copy of all", func(data string) { must(copyTree(data, x.old)) }},
	} {
		must(copyTree(x.stolen.Data, base))
		now, state, _ = snapshotIn(t, base)
		tt.plant(x.stolen.Data)
		outcome := x.giveBack()
		t.Logf("%s: the node %s", tt.what, outcome)
		x.serves("beside a node with " + tt.what)
		x.unharmed("beside a node with " + tt.what)
		x.stolen.Kill()
		if outcome == fromTheCluster {
			base = x.copyDisk("base")
		}
	}
	x.end(nil)
}

// fromTheCluster is how a node that was given back should end up, if it serves.
const fromTheCluster = "serves from the cluster's state"

// giveBack starts the stolen node on what is in its directory, and unseals it.
func (x *heist) giveBack() string {
	x.t.Helper()
	if err := x.stolen.TryStart(); err != nil {
		return "does not start: " + err.Error()
	}
	ended := func() error {
		if n := x.stolen.InProcess(); n != nil {
			return n.Err()
		}
		return errors.New("it is gone")
	}
	limit := time.Now().Add(servesWithin)
	for i := 0; time.Now().Before(limit); i++ {
		if err := ended(); err != nil {
			return "ends by itself: " + err.Error()
		}
		ctx, cancel := context.WithTimeout(x.t.Context(), 5*time.Second)
		s, err := client.SubmitShare(ctx, x.stolen.Operator(), []byte(x.c.Shares[i%harness.Threshold]))
		cancel()
		if err == nil && s.GetSeal() != nil && !s.GetSeal().GetSealed() {
			break
		}
		if err == nil && s.GetError() != nil && i > 20 {
			return "is not unsealed: " + s.GetError().GetMessage()
		}
		time.Sleep(50 * time.Millisecond)
	}
	// It serves: then from the cluster's state.
	for time.Now().Before(limit) {
		if err := ended(); err != nil {
			return "ends by itself: " + err.Error()
		}
		ctx, cancel := context.WithTimeout(x.t.Context(), 5*time.Second)
		_, d := x.h.At(x.stolen).Decrypt(ctx, x.blob)
		cancel()
		if d.Code == "" {
			x.t.Errorf("the node decrypts with the disabled key")
			return "is the thief's"
		}
		if d.Code == "DisabledException" {
			now := x.state(x.stolen)
			for what, row := range x.before {
				if now[what] != row && !strings.HasPrefix(what, "node ") {
					x.t.Errorf("on the node that was given back, %s is %s, and was %s", what, now[what], row)
				}
			}
			return fromTheCluster
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "serves nobody"
}

// enabledAgain is a snapshot with every key enabled, and described otherwise. With a
// key of the thief's it has that for the cluster's origin key, and a signature by it.
func enabledAgain(t *testing.T, snapshot []byte, own ed25519.PrivateKey) []byte {
	t.Helper()
	const magic = "conclave snapshot\x00\x01"
	plain, err := canary.Unpack(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	out := []byte(magic)
	sum := sha256.New()
	var cluster *fsmpb.Cluster
	keys := 0
	for b := plain[len(magic):]; len(b) > 0; {
		n := binary.BigEndian.Uint32(b)
		var item fsmpb.SnapshotItem
		if err := proto.Unmarshal(b[4:4+n], &item); err != nil {
			t.Fatal(err)
		}
		attested := true
		switch m := item.Item.(type) {
		case *fsmpb.SnapshotItem_Key:
			m.Key.State, m.Key.Description = fsmpb.KeyState_KEY_STATE_ENABLED, "the thief's"
			keys++
		case *fsmpb.SnapshotItem_Cluster:
			cluster = m.Cluster
			for _, k := range cluster.OriginKeys {
				if own != nil {
					k.PublicKey = own.Public().(ed25519.PublicKey)
				}
			}
		case *fsmpb.SnapshotItem_Attestation:
			if own != nil {
				digest := [32]byte(sum.Sum(nil))
				m.Attestation = &fsmpb.Attestation{Generation: 1, Signature: ed25519.Sign(own, origin.Message(cluster, "conclave state v1", digest))}
				if err := origin.VerifyAttestation(cluster, digest, m.Attestation); err != nil {
					t.Fatal(err)
				}
			}
			attested = false
		case *fsmpb.SnapshotItem_Session, *fsmpb.SnapshotItem_KeyUse, *fsmpb.SnapshotItem_StateChecks, *fsmpb.SnapshotItem_Observation, *fsmpb.SnapshotItem_End:
			attested = false
		}
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&item)
		if err != nil {
			t.Fatal(err)
		}
		raw = append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...)
		if attested {
			sum.Write(raw)
		}
		out = append(out, raw...)
		b = b[4+n:]
	}
	if keys == 0 {
		t.Fatal("the snapshot has no key")
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(out, nil)
}

// liar is a member of the address book that says of itself what it likes.
type liar struct{ meta []byte }

func (l liar) NodeMeta(int) []byte           { return l.meta }
func (liar) NotifyMsg([]byte)                {}
func (liar) GetBroadcasts(int, int) [][]byte { return nil }
func (liar) LocalState(bool) []byte          { return []byte("a state") }
func (liar) MergeRemoteState([]byte, bool)   {}
func (l liar) conf(name, addr string, key []byte) (*memberlist.Config, error) {
	c := memberlist.DefaultLocalConfig()
	c.Name, c.Label, c.SecretKey, c.Delegate = name, "conclave", key, l
	c.Logger = log.New(io.Discard, "", 0)
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		c.BindAddr = host
		c.BindPort, err = strconv.Atoi(port)
	}
	c.AdvertisePort = c.BindPort
	return c, err
}

// TestThiefWithGossipKey has the key of the address book and nothing else. It says
// that every node is at an address of its own, that others are dead, and that there
// are more.
func TestThiefWithGossipKey(t *testing.T) {
	t.Parallel()
	secret := []byte(randomText(48))
	file := filepath.Join(t.TempDir(), "gossip")
	if err := os.WriteFile(file, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(free.Addr().String())
	free.Close()
	var mu sync.Mutex
	books := make(map[string]string)
	x := steal(t, theft{configure: func(n *harness.Node, cfg *node.Config) {
		cfg.GossipKeyFile = file
		// One port for all, as seeds have it, and an address for each; the first is
		// where the others look.
		host := net.IPv4(127, 0, 0, 1)
		if n.Index > 0 {
			host = net.IPv4(127, 0, 7, byte(n.Index))
		}
		cfg.GossipListen = net.JoinHostPort(host.String(), port)
		mu.Lock()
		defer mu.Unlock()
		books[n.ID] = cfg.GossipListen
	}})
	// Nothing is missing here but the key.
	x.stolen.Start()
	x.stolen.Unseal()
	x.c.WaitReady()
	x.honest = x.c.Nodes

	decoy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer decoy.Close()
	th := x.thief()
	th.peers = nil
	go func() { // whoever comes to the false address gets a handshake with a certificate of no node
		for {
			c, err := decoy.Accept()
			if err != nil {
				return
			}
			th.note("decoy")
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = io.Copy(io.Discard, tap{c, th})
			}()
		}
	}()
	key, err := gossip.DeriveKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	meta := []byte(`{"p":"` + decoy.Addr().String() + `"}`)
	var joined int
	join := func(name string) *memberlist.Memberlist {
		t.Helper()
		conf, err := liar{meta}.conf(name, "127.0.8.1:0", key)
		if err != nil {
			t.Fatal(err)
		}
		m, err := memberlist.Create(conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Shutdown() })
		for _, addr := range books {
			n, _ := m.Join([]string{addr})
			joined += n
		}
		return m
	}
	for _, name := range []string{"a", "b", "c", "stranger"} {
		m := join(name)
		x.serves("while the thief says that it is " + name)
		_ = m.Leave(100 * time.Millisecond) // and now that one is gone
		x.serves("after the thief said that " + name + " is gone")
	}
	if joined == 0 {
		t.Error("void: the thief joined nobody's address book")
	}
	// A node that is down is looked for at the false address too.
	down := x.c.Nodes[(x.c.Leader().Index+1)%3]
	down.Stop() // and it says so, which lets another take its name
	x.honest = slices.DeleteFunc(slices.Clone(x.c.Nodes), func(n *harness.Node) bool { return n == down })
	x.c.Network.Rejoin(down.ID)
	m := join(down.ID)
	x.serves("without a node")
	// The address book lets a name be taken at once, or half a minute after its owner
	// was last heard of: too long to wait for here.
	if err := harness.Poll(t.Context(), 5*time.Second, func(context.Context) error {
		if th.was("decoy") == 0 {
			return errors.New("nobody came to the false address")
		}
		return nil
	}); err != nil {
		t.Log(err)
	}
	m.Shutdown()
	down.Start()
	down.Unseal()
	x.c.WaitReady(down)
	x.honest = x.c.Nodes
	x.serves("with it again")
	t.Logf("%d connections came to the false address", th.was("decoy"))
	for _, form := range []string{string(secret), base64.StdEncoding.EncodeToString(secret)} {
		if bytes.Contains(th.all(), []byte(form)) {
			t.Error("the thief was sent the gossip key")
		}
	}
	x.end(th)
}
