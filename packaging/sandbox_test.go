package packaging

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/optional"
)

// settings returns the values of a setting in the unit, in their order.
func settings(unit, name string) (values []string) {
	for _, m := range regexp.MustCompile(`(?m)^`+name+`=(.*)$`).FindAllStringSubmatch(unit, -1) {
		values = append(values, m[1])
	}
	return values
}

// callsOf returns the system calls of a group that systemd knows, such as @system-service.
func callsOf(t *testing.T, analyze, group string) map[string]bool {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), analyze, "syscall-filter", "--no-pager", group).Output()
	if err != nil {
		t.Fatalf("%s: %v", group, err)
	}
	calls := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		name := strings.TrimSpace(line)
		switch {
		case !strings.HasPrefix(line, " ") || name == "" || name[0] == '#':
		case name[0] == '@':
			for c := range callsOf(t, analyze, name) {
				calls[c] = true
			}
		default:
			calls[name] = true
		}
	}
	return calls
}

// TestSandboxPermitsServer: a server that founds a cluster with others, up to where it waits for
// them, makes no system call and uses no family of addresses that the unit forbids.
func TestSandboxPermitsServer(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server under strace")
	}
	t.Parallel()
	analyze, strace := optional.Program(t, "systemd-analyze"), optional.Program(t, "strace")
	unit := read(t, unitFile)
	allowed := callsOf(t, analyze, "@default")
	for _, line := range settings(unit, "SystemCallFilter") {
		line, forbid := strings.CutPrefix(line, "~")
		for _, word := range strings.Fields(line) {
			calls := map[string]bool{word: true}
			if word[0] == '@' {
				calls = callsOf(t, analyze, word)
			}
			for c := range calls {
				if forbid {
					delete(allowed, c)
				} else {
					allowed[c] = true
				}
			}
		}
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), binary(t), "cert", "bootstrap", "--dir", dir, "--nodes", "node-1,node-2").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	trace, log := filepath.Join(dir, "trace"), filepath.Join(dir, "log")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, strace, "-f", "-qq", "-o", trace, "sh", "-c", `echo $$ > pid; exec "$@" 2> log`, "sh", binary(t), "server",
		"--node-id", "node-1", "--data", "data", "--peers", "node-1=127.0.0.1:1,node-2=127.0.0.1:2", "--gossip-key-file", "gossip.key",
		"--tls-ca", "ca.pem", "--tls-cert", "node-1.pem", "--tls-key", "node-1-key.pem", "--allow-unlocked-memory", "--pprof-address", "127.0.0.1:0",
		"--aws-listen", "0.0.0.0:0", "--grpc-listen", "[::]:0", "--peer-listen", "0.0.0.0:0", "--gossip-listen", "0.0.0.0:0", "--ops-listen", "127.0.0.1:0")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		said, _ := os.ReadFile(log)
		if strings.Contains(string(said), "node started") {
			break
		}
		if ctx.Err() != nil {
			_ = cmd.Wait()
			t.Fatalf("the server does not start:\n%s", said)
		}
		time.Sleep(20 * time.Millisecond)
	}
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, "kill", "-TERM", strings.TrimSpace(string(pid))).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := cmd.Wait(); err != nil {
		said, _ := os.ReadFile(log)
		t.Fatalf("the server does not stop: %v\n%s", err, said)
	}
	raw, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	// The first lines are those of the shell, which the sandbox need not permit.
	_, text, ok := strings.Cut(string(raw), `execve("`+binary(t)+`", `)
	if !ok {
		t.Fatalf("the trace has no server:\n%.2000s", raw)
	}
	var used []string
	for _, m := range regexp.MustCompile(`(?m)^[0-9]+ +([a-z0-9_]+)\(`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(used, m[1]) {
			used = append(used, m[1])
		}
	}
	if len(used) < 30 {
		t.Errorf("only %d system calls were seen: %v", len(used), used)
	}
	for _, c := range used {
		if !allowed[c] {
			t.Errorf("the server calls %s, which the unit forbids", c)
		}
	}
	families := fmt.Sprint(settings(unit, "RestrictAddressFamilies"))
	for _, m := range regexp.MustCompile(`socket\((AF_[A-Z0-9]+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(families, m[1]+" ") && !strings.Contains(families, m[1]+"]") {
			t.Errorf("the server uses %s, which the unit forbids", m[1])
			break
		}
	}
}
