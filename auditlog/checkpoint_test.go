package auditlog

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"strings"
	"testing"
)

func TestCheckpointFormat(t *testing.T) {
	f, _ := testState(5)
	msg := testCheckpoint(t, 5)
	c, err := ParseCheckpoint(msg, testKey)
	if err != nil || c != (Checkpoint{testOrigin, 5, f.Root()}) {
		t.Fatalf("%+v, %v", c, err)
	}
	root := f.Root()
	if want := testOrigin + "\n5\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n\n— " + testOrigin + " "; !strings.HasPrefix(string(msg), want) {
		t.Fatalf("checkpoint %q, want prefix %q", msg, want)
	}
	for i := range msg {
		for bit := range 8 {
			b := bytes.Clone(msg)
			b[i] ^= 1 << bit
			if _, err := ParseCheckpoint(b, testKey); err == nil {
				t.Fatalf("byte %d bit %d flipped: still taken", i, bit)
			}
		}
		if _, err := ParseCheckpoint(msg[:i], testKey); err == nil {
			t.Fatalf("cut at %d: still taken", i)
		}
	}
	cosigned := append(bytes.Clone(msg), "— witness.example/w 3q2+7wAAAAAAAAAA\n"...)
	if got, err := ParseCheckpoint(cosigned, testKey); err != nil || got != c {
		t.Fatalf("with a witness's signature: %v", err)
	}
	for _, origin := range []string{"", "a b", "a+b", "a\nb"} {
		if _, err := SignCheckpoint(origin, testPriv, f); err == nil {
			t.Errorf("origin %q is taken", origin)
		}
		if VerifierKey(origin, testPriv.Public().(ed25519.PublicKey)) != "" {
			t.Errorf("a key for origin %q", origin)
		}
	}
	if _, err := SignCheckpoint(testOrigin, nil, f); err == nil {
		t.Error("no key is taken")
	}
}

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
	fork, _ := SignCheckpoint(testOrigin, testPriv, f)
	refused(fork, "another tree")
	f, _ = testState(45)
	foreign, _ := SignCheckpoint("conclave/other", testPriv, f)
	refused(foreign, "another origin")
	msg := mustCheckpoint(t, l, 50)
	if !bytes.Equal(l.Checkpoint(), msg) {
		t.Fatal("not the checkpoint that was written")
	}
	if l.Err() != nil {
		t.Fatal(l.Err())
	}
}
