package docs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// devShell is a directory with an environment in which a shell finds conclave and a
// development server that is its own.
type devShell struct {
	dir string
	env []string
	log *bytes.Buffer // of the server, to be read when it has ended
}

// newDevShell starts a development server with further flags, which ends with the test.
func newDevShell(t *testing.T, binary string, flags ...string) *devShell {
	t.Helper()
	s := &devShell{dir: t.TempDir(), log: new(bytes.Buffer)}
	// What the commands find where they are run: bin/conclave, and it on the path.
	bin := filepath.Join(s.dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(bin, "conclave")); err != nil {
		t.Fatal(err)
	}
	// A runtime directory of its own is where `conclave env` finds this server and no other, and
	// in its home there are no credentials that AWS's tools got of another one.
	s.env = []string{
		"XDG_RUNTIME_DIR=" + s.dir, "HOME=" + s.dir, "AWS_CONFIG_FILE=" + filepath.Join(s.dir, "config"),
		"AWS_SHARED_CREDENTIALS_FILE=" + filepath.Join(s.dir, "credentials"), "AWS_PAGER=",
		"PATH=" + bin + string(os.PathListSeparator) + os.Getenv("PATH"), "TMPDIR=" + s.dir, "XDG_CACHE_HOME=" + s.dir,
	}
	server := exec.Command(binary, append([]string{"dev", "--aws-listen", ":0", "--grpc-listen", ":0", "--peer-listen", ":0", "--ops-listen", ":0"}, flags...)...)
	server.Env, server.Dir = s.env, s.dir
	server.Stdout, server.Stderr = s.log, s.log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		kill := time.AfterFunc(10*time.Second, func() { _ = server.Process.Kill() })
		defer kill.Stop()
		_ = server.Process.Signal(os.Interrupt)
		if err := server.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the server: %v", err)
		}
		if t.Failed() {
			t.Logf("the server:\n%s", s.log)
		}
	})
	return s
}

// run runs a script, which has to succeed, and returns its output.
func (s *devShell) run(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	shell.Env, shell.Dir, shell.WaitDelay = s.env, s.dir, 10*time.Second
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\nthe commands:\n%s", err, out, script)
	}
	return string(out)
}

// write writes a file where the shell is.
func (s *devShell) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
