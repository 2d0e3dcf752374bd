package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
	"github.com/conclavekms/conclave/cmd/conclave/process"
)

// changesMembers are the commands whose examples are in the runbook, word for word.
var changesMembers = []string{"cluster ca import", "cluster ca remove", "cluster ca show", "cluster join", "cluster join-token", "cluster promote", "cluster remove", "cluster replace", "cluster set-address", "cluster step-down", "cluster transfer-leader"}

// membersCluster is a cluster of processes for the commands of the runbook, which name its
// nodes by the addresses that they would have in a data centre.
type membersCluster struct {
	*kitchen
	local   *strings.Replacer
	servers map[string]*process.Process
	lines   map[string]string // by which they were started
}

// newMembersCluster starts node-1 to node-3, and initialises and unseals them.
func newMembersCluster(t *testing.T) *membersCluster {
	k := newKitchen(t)
	ids := []string{"node-1", "node-2", "node-3", "node-4", "node-5", "node-6", "reader-1"}
	ports, err := localcluster.FreePorts(4*len(ids) + 1)
	if err != nil {
		t.Fatal(err)
	}
	c := &membersCluster{kitchen: k, servers: make(map[string]*process.Process), lines: make(map[string]string)}
	var pairs, addresses []string
	// node-3 moves to 10.0.9.3, where it has another peer port.
	p, moved := ports[4*slices.Index(ids, "node-3"):], ports[4*len(ids)]
	pairs = append(pairs, "10.0.9.3:7602", moved, "--data /var/lib/conclave --listen 10.0.9.3",
		fmt.Sprintf("--data data-node-3 --grpc-listen %s --peer-listen %s --gossip-listen %s --ops-listen %s", p[0], moved, p[2], p[3]))
	for i, id := range ids {
		ip, p := fmt.Sprint("10.0.0.", i+1), ports[4*i:]
		if id == "reader-1" {
			ip = "10.0.1.1"
		}
		addresses = append(addresses, id+":7601")
		pairs = append(pairs, id+":7601", p[0], ip+":7602", p[1], "--ip "+ip, "--ip 127.0.0.1",
			"--data /var/lib/conclave --listen "+ip, fmt.Sprintf("--data data-%s --grpc-listen %s --peer-listen %s --gossip-listen %s --ops-listen %s", id, p[0], p[1], p[2], p[3]))
	}
	c.local = strings.NewReplacer(pairs...)
	k.env = append(k.env, "CONCLAVE_ALLOW_UNLOCKED_MEMORY=true", "CONCLAVE_CA=tls/ca.pem", "CONCLAVE_CERT=tls/operator.pem", "CONCLAVE_KEY=tls/operator-key.pem",
		c.local.Replace("CONCLAVE_ADDRESS="+strings.Join(addresses, ",")))
	k.must("conclave cert bootstrap --dir tls --nodes node-1,node-2,node-3 --ip 127.0.0.1")
	for i := 1; i <= 3; i++ {
		c.do(fmt.Sprintf("conclave server --node-id node-%[1]d --data /var/lib/conclave --listen 10.0.0.%[1]d --peers node-1=10.0.0.1:7602,node-2=10.0.0.2:7602,node-3=10.0.0.3:7602 "+
			"--tls-cert tls/node-%[1]d.pem --tls-key tls/node-%[1]d-key.pem --tls-ca tls/ca.pem --gossip-key-file tls/gossip.key", i))
	}
	first := " --address node-1:7601,node-2:7601,node-3:7601"
	c.eventually("conclave operator init --shares 3 --threshold 2 --shares-dir ceremony --address node-1:7601", "")
	c.do("cp ceremony/share-*.txt .")
	for n := range 2 {
		c.eventually(fmt.Sprintf("conclave operator unseal --share-file share-%d.txt", n+1)+first, "")
	}
	return c
}

// do runs a command, and a server in the background.
func (c *membersCluster) do(line string) string {
	c.t.Helper()
	line = c.local.Replace(line)
	if words := strings.Fields(line); words[1] == "server" {
		id := words[3]
		p, err := process.Start(process.Command{Path: "sh", Args: []string{"-euc", "cd " + c.dir + "; exec " + line}, Env: c.env, Log: filepath.Join(c.dir, id+".log")})
		if err != nil {
			c.t.Fatal(err)
		}
		c.servers[id], c.lines[id] = p, line
		c.t.Cleanup(p.Kill)
		return ""
	}
	return c.must(line)
}

// eventually repeats a command until it succeeds and shows want.
func (c *membersCluster) eventually(line, want string) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, err := c.sh(c.local.Replace(line))
		if err == nil && strings.Contains(out, want) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s does not show %q: %v\n%s", line, want, err, out)
		}
	}
}

// refused runs a command that fails, and says why.
func (c *membersCluster) refused(line, why string) {
	c.t.Helper()
	if out, err := c.sh(c.local.Replace(line)); err == nil || !strings.Contains(out, why) {
		c.t.Errorf("%s does not say %q: %v\n%s", line, why, err, out)
	}
}

// TestMembershipRunbook runs the commands of the runbook. Some wait for the custodians,
// whose commands come after them.
func TestMembershipRunbook(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	t.Parallel()
	commands := commandsOf(t, "../../docs/operate/membership.md")
	for _, path := range changesMembers {
		for line := range strings.Lines(exampleOf(t, strings.Fields(path)...)) {
			if !slices.Contains(commands, strings.TrimSpace(line)) {
				t.Errorf("the runbook does not have the example %q", line)
			}
		}
	}
	c := newMembersCluster(t)
	c.refused("conclave cluster join node-4=10.0.0.4:7602", "conclave cluster upgrade finalize")
	c.eventually("conclave cluster upgrade finalize --yes", "feature level 2")
	c.refused("conclave cluster remove node-1 --address node-9.invalid:7601", "node-9.invalid")
	c.refused("conclave cluster promote node-4", "not a member")
	c.refused("conclave cluster join node-3=10.0.0.4:7602", "is a member at")
	c.refused("conclave cluster join node-4=10.0.0.3:7602", "is the address of node-3")
	var waiting sync.WaitGroup
	for _, line := range commands {
		if !strings.HasPrefix(line, "conclave operator unseal") {
			waiting.Wait()
		}
		switch words := strings.Fields(line); strings.Join(words[1:3], " ") {
		case "cluster join", "cluster replace":
			if words[3] == "--token-file" {
				c.joins(line)
				break
			}
			if words[2] == "replace" {
				c.servers[words[3]].Kill() // its disk is lost
			}
			waiting.Go(func() {
				if out, err := c.sh(c.local.Replace(line)); err != nil {
					t.Errorf("%s: %v\n%s", line, err, out)
				}
			})
			if slices.Contains(words, "--replica") {
				waiting.Wait()
			}
		case "cluster set-address":
			c.servers["node-3"].Kill()
			c.eventually(line, "reach node-3 at") // once there is a leader again
			c.eventually("conclave cluster members", c.local.Replace("10.0.9.3:7602"))
		case "operator unseal":
			c.eventually(line, "") // once it has the state
		default:
			c.do(line)
		}
		if t.Failed() {
			t.FailNow()
		}
		switch line {
		case "conclave cluster replace node-2 node-5=10.0.0.5:7602":
			c.eventually("conclave cluster status", "node-5")
		case "conclave cluster promote reader-1":
			c.eventually("conclave cluster status", "6 of 6 voters are ready: 2 may fail")
		}
	}
	c.eventually("conclave cluster status", "3 of 3 voters are ready: 1 may fail")
	c.refused("conclave cluster set-address node-9 --peer-address 10.0.0.2:7602", "is not a member")
	c.refused("conclave cluster set-address node-3 --peer-address 10.0.0.1:7602", "is the address of node-1")
	c.refused("conclave cluster join node-4=10.0.0.4:7602", "the id node-4 was used before")
	for _, id := range []string{"node-4", "node-6", "reader-1"} {
		c.stops(id, "this node was removed from the cluster")
	}
	// A node whose disk was lost is not taken back, and says what to do.
	c.servers["node-3"].Kill()
	c.do("rm -r data-node-3")
	c.do(c.lines["node-3"])
	c.stops("node-3", "run: conclave cluster replace node-3 NEW-ID=HOST:PORT")
}

// joins joins with a token, first with what an attacker could have in its place.
func (c *membersCluster) joins(line string) {
	c.t.Helper()
	c.must("head -c 100 node-6.token > short.token; sed 's/.....$/AAAAA/' node-6.token > forged.token")
	c.refused("conclave cluster join --token-file short.token --dir tls-x", "not a join token")
	c.refused("conclave cluster join --token-file forged.token --dir tls-x", "The join token is refused")
	// The leader is not among the addresses that come first, and no certificate is needed.
	c.must(c.local.Replace("env -u CONCLAVE_CERT -u CONCLAVE_KEY -u CONCLAVE_CA " + line + " > flags"))
	c.refused(line, "exists already")
	c.refused("conclave cluster join --token-file node-6.token --dir tls-x", "The join token is refused")
	c.must("test ! -e tls-x/node-6.pem")
	c.must(`test "$(stat -c %a tls-6/node-6-key.pem tls-6/node-6.pem tls-6/gossip.key | sort -u)" = 600; openssl verify -CAfile tls/ca.pem tls-6/node-6.pem; cmp tls-6/ca.pem tls/ca.pem; cmp tls-6/gossip.key tls/gossip.key`)
	flags := c.must("cat flags")
	for _, want := range []string{"--node-id node-6 ", "node-3=", c.local.Replace("--peer-advertise 10.0.0.6:7602"), "--tls-key tls-6/node-6-key.pem", "--gossip-key-file tls-6/gossip.key"} {
		if !strings.Contains(flags, want) {
			c.t.Errorf("the flags do not have %q: %s", want, flags)
		}
	}
}

// stops waits until a server has ended by itself, and said why.
func (c *membersCluster) stops(id, why string) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); !c.servers[id].Ended(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("%s does not stop:\n%s", id, c.servers[id].LastLog())
		}
	}
	if log := c.servers[id].LastLog(); !strings.Contains(log, why) {
		c.t.Errorf("%s ended and does not say %q:\n%s", id, why, log)
	}
}
