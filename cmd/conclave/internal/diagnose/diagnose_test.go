package diagnose

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/node"
)

// write writes a file of a test.
func write(t *testing.T, name string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("test", 10*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue writes the certificate of a node, and its key, to a directory.
func issue(t *testing.T, ca *pki.CA, dir, id string) (cert, key string) {
	t.Helper()
	certPEM, keyPEM, err := ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: id, Validity: 365 * 24 * time.Hour, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, id+".pem"), filepath.Join(dir, id+"-key.pem")
	write(t, cert, certPEM, 0o644)
	write(t, key, keyPEM, 0o600)
	return cert, key
}

// healthy is the configuration of a node that nothing keeps from running.
func healthy(t *testing.T) (*node.Config, *pki.CA) {
	t.Helper()
	dir := t.TempDir()
	ca := newCA(t)
	cfg := &node.Config{
		NodeID: "node-1", Data: filepath.Join(dir, "data"), BootstrapExpect: 1,
		AWSListen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", OpsListen: "127.0.0.1:0",
		TLSCA: filepath.Join(dir, "ca.pem"), AllowUnlockedMemory: true,
	}
	cfg.TLSCert, cfg.TLSKey = issue(t, ca, dir, "node-1")
	write(t, cfg.TLSCA, ca.CertPEM(), 0o644)
	if err := os.Mkdir(cfg.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	return cfg, ca
}

// found runs one check and returns the worst state with all that was said.
func found(t *testing.T, name string, s *subject) (State, string) {
	t.Helper()
	if s.now.IsZero() {
		s.now = time.Now()
	}
	s.identity, _ = pki.LoadIdentity(s.cfg.TLSCert, s.cfg.TLSKey, s.cfg.TLSCA)
	i := slices.IndexFunc(checks, func(c struct {
		name string
		run  func(context.Context, *subject, *report)
	}) bool {
		return c.name == name
	})
	r := new(report)
	checks[i].run(t.Context(), s, r)
	var said strings.Builder
	for _, f := range r.list {
		said.WriteString(f.Found + " / " + f.Next + "\n")
		if (f.State == OK) != (f.Next == "") {
			t.Errorf("%s: a finding must say what to do, unless it is fine: %+v", name, f)
		}
	}
	return Worst(r.list), said.String()
}

func TestHealthyMachine(t *testing.T) {
	cfg, _ := healthy(t)
	list := Run(t.Context(), cfg, nil)
	for _, f := range list {
		if f.State == Problem {
			t.Errorf("%+v", f)
		}
	}
	if len(list) < 9 {
		t.Errorf("only %d findings: %+v", len(list), list)
	}
	if left, err := os.ReadDir(cfg.Data); err != nil || len(left) > 0 {
		t.Errorf("left in the data directory: %v, %v", left, err)
	}
}

func TestEachProblemIsFound(t *testing.T) {
	for _, c := range []struct {
		name, check string
		spoil       func(t *testing.T, cfg *node.Config, ca *pki.CA, s *subject)
		state       State
		say         string
	}{
		{"clock of 1970", "clock", func(_ *testing.T, _ *node.Config, _ *pki.CA, s *subject) { s.now = time.Unix(0, 0) }, Problem, "before this program was made"},
		{"expired", "certificates", func(_ *testing.T, _ *node.Config, _ *pki.CA, s *subject) { s.now = time.Now().AddDate(2, 0, 0) }, Problem, "the node's certificate has expired"},
		{"expires soon", "certificates", func(_ *testing.T, _ *node.Config, _ *pki.CA, s *subject) { s.now = time.Now().AddDate(0, 0, 350) }, Warning, "conclave cert issue node node-1"},
		{"not valid yet", "certificates", func(_ *testing.T, _ *node.Config, _ *pki.CA, s *subject) { s.now = time.Now().AddDate(0, 0, -9) }, Problem, "valid only from"},
		{"of another node", "certificates", func(_ *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) { cfg.NodeID = "node-2" }, Problem, "is of node node-1, and this is node node-2"},
		{"of another CA", "certificates", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			write(t, cfg.TLSCA, newCA(t).CertPEM(), 0o644)
		}, Problem, "other nodes refuse this one as a server"},
		{"key of another", "certificates", func(t *testing.T, cfg *node.Config, ca *pki.CA, _ *subject) {
			_, cfg.TLSKey = issue(t, ca, t.TempDir(), "node-9")
		}, Problem, "private key does not match"},
		{"other address", "certificates", func(_ *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) { cfg.AWSAdvertise = "kms.example.com:7600" }, Warning, "--dns or --ip kms.example.com"},
		{"readable key", "certificates", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			if err := os.Chmod(cfg.TLSKey, 0o644); err != nil {
				t.Fatal(err)
			}
		}, Warning, "chmod 640"},
		{"revoked", "revocation lists", func(t *testing.T, cfg *node.Config, ca *pki.CA, _ *subject) {
			id, err := pki.LoadIdentity(cfg.TLSCert, cfg.TLSKey, cfg.TLSCA)
			if err != nil {
				t.Fatal(err)
			}
			list, err := ca.Revoke(nil, time.Now(), pki.Revocation{Serial: id.Serial(), At: time.Now(), Reason: "superseded"})
			if err != nil {
				t.Fatal(err)
			}
			write(t, node.CRLFile(cfg.Data), list.PEM(), 0o600)
		}, Problem, "certificate is revoked"},
		{"damaged list", "revocation lists", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			write(t, node.CRLFile(cfg.Data), []byte("nonsense"), 0o600)
		}, Problem, "another node's copy"},
		{"short gossip key", "gossip key", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			cfg.BootstrapExpect, cfg.GossipListen, cfg.GossipKeyFile = 3, "127.0.0.1:0", filepath.Join(t.TempDir(), "gossip.key")
			write(t, cfg.GossipKeyFile, []byte("c2hvcnQ="), 0o600)
		}, Problem, "same on all"},
		{"others may write", "data directory", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			if err := os.Chmod(cfg.Data, 0o777); err != nil {
				t.Fatal(err)
			}
		}, Problem, "others may write"},
		{"others may read", "data directory", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			if err := os.Chmod(cfg.Data, 0o755); err != nil {
				t.Fatal(err)
			}
		}, Warning, "others may look"},
		{"of another node", "data directory", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			write(t, filepath.Join(cfg.Data, "node.json"), []byte(`{"format":1,"node":"node-7"}`), 0o600)
		}, Problem, "belongs to node node-7"},
		{"a file", "data directory", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) { cfg.Data = cfg.TLSCert }, Problem, "not a directory"},
		{"no room", "disk space", func(_ *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			all := diskspace.Mark{Percent: 99.99}
			cfg.Space = diskspace.Marks{Low: all, Scarce: all, Yield: all, Full: all}
		}, Problem, "disk-full.md"},
		{"little room", "disk space", func(_ *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			cfg.Space = diskspace.Marks{Low: diskspace.Mark{Percent: 99.99}}
		}, Warning, "will be refused"},
		{"cannot be written", "disk latency", func(_ *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) { cfg.Data = "/proc/self" }, Problem, "nothing can be written"},
		{"port in use", "ports", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			cfg.GRPCListen = l.Addr().String()
		}, Problem, "--grpc-listen"},
		{"port of gossip in use", "ports", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			cfg.GossipListen = c.LocalAddr().String()
		}, Problem, "--gossip-listen"},
		{"address of another machine", "ports", func(_ *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) { cfg.AWSListen = "192.0.2.1:7600" }, Problem, "an address of this machine"},
		{"peer that does not run", "peers", func(t *testing.T, cfg *node.Config, _ *pki.CA, _ *subject) {
			cfg.Peers = map[string]string{"node-1": "127.0.0.1:1", "node-2": "127.0.0.1:1"}
		}, Warning, "node-2 at 127.0.0.1:1 cannot be reached"},
		{"peer that is another", "peers", func(t *testing.T, cfg *node.Config, ca *pki.CA, _ *subject) {
			cfg.Peers = map[string]string{"node-1": "127.0.0.1:1", "node-2": peerOf(t, ca, cfg, "node-3")}
		}, Warning, `node "node-3" instead of "node-2"`},
		{"peer", "peers", func(t *testing.T, cfg *node.Config, ca *pki.CA, _ *subject) {
			cfg.Peers = map[string]string{"node-1": "127.0.0.1:1", "node-2": peerOf(t, ca, cfg, "node-2")}
		}, OK, "with its certificate"},
	} {
		t.Run(c.check+"/"+c.name, func(t *testing.T) {
			t.Parallel()
			cfg, ca := healthy(t)
			s := &subject{cfg: cfg}
			c.spoil(t, cfg, ca, s)
			state, said := found(t, c.check, s)
			if state != c.state || !strings.Contains(said, c.say) {
				t.Errorf("got %s, want %s with %q:\n%s", state, c.state, c.say, said)
			}
		})
	}
}

// peerOf serves the peer port of a node, as far as the handshake, and returns its address.
func peerOf(t *testing.T, ca *pki.CA, cfg *node.Config, id string) string {
	t.Helper()
	cert, key := issue(t, ca, t.TempDir(), id)
	identity, err := pki.LoadIdentity(cert, key, cfg.TLSCA)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = tls.Server(c, identity.Server(func(string, string) error { return nil })).Handshake()
			c.Close()
		}
	}()
	return l.Addr().String()
}

// TestHangIsFound: a check that does not return, as on a disk that hangs, is a problem and
// does not keep Run from returning.
func TestHangIsFound(t *testing.T) {
	cfg, _ := healthy(t)
	old := checks
	defer func() { checks = old }()
	release := make(chan struct{})
	defer close(release)
	checks = slices.Clone(checks[:1])
	checks[0].name = "disk latency"
	checks[0].run = func(context.Context, *subject, *report) { <-release }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	list := Run(ctx, cfg, nil)
	if i := slices.IndexFunc(list, func(f Finding) bool { return f.Check == "disk latency" && f.State == Problem }); i < 0 {
		t.Errorf("the hang is not found: %+v", list)
	}
}
