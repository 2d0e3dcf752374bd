package process_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/process"
	"github.com/conclavekms/conclave/integration/optional"
)

// run starts a shell, and waits until it has set its traps.
func run(t *testing.T, script string) *process.Process {
	t.Helper()
	p, err := process.Start(process.Command{
		Path: optional.Program(t, "sh"), Args: []string{"-c", script}, Env: []string{}, Log: filepath.Join(t.TempDir(), "log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	for limit := time.Now().Add(time.Minute); !strings.Contains(p.LastLog(), "ready"); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("the shell is not ready; its log: %s", p.LastLog())
		}
	}
	return p
}

func TestStop(t *testing.T) {
	t.Parallel()
	p := run(t, `trap 'echo stopping >&2; exit 0' TERM; echo ready; while :; do sleep 0.01; done`)
	if p.Ended() || p.Err() != nil {
		t.Fatalf("a process that runs has ended: %v", p.Err())
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !p.Ended() || !strings.HasSuffix(p.LastLog(), "stopping") {
		t.Errorf("ended: %v; its log: %s", p.Ended(), p.LastLog())
	}
}

func TestStopReportsFailure(t *testing.T) {
	t.Parallel()
	p := run(t, `trap 'echo why; exit 3' TERM; echo ready; while :; do sleep 0.01; done`)
	err := p.Stop(t.Context())
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "why") {
		t.Errorf("got %v, want the exit status and the end of the log", err)
	}
}

func TestStopKills(t *testing.T) {
	t.Parallel()
	p := run(t, `trap '' TERM; echo ready; while :; do sleep 0.01; done`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); err == nil || !p.Ended() {
		t.Errorf("got %v, and ended: %v; want an error for a process that was killed", err, p.Ended())
	}
}

func TestNeverStarted(t *testing.T) {
	t.Parallel()
	var p *process.Process
	p.Kill()
	if err := p.Stop(t.Context()); err != nil || !p.Ended() || p.Err() != nil {
		t.Errorf("a process that was never started: %v, %v", err, p.Err())
	}
	if _, err := process.Start(process.Command{Path: "/does/not/exist", Log: filepath.Join(t.TempDir(), "log")}); err == nil {
		t.Error("a program that does not exist was started")
	}
}
