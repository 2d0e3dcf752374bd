package main

import (
	"bufio"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/node"
)

func serverConfig(t *testing.T, env map[string]string, args ...string) (*node.Config, error) {
	t.Helper()
	f := pflag.NewFlagSet("server", pflag.ContinueOnError)
	v := addServerFlags(f, serverSettings)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return v.config(func(name string) string { return env[name] })
}

// TestEveryFieldHasAFlag fails when node.Config gets a field that no flag sets.
func TestEveryFieldHasAFlag(t *testing.T) {
	values := map[string]string{
		"peers": "a=1.2.3.4:1", "join": "a=1.2.3.4:1", "bootstrap-expect": "7", "insecure": "true", "allow-unlocked-memory": "true", "xks-allow-private-endpoints": "true",
		"web-identity-allow-private": "true", "publish-audit-log": "true",
		"snapshot-schedule": "6h", "snapshot-keep": "3", "snapshot-keep-for": "720h", "snapshot-without-audit": "true",
		"pkcs11-tokens": "cluster-abcdefghijk=x",
		"disk-low":      "10%", "disk-scarce": "1GiB", "disk-yield": "5%", "disk-full": "1%",
		"quotas": "keys=200000", "refusal-rate": "20", "trace-sample": "0.5", "audit-retention": "720h", "remove-dead-after": "72h", "alerts": "all", "heartbeat-timeout": "2s", "shutdown-timeout": "3s", "log-level": "error", "log-json": "true",
	}
	var c node.Config
	for _, s := range serverSettings {
		v := values[s.flag]
		if v == "" {
			v = "x"
		}
		if err := s.set(&c, v); err != nil {
			t.Errorf("--%s: %v", s.flag, err)
		}
	}
	notSet := []string{"Identity", "LogOutput", "Release", "Seeds", "Test"} // not the user of a server's
	for i, v := 0, reflect.ValueOf(c); i < v.NumField(); i++ {
		name := v.Type().Field(i).Name
		if v.Field(i).IsZero() != slices.Contains(notSet, name) {
			t.Errorf("field %s: set by a flag is %v", name, !v.Field(i).IsZero())
		}
	}
}

func TestServerConfig(t *testing.T) {
	dir := t.TempDir()
	if _, err := (&certs.Plan{Dir: dir, Nodes: []string{"n1"}, Operator: "op"}).Bootstrap(); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"CONCLAVE_NODE_ID": "n1", "CONCLAVE_DATA": "/data", "CONCLAVE_LISTEN": "::1",
		"CONCLAVE_TLS_CA": dir + "/ca.pem", "CONCLAVE_TLS_CERT": dir + "/n1.pem", "CONCLAVE_TLS_KEY": dir + "/n1-key.pem",
		"CONCLAVE_GOSSIP_KEY_FILE": dir + "/gossip.key",
	}
	common := node.Config{
		NodeID: "n1", Data: "/data", AWSListen: "[::1]:7600", GRPCListen: "[::1]:7601", PeerListen: "[::1]:7602", OpsListen: "[::1]:7604",
		TLSCA: dir + "/ca.pem", TLSCert: dir + "/n1.pem", TLSKey: dir + "/n1-key.pem", GossipKeyFile: dir + "/gossip.key", BootstrapExpect: 1,
	}
	for _, c := range []struct {
		name string
		env  map[string]string
		args []string
		want func(*node.Config)
	}{
		{"one node", nil, nil, func(*node.Config) {}},
		{"a flag wins", nil, []string{"--data", "/other", "--log-json", "--log-json=true"}, func(c *node.Config) { c.Data, c.LogJSON = "/other", true }},
		{"listen", map[string]string{"CONCLAVE_LISTEN": "0.0.0.0", "CONCLAVE_OPS_LISTEN": "none", "CONCLAVE_GRPC_LISTEN": "10.0.0.1:99"}, nil, func(c *node.Config) {
			c.AWSListen, c.GRPCListen, c.PeerListen, c.OpsListen = "0.0.0.0:7600", "10.0.0.1:99", "0.0.0.0:7602", ""
		}},
		{"default listen", map[string]string{"CONCLAVE_LISTEN": ""}, nil, func(c *node.Config) {
			c.AWSListen, c.GRPCListen, c.PeerListen, c.OpsListen = "127.0.0.1:7600", "127.0.0.1:7601", "127.0.0.1:7602", "127.0.0.1:7604"
		}},
		{"peers", map[string]string{"CONCLAVE_PEERS": "n1=n1:7602, n2=n2:7602,n3=n3:7602"}, nil, func(c *node.Config) {
			c.Peers = map[string]string{"n1": "n1:7602", "n2": "n2:7602", "n3": "n3:7602"}
			c.BootstrapExpect, c.GossipListen = 3, "[::1]:7603"
		}},
		{"join", map[string]string{"CONCLAVE_JOIN": "n2=n2:7602,n3=n3:7602"}, nil, func(c *node.Config) {
			c.Join = map[string]string{"n2": "n2:7602", "n3": "n3:7602"}
			c.BootstrapExpect, c.GossipListen = 0, "[::1]:7603"
		}},
		{"a first node, with what all nodes get", map[string]string{"CONCLAVE_PEERS": "n1=n1:7602,n2=n2:7602,n3=n3:7602", "CONCLAVE_JOIN": "n1=n1:7602,n2=n2:7602", "CONCLAVE_BOOTSTRAP_EXPECT": "3"}, nil, func(c *node.Config) {
			c.Peers = map[string]string{"n1": "n1:7602", "n2": "n2:7602", "n3": "n3:7602"}
			c.BootstrapExpect, c.GossipListen = 3, "[::1]:7603"
		}},
		{"a later node, with what all nodes get", map[string]string{"CONCLAVE_PEERS": "n2=n2:7602,n3=n3:7602", "CONCLAVE_JOIN": "n2=n2:7602,n3=n3:7602", "CONCLAVE_BOOTSTRAP_EXPECT": "2"}, nil, func(c *node.Config) {
			c.Join = map[string]string{"n2": "n2:7602", "n3": "n3:7602"}
			c.BootstrapExpect, c.GossipListen = 0, "[::1]:7603"
		}},
		{"proxies", map[string]string{"CONCLAVE_TRUSTED_PROXIES": "10.0.0.0/24,2001:db8::1"}, nil, func(c *node.Config) {
			c.TrustedProxies = []string{"10.0.0.0/24", "2001:db8::1"}
		}},
		{"peers without gossip", map[string]string{"CONCLAVE_PEERS": "n1=n1:7602,n2=n2:7602", "CONCLAVE_BOOTSTRAP_EXPECT": "2", "CONCLAVE_GOSSIP_LISTEN": "none"}, nil, func(c *node.Config) {
			c.Peers = map[string]string{"n1": "n1:7602", "n2": "n2:7602"}
			c.BootstrapExpect = 2
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := maps.Clone(env)
			maps.Copy(all, c.env)
			got, err := serverConfig(t, all, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			want := common
			c.want(&want)
			if diff := cmp.Diff(&want, got, cmpopts.IgnoreFields(node.Config{}, "Test")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	for what, more := range map[string]map[string]string{
		"bootstrap-expect": {"CONCLAVE_BOOTSTRAP_EXPECT": "3"},
		"itself":           {"CONCLAVE_JOIN": "n1=n1:7602"},
	} {
		all := maps.Clone(env)
		all["CONCLAVE_JOIN"] = "n2=n2:7602"
		maps.Copy(all, more)
		if _, err := serverConfig(t, all); err == nil || !strings.Contains(err.Error(), "join:") {
			t.Errorf("a node that joins, with %s: %v", what, err)
		}
	}
	for _, tokens := range []string{"", "x", "cluster-abcdefghijk", "cluster-abcdefghijk=", "cluster-abc=x", "cluster-abcdefghijk=x,cluster-abcdefghijk=y"} {
		if _, err := parseTokens(tokens); err == nil {
			t.Errorf("tokens %q are taken", tokens)
		}
	}
	for _, peers := range []string{"n1", "=x", "n1=", "n1=a:1,n1=b:1", "n1=a:1,"} {
		if _, err := cli.ParsePeers(peers); err == nil {
			t.Errorf("peers %q are taken", peers)
		}
	}
}

// TestSignals sends a server the signals that init systems send.
func TestSignals(t *testing.T) {
	dir := t.TempDir()
	if _, err := (&certs.Plan{Dir: dir, Nodes: []string{"n1"}, Operator: "op"}).Bootstrap(); err != nil {
		t.Fatal(err)
	}
	cmd := conclave(t, "server", "--node-id", "n1", "--data", filepath.Join(dir, "data"),
		"--tls-ca", dir+"/ca.pem", "--tls-cert", dir+"/n1.pem", "--tls-key", dir+"/n1-key.pem", "--allow-unlocked-memory",
		"--aws-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	told := func(want string) {
		t.Helper()
		if err := manager.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1024)
		// The status can change in between, such as when a leader is elected.
		for {
			n, err := manager.Read(buf)
			if err != nil {
				t.Errorf("systemd is not told %q: %v", want, err)
				return
			}
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
		}
	}
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(log); s.Scan(); {
			lines <- s.Text()
		}
	}()
	var seen []string
	await := func(want string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case l, ok := <-lines:
				if !ok {
					t.Fatalf("the server ended before it said %q:\n%s", want, strings.Join(seen, "\n"))
				}
				if seen = append(seen, l); strings.Contains(l, want) {
					return
				}
			case <-deadline:
				_ = cmd.Process.Kill()
				t.Fatalf("the server does not say %q:\n%s", want, strings.Join(seen, "\n"))
			}
		}
	}
	await("node started")
	told("READY=1\nSTATUS=uninitialised")
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await("certificates reloaded")
	// If a certificate is invalid, the old one stays in use.
	if err := files.Write(dir+"/n1.pem", []byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await("the old ones stay in use")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range lines {
	}
	told("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit code 0", err)
	}
}
