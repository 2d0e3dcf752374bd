package docs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"go.yaml.in/yaml/v3"

	"github.com/conclavekms/conclave/integration/harness"
)

// composeHeading is the part of the README whose commands TestCompose runs.
const composeHeading = "## Three nodes in containers"

var composeNodes = []string{"node-1", "node-2", "node-3"}

// TestCompose follows the README's walk through docker-compose.yml, command by
// command, on a project of its own, and then kills the leader's container.
func TestCompose(t *testing.T) {
	if os.Getenv("CONCLAVE_COMPOSE_TEST") != "1" {
		t.Skip("needs a container engine and the image: run `make compose-test`")
	}
	p := newProject(t)
	readme, err := os.ReadFile(filepath.Join("../..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands := shellCommands(section(string(readme), composeHeading))
	if !slices.ContainsFunc(commands, func(c string) bool { return strings.Contains(c, "operator init") }) {
		t.Fatalf("the README's walk has no ceremony: %q", commands)
	}
	for _, command := range commands {
		p.follow(command)
	}
	p.hardened()
	p.serves(composeNodes...)
	p.loseLeader()
	p.unchanged()
}

// TestComposeKeepsKeysApart: no node mounts the CA's key, or what another one has.
func TestComposeKeepsKeysApart(t *testing.T) {
	t.Parallel()
	var file struct {
		Services map[string]struct{ Volumes []string }
	}
	if err := yaml.Unmarshal([]byte(page(t, "docker-compose.yml")), &file); err != nil {
		t.Fatal(err)
	}
	by := make(map[string][]string) // services by volume, but for the one that makes them all
	for name, s := range file.Services {
		for _, v := range s.Volumes {
			if volume, _, _ := strings.Cut(v, ":"); name != "certificates" {
				by[volume] = append(by[volume], name)
			}
		}
	}
	if len(by["ca"]) != 0 {
		t.Errorf("%v mount the CA's key", by["ca"])
	}
	for volume, services := range by {
		if len(services) != 1 {
			t.Errorf("%v share the volume %s", services, volume)
		}
	}
	for _, n := range composeNodes {
		if len(file.Services[n].Volumes) != 2 {
			t.Errorf("%s mounts %v", n, file.Services[n].Volumes)
		}
	}
}

// project is what docker-compose.yml describes, under a name and ports of its own.
type project struct {
	t       *testing.T
	compose []string // the command, with the flags that name the project
	env     []string
	shares  []string
	key     string
	clients map[string]*kms.Client
	creds   aws.Credentials
}

func newProject(t *testing.T) *project {
	t.Helper()
	p := &project{t: t, env: os.Environ()}
	switch {
	case exec.Command("docker-compose", "version").Run() == nil:
		p.compose = []string{"docker-compose"}
	case exec.Command("docker", "compose", "version").Run() == nil:
		p.compose = []string{"docker", "compose"}
	default:
		t.Fatal("there is neither docker-compose nor docker compose")
	}
	if out, err := exec.Command("docker", "image", "inspect", "conclave:latest").CombinedOutput(); err != nil {
		t.Fatalf("there is no image conclave:latest (`make image` builds it): %v\n%s", err, out)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	// Any free ports: the usual ones may be taken. Everything else stays. Services of a profile,
	// which have other ports, are not started.
	ports := regexp.MustCompile(`"127\.0\.0\.1:\d+:(760[01])"`)
	if n := len(ports.FindAll(file, -1)); n != 2*len(composeNodes) {
		t.Fatalf("docker-compose.yml publishes %d ports on loopback, want %d", n, 2*len(composeNodes))
	}
	own := filepath.Join(t.TempDir(), "docker-compose.yml")
	if err := os.WriteFile(own, ports.ReplaceAll(file, []byte(`"127.0.0.1::$1"`)), 0o600); err != nil {
		t.Fatal(err)
	}
	p.compose = append(p.compose, "-p", fmt.Sprintf("conclave-test-%x", rand.Uint32()), "--project-directory", root, "-f", own)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := p.try(context.Background(), "", "logs", "--no-color", "--tail", "40")
			t.Logf("the containers' logs:\n%s", out)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if out, err := p.try(ctx, "", "down", "-v", "--remove-orphans", "--timeout", "5"); err != nil {
			t.Errorf("removing the project: %v\n%s", err, out)
		}
	})
	return p
}

// try runs a docker-compose command and returns its standard output.
func (p *project) try(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	args = append(slices.Clone(p.compose), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Stdin = p.env, strings.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, stderr.String())
	}
	return string(out), err
}

func (p *project) run(stdin string, args ...string) string {
	p.t.Helper()
	out, err := p.try(p.t.Context(), stdin, args...)
	if err != nil {
		p.t.Fatalf("docker-compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (p *project) docker(args ...string) string {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), "docker", args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// follow runs one command of the README, and does what the text around it says.
func (p *project) follow(command string) {
	p.t.Helper()
	args := strings.Fields(command)
	if command == "make image" {
		return // before the test, for the binary under test
	}
	if args[0] != "docker-compose" {
		p.t.Fatalf("the README's walk has %q, which this test does not know", command)
	}
	args = args[1:]
	if args[0] == "run" {
		args = slices.Insert(args, 1, "-T") // a test has no terminal
	}
	p.t.Logf("$ %s", command)
	switch {
	case args[0] == "up":
		p.run("", args...)
		p.healthy(composeNodes...)
	case strings.Contains(command, " operator init"):
		var out string
		err := harness.Poll(p.t.Context(), time.Minute, func(ctx context.Context) (err error) {
			out, err = p.try(ctx, "", args...)
			return err
		})
		if err != nil {
			p.t.Fatal(err)
		}
		p.founded(out)
	case strings.Contains(command, " operator unseal"):
		for i, share := range p.shares[:harness.Threshold] {
			out := p.run(share+"\n", args...)
			if want := fmt.Sprintf("%d of %d", i+1, harness.Threshold); i+1 < harness.Threshold && !strings.Contains(out, want) {
				p.t.Errorf("after share %d: %q, want %q", i+1, out, want)
			}
		}
	case strings.Contains(command, " key create"):
		out := p.run("", args...)
		m := regexp.MustCompile(`arn:aws:kms:\S+:key/\S+`).FindString(out)
		if m == "" {
			p.t.Fatalf("key create says %q", out)
		}
		p.key = m
	default:
		out := p.run("", args...)
		if strings.Contains(command, "members") || strings.Contains(command, "--all") {
			for _, n := range composeNodes {
				if !strings.Contains(out, n) {
					p.t.Errorf("%s tells nothing of %s: %q", command, n, out)
				}
			}
		}
	}
}

// founded takes what init shows, this once.
func (p *project) founded(out string) {
	p.t.Helper()
	field := func(name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `\s+(\S+)\s*$`).FindStringSubmatch(out)
		if m == nil {
			p.t.Fatalf("init shows no %q: it has %d lines", name, strings.Count(out, "\n"))
		}
		return m[1]
	}
	for i := range harness.Shares {
		p.shares = append(p.shares, field(fmt.Sprintf("share %d", i+1)))
	}
	p.creds = aws.Credentials{AccessKeyID: field("access key id"), SecretAccessKey: field("secret access key")}
	p.env = append(p.env, "AWS_ACCESS_KEY_ID="+p.creds.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+p.creds.SecretAccessKey)
}

func (p *project) container(node string) string {
	p.t.Helper()
	id := strings.TrimSpace(p.run("", "ps", "-q", node))
	if id == "" {
		p.t.Fatalf("there is no container of %s", node)
	}
	return id
}

func (p *project) healthy(nodes ...string) {
	p.t.Helper()
	for _, n := range nodes {
		id := p.container(n)
		err := harness.Poll(p.t.Context(), 2*time.Minute, func(context.Context) error {
			if state := p.docker("inspect", "-f", "{{.State.Status}} {{.State.Health.Status}}", id); state != "running healthy" {
				return fmt.Errorf("%s is %s", n, state)
			}
			return nil
		})
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// hardened checks how the containers run.
func (p *project) hardened() {
	p.t.Helper()
	for _, n := range composeNodes {
		var found []struct {
			Config     struct{ User string }
			HostConfig struct {
				ReadonlyRootfs, Privileged bool
				CapAdd, CapDrop            []string
				SecurityOpt                []string
				Ulimits                    []struct{ Name string }
			}
			Mounts []struct {
				Destination string
				RW          bool
			}
		}
		id := p.container(n)
		if err := json.Unmarshal([]byte(p.docker("inspect", id)), &found); err != nil || len(found) != 1 {
			p.t.Fatalf("inspecting %s: %v", n, err)
		}
		c, h := found[0], found[0].HostConfig
		if !strings.HasPrefix(c.Config.User, "65532") || h.Privileged || !h.ReadonlyRootfs || len(h.CapAdd) > 0 || !slices.Contains(h.CapDrop, "ALL") ||
			!slices.ContainsFunc(h.SecurityOpt, func(s string) bool { return strings.HasPrefix(s, "no-new-privileges") }) {
			p.t.Errorf("%s runs as %+v", n, c)
		}
		for _, m := range c.Mounts {
			if m.RW && m.Destination != "/data" {
				p.t.Errorf("%s may write to %s", n, m.Destination)
			}
		}
		// What the engine was told, and what is so.
		for _, line := range strings.Split(p.docker("top", id, "-eo", "uid,pid,comm"), "\n")[1:] {
			if f := strings.Fields(line); len(f) < 3 || f[0] != "65532" || !strings.HasPrefix(f[2], "conclave") {
				p.t.Errorf("%s runs %q", n, line)
			}
		}
	}
}

// unchanged checks that nothing was written to the containers' own file systems.
func (p *project) unchanged() {
	p.t.Helper()
	for _, n := range composeNodes {
		for _, line := range strings.Fields(p.docker("diff", p.container(n))) {
			if strings.HasPrefix(line, "/") && !slices.Contains([]string{"/data", "/tls", "/tmp"}, line) {
				p.t.Errorf("%s changed %s in its container", n, line)
			}
		}
	}
}

// client is AWS's SDK on a node's published port.
func (p *project) client(node string) *kms.Client {
	p.t.Helper()
	if c := p.clients[node]; c != nil {
		return c
	}
	addr := strings.TrimSpace(p.run("", "port", node, "7600"))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(p.file(node, "/tls/ca.pem")) {
		p.t.Fatal("ca.pem has no certificate")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	p.t.Cleanup(tr.CloseIdleConnections)
	c := kms.New(kms.Options{
		BaseEndpoint: aws.String("https://" + addr), Region: "us-east-1", Retryer: aws.NopRetryer{},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return p.creds, nil }),
		HTTPClient:  &http.Client{Transport: tr, Timeout: 10 * time.Second},
	})
	if p.clients == nil {
		p.clients = make(map[string]*kms.Client)
	}
	p.clients[node] = c
	return c
}

// file reads a file of a container.
func (p *project) file(node, path string) []byte {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), "docker", "cp", p.container(node)+":"+path, "-")
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("docker cp %s: %v", path, err)
	}
	r := tar.NewReader(bytes.NewReader(out))
	if _, err := r.Next(); err != nil {
		p.t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// roundTrip encrypts on one node and decrypts on another.
func (p *project) roundTrip(ctx context.Context, from, to string) error {
	enc, err := p.client(from).Encrypt(ctx, &kms.EncryptInput{KeyId: &p.key, Plaintext: []byte("from " + from)})
	if err != nil {
		return err
	}
	dec, err := p.client(to).Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob})
	if err != nil {
		return err
	}
	if string(dec.Plaintext) != "from "+from {
		return fmt.Errorf("%s decrypts %q", to, dec.Plaintext)
	}
	return nil
}

// serves checks that each of the nodes does cryptography with the others.
func (p *project) serves(nodes ...string) {
	p.t.Helper()
	for _, from := range nodes {
		for _, to := range nodes {
			if err := p.roundTrip(p.t.Context(), from, to); err != nil {
				p.t.Fatalf("encrypting on %s and decrypting on %s: %v", from, to, err)
			}
		}
	}
	// A change on one holds on all.
	if _, err := p.client(nodes[0]).DisableKey(p.t.Context(), &kms.DisableKeyInput{KeyId: &p.key}); err != nil {
		p.t.Fatal(err)
	}
	for _, n := range nodes {
		_, err := p.client(n).Encrypt(p.t.Context(), &kms.EncryptInput{KeyId: &p.key, Plaintext: []byte("x")})
		if _, ok := errors.AsType[*types.DisabledException](err); !ok {
			p.t.Errorf("%s, with a disabled key: %v", n, err)
		}
	}
	if _, err := p.client(nodes[len(nodes)-1]).EnableKey(p.t.Context(), &kms.EnableKeyInput{KeyId: &p.key}); err != nil {
		p.t.Fatal(err)
	}
}

// leader asks a node who leads.
func (p *project) leader(node string) string {
	p.t.Helper()
	var status struct {
		LeaderID string `json:"leader_id"`
	}
	out := p.run("", "run", "--rm", "-T", "-e", "CONCLAVE_ADDRESS="+node+":7601", "cli", "operator", "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.LeaderID == "" {
		p.t.Fatalf("status of %s: %v: %q", node, err, out)
	}
	return status.LeaderID
}

// loseLeader kills the leader's container: the others go on, and it comes back
// sealed, until its custodians open it.
func (p *project) loseLeader() {
	p.t.Helper()
	leader := p.leader("node-2")
	var left []string
	for _, n := range composeNodes {
		p.client(n) // asks the engine for the port, which takes its time
		if n != leader {
			left = append(left, n)
		}
	}
	p.docker("kill", p.container(leader))
	begun := time.Now()
	err := harness.Poll(p.t.Context(), harness.Patience, func(ctx context.Context) error { return p.roundTrip(ctx, left[0], left[1]) })
	if err != nil {
		p.t.Fatalf("after %s, the leader, was killed: %v", leader, err)
	}
	p.t.Logf("%s, the leader, was killed; the others answered after %v", leader, time.Since(begun).Round(time.Millisecond))
	p.serves(left...)

	p.run("", "up", "-d", leader)
	p.healthy(leader)
	delete(p.clients, leader) // it may have another port
	_, err = p.client(leader).Encrypt(p.t.Context(), &kms.EncryptInput{KeyId: &p.key, Plaintext: []byte("x")})
	if err == nil {
		p.t.Errorf("%s encrypts before it was unsealed", leader)
	}
	for _, share := range p.shares[harness.Shares-harness.Threshold:] { // other custodians than before
		p.run(share+"\n", "run", "--rm", "-T", "-e", "CONCLAVE_ADDRESS="+leader+":7601", "cli", "operator", "unseal")
	}
	err = harness.Poll(p.t.Context(), harness.Patience, func(ctx context.Context) error { return p.roundTrip(ctx, left[0], leader) })
	if err != nil {
		p.t.Errorf("%s, unsealed again: %v", leader, err)
	}
}
