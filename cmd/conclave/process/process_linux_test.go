package process_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/process"
	"github.com/conclavekms/conclave/integration/optional"
)

// parentLog is the environment variable with which this test's program becomes a process
// that starts another one and waits.
const parentLog = "PROCESS_TEST_PARENT_LOG"

// A process that is killed leaves none behind that it started.
func TestEndsWithItsParent(t *testing.T) {
	t.Parallel()
	sleep := optional.Program(t, "sleep")
	if log := os.Getenv(parentLog); log != "" {
		p, err := process.Start(process.Command{Path: sleep, Args: []string{"60"}, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("child", p.PID())
		time.Sleep(time.Minute)
		return
	}
	parent := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestEndsWithItsParent$")
	parent.Env = append(os.Environ(), parentLog+"="+filepath.Join(t.TempDir(), "log"))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	child := 0
	for lines := bufio.NewScanner(out); child == 0; {
		if !lines.Scan() {
			t.Fatalf("the parent started no child: %v", parent.Wait())
		}
		if id, ok := strings.CutPrefix(lines.Text(), "child "); ok {
			if child, err = strconv.Atoi(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !runs(child) {
		t.Fatal("the child does not run")
	}
	_ = parent.Process.Kill()
	_ = parent.Wait()
	for limit := time.Now().Add(30 * time.Second); runs(child); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the child outlived its parent")
		}
	}
}

// runs reports whether there is a process with this id that has not ended.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, ok := bytes.Cut(stat, []byte(") "))
	return err == nil && ok && state[0] != 'Z'
}
