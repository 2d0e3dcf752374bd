package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
	"github.com/conclavekms/conclave/integration/fakes3"
	"github.com/conclavekms/conclave/integration/xksproxy"
)

// TestMain lets scripts, and the child processes of demo and bench, run this
// program: conclave on the path is the test binary, which calls main.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"conclave": main, "hardened": hardened})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Deadline:            time.Now().Add(15 * time.Minute),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Values[bucketKey{}] = new(scriptBucket)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":      cmdExits,
			"evalenv":    cmdEvalEnv,
			"mode":       cmdMode,
			"flip":       cmdFlip,
			"capture":    cmdCapture,
			"ports":      cmdPorts,
			"waitfor":    cmdWaitFor,
			"issuer":     cmdIssuer,
			"bucket":     cmdBucket,
			"waitobject": cmdWaitObject,
			"proxy":      func(ts *testscript.TestScript, neg bool, args []string) { cmdProxy(t, ts, neg, args) },
		},
	})
}

// cmdExits runs a program that must end with an exit code: exits CODE PROGRAM …
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// cmdWaitFor runs a program until it succeeds: waitfor PROGRAM …
func cmdWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	waitFor(ts, neg, args, time.Minute)
}

func waitFor(ts *testscript.TestScript, neg bool, args []string, patience time.Duration) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: waitfor PROGRAM ARG…")
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: still %v", strings.Join(args, " "), err)
		}
	}
}

// cmdEvalEnv changes the script's environment as eval changes that of a shell: a
// real shell evaluates the last program's output.
func cmdEvalEnv(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: evalenv")
	}
	sh := exec.Command("sh", "-c", `eval "$LINES"; env -0`)
	sh.Env = []string{"PATH=" + os.Getenv("PATH"), "LINES=" + ts.ReadFile("stdout")}
	out, err := sh.Output()
	ts.Check(err)
	for _, kv := range strings.Split(string(out), "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok && (strings.HasPrefix(k, "AWS_") || strings.HasPrefix(k, "CONCLAVE_")) {
			ts.Setenv(k, v)
		}
	}
}

// cmdMode checks a file's permissions: mode 0600 FILE…
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode MODE FILE…")
	}
	want, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	for _, name := range args[1:] {
		fi, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fi.Mode().Perm(); got != os.FileMode(want) {
			ts.Fatalf("%s has mode %04o, want %04o", name, got, want)
		}
	}
}

// cmdFlip flips the lowest bit in the middle of a file.
func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip FILE")
	}
	name := ts.MkAbs(args[0])
	raw, err := os.ReadFile(name)
	ts.Check(err)
	raw[len(raw)/2] ^= 1
	ts.Check(os.WriteFile(name, raw, 0o600))
}

// cmdCapture puts the last program's output into a variable, without the newline.
func cmdCapture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture NAME")
	}
	ts.Setenv(args[0], strings.TrimSuffix(ts.ReadFile("stdout"), "\n"))
}

// bucketKey is the key of the store of a script among the script's values.
type bucketKey struct{}

// cmdBucket starts an S3-compatible store with the bucket backups: bucket PLACE FILE. It sets
// PLACE to the prefix scheduled in the bucket, OPTIONS to the options of all places there, and
// writes FILE with the credentials, as profile backups.
func cmdBucket(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: bucket PLACE FILE")
	}
	store := &fakes3.Store{Bucket: "backups", Region: "eu-test-1", AccessKeyID: "AKIDBACKUPS", SecretKey: "secret of the store", MaxPart: 32 << 20}
	server := httptest.NewServer(store)
	ts.Defer(server.Close)
	options := "region=eu-test-1&profile=backups&endpoint=" + server.URL
	ts.Setenv("OPTIONS", options)
	ts.Setenv(args[0], "s3://backups/scheduled?"+options)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), fmt.Appendf(nil, "[backups]\naws_access_key_id = %s\naws_secret_access_key = %s\n", store.AccessKeyID, store.SecretKey), 0o600))
	ts.Value(bucketKey{}).(*scriptBucket).Store = store
}

// scriptBucket has the store of a script once bucket has started it.
type scriptBucket struct{ *fakes3.Store }

// cmdWaitObject waits until the store has an object, and sets a variable to its key:
// waitobject NAME
func cmdWaitObject(ts *testscript.TestScript, neg bool, args []string) {
	store := ts.Value(bucketKey{}).(*scriptBucket).Store
	if neg || len(args) != 1 || store == nil {
		ts.Fatalf("usage: waitobject NAME, after bucket")
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if keys := store.Objects(); len(keys) > 0 {
			ts.Setenv(args[0], keys[len(keys)-1])
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the store has no object; %d requests were refused", store.Denied())
		}
	}
}

// cmdPorts sets variables to free addresses on loopback: ports NAME…
func cmdPorts(ts *testscript.TestScript, neg bool, args []string) {
	addrs, err := localcluster.FreePorts(len(args))
	ts.Check(err)
	for i, name := range args {
		ts.Setenv(name, addrs[i])
	}
}

// cmdProxy starts the proxy of an external key store: proxy KEY. It sets XKS to its
// address and writes its CA and the client's credential to files.
func cmdProxy(t *testing.T, ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: proxy KEY")
	}
	p := xksproxy.Start(t)
	p.AddKey(args[0])
	ts.Setenv("XKS", p.Endpoint)
	ts.Check(os.WriteFile(ts.MkAbs("xks-ca.pem"), p.CA(), 0o600))
	credential := fmt.Sprintf(`{"AccessKeyId": %q, "RawSecretAccessKey": %q}`, xksproxy.AccessKeyID, xksproxy.Secret)
	ts.Check(os.WriteFile(ts.MkAbs("credential.json"), []byte(credential), 0o600))
}

// cmdIssuer writes the key set of an issuer to jwks.json and a token of it to token.jwt: issuer
// URL AUDIENCE SUBJECT.
func cmdIssuer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: issuer URL AUDIENCE SUBJECT")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	public, err := key.PublicKey.Bytes() // 4, x, y
	ts.Check(err)
	b64 := base64.RawURLEncoding.EncodeToString
	jwks := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"1","x":%q,"y":%q}]}`, b64(public[1:33]), b64(public[33:]))
	ts.Check(os.WriteFile(ts.MkAbs("jwks.json"), []byte(jwks), 0o600))
	now := time.Now().Unix()
	token := b64([]byte(`{"alg":"ES256","kid":"1","typ":"JWT"}`)) + "." +
		b64(fmt.Appendf(nil, `{"iss":%q,"aud":%q,"sub":%q,"iat":%d,"exp":%d}`, args[0], args[1], args[2], now, now+600))
	sum := sha256.Sum256([]byte(token))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	ts.Check(err)
	token += "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	ts.Check(os.WriteFile(ts.MkAbs("token.jwt"), []byte(token+"\n"), 0o600))
}

// conclave is the path at which TestMain put the program.
func conclave(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("conclave")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	tmp := t.TempDir()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + tmp}
	t.Cleanup(func() {
		// In any case, nothing may be left behind.
		left, err := filepath.Glob(filepath.Join(tmp, "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return cmd
}

func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster of processes")
	}
	out, err := conclave(t, exampleArgs(t, strings.NewReplacer(), "demo")...).Output()
	if err != nil {
		exit, _ := errors.AsType[*exec.ExitError](err)
		t.Fatalf("demo: %v\n%s\n%s", err, out, exit.Stderr)
	}
	for _, want := range []string{"2 of 3", "node-2 encrypted", "node-3 decrypted", "every node refused it: 60 tries of 60", "with SIGKILL", "under a signed checkpoint", "is found: segments/"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
		}
	}
}

func TestBench(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster of processes")
	}
	out, err := conclave(t, exampleArgs(t, strings.NewReplacer("10s", "3s", "64", "2"), "bench")...).Output()
	if err != nil {
		exit, _ := errors.AsType[*exec.ExitError](err)
		t.Fatalf("bench: %v\n%s\n%s", err, out, exit.Stderr)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 3 {
		t.Errorf("got %d lines, want a heading and both faces:\n%s", len(lines), out)
	}
}
