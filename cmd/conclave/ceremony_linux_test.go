package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
)

// interrupt is what a terminal turns into SIGINT.
const interrupt = "\x03"

// output collects what a program writes while it runs.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// atTerminal runs a command at a terminal of its own, types a line when it is prompted for the
// share, and returns what the command wrote, what the terminal showed of what was typed, and
// the exit code.
func (k *kitchen) atTerminal(typed string, args ...string) (out, shown string, code int) {
	k.t.Helper()
	master, tty := openTerminal(k.t)
	path, err := exec.LookPath("conclave")
	if err != nil {
		k.t.Fatal(err)
	}
	cmd := exec.CommandContext(k.t.Context(), path, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = k.dir, k.env, tty
	// It is the controlling terminal, so that what is typed can interrupt the command.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	var stdout, stderr output
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.Now().Add(30 * time.Second)
	for !strings.Contains(stderr.String(), "share (not shown): ") || echoes(k.t, tty) {
		select {
		case err := <-ended:
			k.t.Fatalf("%v ended before it asked for a share: %v\n%s", args, err, stderr.String())
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			k.t.Fatalf("%v does not ask for a share without showing it:\n%s", args, stderr.String())
		}
	}
	if typed != interrupt {
		typed += "\n"
	}
	if _, err := master.WriteString(typed); err != nil {
		k.t.Fatal(err)
	}
	select {
	case err = <-ended:
	case <-time.After(time.Until(deadline)):
		_ = cmd.Process.Kill()
		k.t.Fatalf("%v does not end:\n%s", args, stderr.String())
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		k.t.Fatal(err)
	}
	if !echoes(k.t, tty) {
		k.t.Errorf("%v left the terminal without echo", args)
	}
	return stdout.String() + stderr.String(), shownBy(k.t, master), code
}

// shownBy returns what a terminal has shown so far.
func shownBy(t *testing.T, master *os.File) string {
	t.Helper()
	fd := int(master.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	for b := make([]byte, 4096); ; {
		n, err := unix.Read(fd, b)
		if n <= 0 {
			if err != nil && err != unix.EAGAIN {
				t.Fatal(err)
			}
			return shown.String()
		}
		shown.Write(b[:n])
	}
}

// TestCeremonyAtTerminal performs a whole ceremony as its custodians do, each at a terminal: a
// cluster from a file, shares for custodians, a wrong share, an interruption, and going on
// where it was interrupted; then break-glass in the same way.
func TestCeremonyAtTerminal(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server")
	}
	t.Parallel()
	k := newKitchen(t)
	ports, err := localcluster.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	k.env = append(k.env, "CONCLAVE_ALLOW_UNLOCKED_MEMORY=true", "CONCLAVE_GOSSIP_LISTEN=none", "CONCLAVE_OPS_LISTEN=none", "CONCLAVE_ADDRESS="+ports[0],
		"CONCLAVE_CA=ca.pem", "CONCLAVE_CERT=operator.pem", "CONCLAVE_KEY=operator-key.pem")
	k.must("conclave cert bootstrap --dir . --nodes node-1 --ip 127.0.0.1")
	k.background(fmt.Sprintf("conclave server --node-id node-1 --data data --grpc-listen %s --peer-listen %s --aws-listen %s --tls-ca ca.pem --tls-cert node-1.pem --tls-key node-1-key.pem", ports[0], ports[1], ports[2]))
	file := "account: \"111122223333\"\nregions: [eu-west-1]\nthreshold: 2\ncustodians:\n"
	names := []string{"alice", "bob", "carol"}
	for _, name := range names {
		k.must("conclave operator custodian-key " + name + ".key > " + name + ".pub")
		file += fmt.Sprintf("  - {name: %[1]s, key_file: %[1]s.pub}\n", name)
	}
	if err := os.WriteFile(filepath.Join(k.dir, "cluster.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	k.must("n=0; until conclave operator init --file cluster.yaml --shares-dir ceremony || [ $? = 3 ]; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.1; done")
	var shares []string
	for i, name := range names {
		shares = append(shares, strings.TrimSpace(k.must(fmt.Sprintf("conclave operator decrypt-share --custodian-key %[2]s.key ceremony/share-%[1]d-%[2]s.pem", i+1, name))))
	}

	enter := func(typed string, want int, says string, args ...string) {
		t.Helper()
		out, shown, code := k.atTerminal(typed, args...)
		if code != want || !strings.Contains(out, says) {
			t.Fatalf("%v: exit code %d, want %d, and %q in\n%s", args, code, want, says, out)
		}
		for _, s := range append(shares, "conclave-share") {
			if strings.Contains(out, s) || strings.Contains(shown, s) {
				t.Errorf("%v: a share was shown", args)
			}
		}
	}
	state := func(want string) {
		t.Helper()
		if out, _ := k.sh("conclave operator status"); !strings.Contains(out, want) {
			t.Fatalf("the status is not %q:\n%s", want, out)
		}
	}
	unseal := []string{"operator", "unseal"}
	typo := strings.Replace(shares[0], shares[0][30:34], "qqqq", 1)
	enter(typo, cli.ExitError, "did not accept the share", unseal...)
	state("sealed, 0 of 2")
	enter("", cli.ExitError, "the input is empty", unseal...)
	enter(shares[0], 0, "sealed, 1 of 2", unseal...)
	enter(interrupt, cli.ExitError, "interrupted", unseal...)
	state("sealed, 1 of 2") // the first custodian need not come again
	enter(shares[0], cli.ExitError, "did not accept the share", unseal...)
	state("sealed, 1 of 2")
	enter("  "+strings.ToUpper(shares[2])+" ", 0, "unsealed", append(unseal, "--transcript", "unseal.txt")...)
	state("unsealed")
	if text, err := os.ReadFile(filepath.Join(k.dir, "unseal.txt")); err != nil || !strings.Contains(string(text), "share accepted") || strings.Contains(string(text), "conclave-share") {
		t.Errorf("the transcript: %v\n%s", err, text)
	}

	k.must("conclave operator break-glass begin --reason 'locked out'")
	submit := append([]string{"operator", "break-glass", "submit"}, strings.TrimSpace(k.must(nonce+"echo $NONCE")))
	enter(shares[1], 0, "1 of 2", submit...)
	enter(interrupt, cli.ExitError, "interrupted", append(submit, "--file", "root.env")...)
	enter(typo, cli.ExitError, "InvalidShareException", append(submit, "--file", "root.env")...)
	enter(shares[2], 0, "the secret is only in root.env", append(submit, "--file", "root.env")...)
	k.must("set -a; . ./root.env; conclave credential list | grep break-glass")
}
