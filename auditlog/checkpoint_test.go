package auditlog

import (
	"bytes"
	"testing"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

func TestWriteCheckpoint(t *testing.T) {
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 50)
	if l.Checkpoint() != nil {
		t.Fatal("a checkpoint from nowhere")
	}
	refused := func(msg []byte, what string) {
		t.Helper()
		before := l.Checkpoint()
		if err := l.WriteCheckpoint(msg); err == nil {
			t.Fatalf("%s: taken", what)
		}
		if !bytes.Equal(l.Checkpoint(), before) {
			t.Fatalf("%s: changed the checkpoint", what)
		}
	}
	refused(testCheckpoint(t, 50), "not yet durable")
	mustSync(t, l)
	mustCheckpoint(t, l, 40)
	mustCheckpoint(t, l, 40)
	refused(testCheckpoint(t, 39), "older")
	refused(testCheckpoint(t, 51), "beyond the end")
	refused([]byte("x"), "malformed")
	f, _ := testState(45)
	f.nodes[0][0] ^= 1
	fork, _ := checkpoint.Sign(testOrigin, testPriv, nil, f.Size(), f.Root())
	refused(fork, "another tree")
	f, _ = testState(45)
	foreign, _ := checkpoint.Sign("conclave/other", testPriv, nil, f.Size(), f.Root())
	refused(foreign, "another origin")
	msg := mustCheckpoint(t, l, 50)
	if !bytes.Equal(l.Checkpoint(), msg) {
		t.Fatal("not the checkpoint that was written")
	}
	if l.Err() != nil {
		t.Fatal(l.Err())
	}
}
