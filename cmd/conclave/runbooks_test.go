package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/archive"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/cmd/conclave/internal/depot"
)

// TestRunbooks carries out the runbooks in docs/operate, and other pages of docs: a script in
// testdata/runbooks has the name of its page, and runs all commands of it, as they stand there.
func TestRunbooks(t *testing.T) {
	if testing.Short() {
		t.Skip("with the race detector each of some hundred commands takes a second: make test runs them; TestScripts covers what they use")
	}
	scripts, err := filepath.Glob("testdata/runbooks/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("there are no scripts: %v", err)
	}
	for _, script := range scripts {
		book := openRunbook(t, strings.TrimSuffix(filepath.Base(script), ".txtar"))
		testscript.Run(t, testscript.Params{
			Files:               []string{script},
			Deadline:            time.Now().Add(15 * time.Minute),
			RequireExplicitExec: true,
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"archivedlog": cmdArchivedLog,
				"capture":     cmdCapture,
				"evalenv":     cmdEvalEnv,
				"exits":       cmdExits,
				"flip":        cmdFlip,
				"ports":       cmdPorts,
				"presents":    cmdPresents,
				"runbook":     book.run,
				"waitfor":     cmdWaitFor,
			},
		})
	}
}

// cmdArchivedLog makes the archive of a log with one full segment, and writes the log's key:
// archivedlog DIRECTORY FILE
func cmdArchivedLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: archivedlog DIRECTORY FILE")
	}
	const origin = "conclave/00112233445566778899aabbccddeeff/0"
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	keys := checkpoint.VerifierKey(origin, key.Public().(ed25519.PublicKey))
	store, err := depot.Parse(ts.MkAbs(args[0]))
	ts.Check(err)
	a, err := archive.New(store, keys)
	ts.Check(err)
	log := make(recordsOf, auditlog.SegmentSize)
	var tree auditlog.Frontier
	for i := range log {
		log[i] = auditlog.Entry{Index: uint64(i), Generation: 1, Body: []byte("a record")}
		binary.BigEndian.PutUint64(log[i].RequestID[:], uint64(i)+1)
		tree.Append(log[i].LeafHash())
	}
	note, err := checkpoint.Sign(origin, key, nil, tree.Size(), tree.Root())
	ts.Check(err)
	_, err = a.Put(context.Background(), log, []auditlog.Hash{tree.SegmentRoot()}, note)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(keys), 0o600))
}

// recordsOf is a log in memory.
type recordsOf []auditlog.Entry

func (r recordsOf) Read(from uint64, max, _ int) ([]auditlog.Entry, error) {
	return r[from:][:max], nil
}

// runbook is a page whose commands a script runs.
type runbook struct {
	page, text string
	ran        map[string]bool // blocks of commands
}

// openRunbook reads a page of docs/operate or, if there is none of that name, of docs. When the test ends, it fails if some commands of
// the page were not run.
func openRunbook(t *testing.T, name string) *runbook {
	t.Helper()
	r := &runbook{page: "../../docs/operate/" + name + ".md", ran: make(map[string]bool)}
	text, err := os.ReadFile(r.page)
	if errors.Is(err, fs.ErrNotExist) {
		r.page = "../../docs/" + name + ".md"
		text, err = os.ReadFile(r.page)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.text = string(text)
	t.Cleanup(func() { // when the scripts, which run in parallel, have ended
		if t.Failed() {
			return
		}
		for _, b := range shellBlocks(r.text, "") {
			if _, err := exec.LookPath("aws"); err != nil && strings.HasPrefix(b, "aws ") {
				t.Logf("there is no AWS CLI, and these commands of %s were not run:\n%s", r.page, b)
				continue
			}
			if !r.ran[b] {
				t.Errorf("%s has commands that no test runs:\n%s", r.page, b)
			}
		}
	})
	return r
}

// run runs a block of commands, the first one below a heading or the one with a number, until
// it succeeds if it is to wait: runbook HEADING [NUMBER [wait]]
func (r *runbook) run(ts *testscript.TestScript, neg bool, args []string) {
	number := 1
	if len(args) > 1 {
		number, _ = strconv.Atoi(args[1])
	}
	if neg || len(args) < 1 || len(args) > 3 || len(args) == 3 && args[2] != "wait" {
		ts.Fatalf("usage: runbook HEADING [NUMBER [wait]]")
	}
	blocks := shellBlocks(r.text, args[0])
	if number < 1 || number > len(blocks) {
		ts.Fatalf("%s has %d blocks of commands in %q", r.page, len(blocks), args[0])
	}
	r.ran[blocks[number-1]] = true
	if len(args) == 3 {
		cmdWaitFor(ts, false, []string{"sh", "-euc", blocks[number-1]})
		return
	}
	ts.Check(ts.Exec("sh", "-euc", blocks[number-1]))
}

// cmdPresents waits until a server presents the certificate in a file: presents ADDRESS FILE
func cmdPresents(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: presents ADDRESS FILE")
	}
	block, _ := pem.Decode([]byte(ts.ReadFile(args[1])))
	if block == nil {
		ts.Fatalf("%s has no certificate", args[1])
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{
		InsecureSkipVerify: true, // only compared
		NextProtos:         []string{"h2"},
	}}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := d.Dial("tcp", args[0])
		if err == nil {
			got := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw
			conn.Close()
			if bytes.Equal(got, block.Bytes) {
				return
			}
			err = errors.New("it presents another certificate")
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: %v", args[0], err)
		}
	}
}

var fenced = regexp.MustCompile("(?ms)^( *)```sh\n(.*?)^ *```$")

// shellBlocks returns the blocks of commands below a heading of a document, or all of them.
func shellBlocks(text, heading string) (blocks []string) {
	if heading != "" {
		_, text, _ = strings.Cut(text, "\n## "+heading+"\n")
		text, _, _ = strings.Cut(text, "\n## ")
	}
	for _, m := range fenced.FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, strings.ReplaceAll("\n"+m[2], "\n"+m[1], "\n"))
	}
	return blocks
}
