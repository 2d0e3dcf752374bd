// Package witness has witnesses and logs that others wrote talk to Conclave by C2SP
// tlog-witness: torchwood's litewitness and the witness of transparency-dev cosign the
// checkpoints of a Conclave server, and Tessera and transparency-dev's client get cosignatures
// from Conclave's witness. It is a module of its own for what these need. `make test-witness`
// runs it.
package witness

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	f_note "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/witness/persistence/inmemory"
	theirs "github.com/transparency-dev/witness/witness"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/mod/sumdb/note"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// The paths of the binaries under test.
var conclave, litewitness string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "conclave-witness-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := func(in, pkg string) (string, error) {
		name := filepath.Join(dir, filepath.Base(pkg))
		cmd := exec.Command("go", "build", "-o", name, pkg)
		cmd.Dir, cmd.Env = in, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", pkg, err, out)
		}
		return name, nil
	}
	if litewitness, err = build(".", "filippo.io/torchwood/cmd/litewitness"); err == nil {
		if conclave = os.Getenv("CONCLAVE_BINARY"); conclave == "" {
			conclave, err = build(filepath.Join("..", "..", ".."), "./cmd/conclave")
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// process is a process that ends with the test.
func process(t *testing.T, cmd *exec.Cmd) *output {
	t.Helper()
	log := new(output)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = log, log, 5*time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer timer.Stop()
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("%s: %v\n%s", filepath.Base(cmd.Path), err, log)
		}
	})
	return log
}

// output is what a process has printed.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// eventually fails the test if a condition does not come true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// freePort returns an address on loopback that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// server is a witness: where it is, and its public keys.
type server struct {
	url  string
	keys []string
	// knows makes the witness know a log.
	knows func(origin, key string)
}

// startLitewitness starts torchwood's witness, whose Ed25519 key is in an SSH agent.
func startLitewitness(t *testing.T) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "lw") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: priv}); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "agent")
	l, err := net.Listen("unix", sock)
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
			go func() { _ = agent.ServeAgent(ring, c) }()
		}
	}()
	const name = "lite.example/witness"
	db, address := filepath.Join(dir, "db"), freePort(t)
	cmd := exec.Command(litewitness, "-name", name, "-db", db, "-ssh-agent", sock, "-listen", address, "-key", ssh.FingerprintSHA256(must(ssh.NewPublicKey(pub))))
	log := process(t, cmd)
	eventually(t, "litewitness", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	_, rest, _ := strings.Cut(log.String(), "vkey=")
	key, _, _ := strings.Cut(rest, "\n")
	return &server{"http://" + address, []string{strings.Trim(strings.TrimSpace(key), `"`)}, func(origin, key string) {
		// What its witnessctl does, which cannot be built from the module proxy alone.
		conn, err := sqlite.OpenConn(db, sqlite.OpenReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		empty := base64.StdEncoding.EncodeToString(emptyRoot[:])
		for _, q := range []struct {
			query string
			args  []any
		}{
			{"INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)", []any{origin, empty}},
			{"INSERT INTO key (origin, key) VALUES (?, ?)", []any{origin, key}},
		} {
			if err := sqlitex.Execute(conn, q.query, &sqlitex.ExecOptions{Args: q.args}); err != nil {
				t.Fatal(err)
			}
		}
	}}
}

// startTheirs starts the witness of transparency-dev, with an ML-DSA-44 key.
func startTheirs(t *testing.T) *server {
	t.Helper()
	skey, vkey, err := f_note.GenerateMLDSAKey("theirs.example/witness")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	logs := make(map[string]note.Verifier)
	w, err := theirs.New(t.Context(), theirs.Opts{
		Persistence: inmemory.New(), Signers: []note.Signer{must(f_note.NewMLDSASigner(skey))},
		VerifierForLog: func(_ context.Context, origin string) (note.Verifier, bool, error) {
			mu.Lock()
			defer mu.Unlock()
			v, ok := logs[origin]
			return v, ok, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", theirs.NewHTTPHandler(w).AddCheckpoint)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return &server{s.URL, []string{vkey}, func(origin, key string) {
		mu.Lock()
		defer mu.Unlock()
		logs[origin] = must(note.NewVerifier(key))
	}}
}

// startOurs starts `conclave audit witness`, which knows a log.
func startOurs(t *testing.T, logKeys ...string) *server {
	t.Helper()
	dir, address := filepath.Join(t.TempDir(), "witness"), freePort(t)
	keys := tool(t, "audit", "witness", "init", "--dir", dir, "--name", "ours.example/witness")
	args := []string{"audit", "witness", "--dir", dir, "--listen", address}
	for _, k := range logKeys {
		args = append(args, "--log", k)
	}
	log := process(t, exec.Command(conclave, args...))
	eventually(t, "the witness", func() bool { return strings.Contains(log.String(), "the witness is ready") })
	return &server{"http://" + address, strings.Fields(keys), nil}
}

// tool runs a command of Conclave and returns what it prints.
func tool(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(t, nil, args...)
	if err != nil {
		t.Fatalf("conclave %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func try(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), conclave, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// post sends a request to a witness.
func (s *server) post(t *testing.T, body []byte) (int, string, string) {
	t.Helper()
	u := must(url.JoinPath(s.url, "add-checkpoint"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("Content-Type"), string(answer)
}
