package ports

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

const perProcess = 8 * blockSize

// TestFree: processes that ask at once get different ports, more than a block each, and
// can listen on them.
func TestFree(t *testing.T) {
	if os.Getenv("CONCLAVE_TEST_PORTS") == "1" {
		for range perProcess {
			addr, err := Free()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println(addr)
		}
		// The ports are this process's until the other end has seen all of them.
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(0)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	seen := make(map[string]int)
	for i := range 4 {
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestFree$")
		cmd.Env = append(os.Environ(), "CONCLAVE_TEST_PORTS=1")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
		lines := bufio.NewScanner(out)
		for range perProcess {
			if !lines.Scan() {
				t.Fatalf("process %d ended: %v", i, lines.Err())
			}
			addr := lines.Text()
			if other, ok := seen[addr]; ok {
				t.Errorf("%s was handed out to processes %d and %d", addr, other, i)
			}
			seen[addr] = i
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
	}
}
