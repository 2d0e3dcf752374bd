package verify_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/verify"
)

func ExampleDir() {
	dir, key := copyOfLog(3)
	defer os.RemoveAll(dir)

	report, err := verify.Dir(dir, key, verify.Options{})
	if err != nil {
		log.Fatal(err) // the directory cannot be read, or the key is not valid
	}
	fmt.Println("nothing is wrong:", report.OK())
	fmt.Println("signed by:", report.Origin)
	fmt.Println("entries:", report.Size, "of which signed:", report.CheckpointSize)
	// Output:
	// nothing is wrong: true
	// signed by: conclave/00112233445566778899aabbccddeeff/0
	// entries: 3 of which signed: 3
}

// One bit of a record was flipped.
func ExampleDir_tampered() {
	dir, key := copyOfLog(3)
	defer os.RemoveAll(dir)
	segment := filepath.Join(dir, "segments", "00000000.seg")
	raw, err := os.ReadFile(segment)
	if err != nil {
		log.Fatal(err)
	}
	raw[bytes.Index(raw, []byte("record 1"))] ^= 1
	if err := os.WriteFile(segment, raw, 0o600); err != nil {
		log.Fatal(err)
	}

	report, err := verify.Dir(dir, key, verify.Options{})
	if err != nil {
		log.Fatal(err)
	}
	for _, problem := range report.Problems {
		fmt.Println(problem)
	}
	// Output:
	// segments/00000000.seg: offset 156: entry 1: malformed audit data: frame does not match its leaf hash
}

// A log that was replaced as a whole by an older copy is consistent in itself. A
// checkpoint that was kept elsewhere shows that it was rolled back.
func ExampleOptions() {
	dir, key := copyOfLog(3)
	defer os.RemoveAll(dir)
	kept, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		log.Fatal(err)
	}
	older, _ := copyOfLog(2)
	defer os.RemoveAll(older)

	for _, opts := range []verify.Options{{}, {Earlier: [][]byte{kept}}} {
		report, err := verify.Dir(older, key, opts)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("nothing is wrong:", report.OK())
		for _, problem := range report.Problems {
			fmt.Println(problem.What)
		}
	}
	// Output:
	// nothing is wrong: true
	// nothing is wrong: false
	// it covers 2 entries, earlier checkpoint 0 covered 3: the log was rolled back, or this copy lags
	// earlier checkpoint 0: it covered 3 entries, but there are 2
}

// copyOfLog makes a copy of a node's audit directory with n entries. It returns the
// directory, and the public key that the operators published.
func copyOfLog(n uint64) (dir, key string) {
	const origin = "conclave/00112233445566778899aabbccddeeff/0"
	signing := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		log.Fatal(err)
	}
	l, err := auditlog.Open(dir, auditlog.Options{})
	if err != nil {
		log.Fatal(err)
	}
	if err := l.Restore(auditlog.Frontier{}, nil); err != nil {
		log.Fatal(err)
	}
	var tree auditlog.Frontier
	for i := range n {
		e := auditlog.Entry{Index: i, RaftIndex: 10 + i, RequestID: [16]byte{1 + byte(i)}, Body: fmt.Appendf(nil, "record %d", i)}
		leaf := e.LeafHash()
		tree.Append(leaf)
		if err := l.Append([]auditlog.Entry{e}, []auditlog.Hash{leaf}); err != nil {
			log.Fatal(err)
		}
	}
	if err := l.Sync(); err != nil {
		log.Fatal(err)
	}
	signed, err := checkpoint.Sign(origin, signing, nil, tree.Size(), tree.Root())
	if err != nil {
		log.Fatal(err)
	}
	if err := l.WriteCheckpoint(signed); err != nil {
		log.Fatal(err)
	}
	if err := l.Close(); err != nil {
		log.Fatal(err)
	}
	return dir, checkpoint.VerifierKey(origin, signing.Public().(ed25519.PublicKey))
}
