package clients

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

const (
	account = "000000000000"
	region  = "us-east-1"
)

// server is a development server, as `conclave dev` starts it.
type server struct {
	// dir is a directory for the test's own files, and the home of its processes.
	dir string
	// settings are what `conclave env` says.
	settings map[string]string
}

// overBoth has a client use a server without TLS, and one with it, with more flags.
func overBoth(t *testing.T, use func(*testing.T, *server), flags ...string) {
	t.Run("http", func(t *testing.T) { use(t, start(t, flags...)) })
	t.Run("https", func(t *testing.T) { use(t, start(t, append([]string{"--tls"}, flags...)...)) })
}

// start starts a server, which ends with the test.
func start(t *testing.T, flags ...string) *server {
	t.Helper()
	s := &server{dir: t.TempDir()}
	data := filepath.Join(t.TempDir(), "data")
	args := []string{"dev", "--data", data, "--account", account, "--region", region, "--aws-listen", ":0", "--grpc-listen", ":0", "--peer-listen", ":0", "--ops-listen", ":0"}
	cmd := exec.Command(conclave, append(args, flags...)...)
	// It tells users where it is in this directory, not in that of the real ones.
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.dir)
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer timer.Stop()
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("the server: %v\n%s", err, log.String())
		}
	})
	// A shell reads the settings, as a user's does.
	sh := exec.CommandContext(t.Context(), "sh", "-c", `lines=$("$0" env --wait 30s --data "$1") && eval "$lines" && env`, conclave, data)
	sh.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "XDG_RUNTIME_DIR=" + s.dir}
	var stderr bytes.Buffer
	sh.Stderr = &stderr
	out, err := sh.Output()
	if err != nil {
		t.Fatalf("conclave env: %v\n%s", err, stderr.String())
	}
	s.settings = make(map[string]string)
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		if strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "CONCLAVE_") {
			s.settings[name] = value
		}
	}
	return s
}

// use gives the settings to this process, for libraries. Nothing else that speaks
// of AWS is left in its environment.
func (s *server) use(t *testing.T) {
	t.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // has it come back with the end of the test
			os.Unsetenv(name)
		}
	}
	for name, value := range s.settings {
		t.Setenv(name, value)
	}
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
}

// environ is the environment of a process that uses the server.
func (s *server) environ() []string {
	env := []string{
		"HOME=" + s.dir, "XDG_RUNTIME_DIR=" + s.dir, "TMPDIR=" + s.dir,
		"PATH=" + programs + string(os.PathListSeparator) + filepath.Dir(conclave) + string(os.PathListSeparator) + os.Getenv("PATH"),
		"AWS_CONFIG_FILE=" + os.DevNull, "AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull,
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"} {
		env = append(env, name+"="+os.Getenv(name))
	}
	for name, value := range s.settings {
		env = append(env, name+"="+value)
	}
	return env
}

// try runs a command in the server's directory, and returns what it prints and
// whether it exits with 0.
func (s *server) try(t *testing.T, name string, args ...string) (stdout, stderr string, ok bool) {
	t.Helper()
	if !filepath.IsAbs(name) {
		// The search path is that of the command, not ours.
		name, args = "env", append([]string{name}, args...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = s.dir, s.environ(), 5*time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && (!exited || ctx.Err() != nil) {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return out.String(), errs.String(), err == nil
}

// does runs a command, which has to succeed, and returns what it prints.
func (s *server) does(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, stderr, ok := s.try(t, name, args...)
	if !ok {
		t.Fatalf("%s %s:\n%s%s", name, strings.Join(args, " "), out, stderr)
	}
	return out
}

func (s *server) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *server) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// client is AWS's SDK, with nothing but the environment to go by.
func client(t *testing.T) *kms.Client {
	t.Helper()
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return kms.NewFromConfig(cfg)
}

// key makes a key for encryption and returns its ARN.
func key(t *testing.T, c *kms.Client) string {
	t.Helper()
	out, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	return *out.KeyMetadata.Arn
}

func disable(t *testing.T, c *kms.Client, key string) {
	t.Helper()
	if _, err := c.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &key}); err != nil {
		t.Fatal(err)
	}
}

// target is the id of the key that an alias leads to.
func target(t *testing.T, c *kms.Client, alias string) string {
	t.Helper()
	out, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &alias})
	if err != nil {
		t.Fatal(err)
	}
	return *out.KeyMetadata.KeyId
}
