package verify_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/mldsa"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/receipt"
	"github.com/conclavekms/conclave/auditlog/verify"
)

var update = flag.Bool("update", false, "write the examples of docs/audit-format.md anew")

const page = "../../docs/audit-format.md"

// example is what docs/audit-format.md has as an example: three records.
type example struct {
	origin  string
	ed      ed25519.PrivateKey
	pq      *mldsa.PrivateKey
	kek     []byte // the keyring's generation 1
	cluster []byte
	cleared []byte // record 0 in the clear
	entries []auditlog.Entry
}

func newExample(t *testing.T) *example {
	t.Helper()
	x := &example{origin: "conclave/00112233445566778899aabbccddeeff/0", ed: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))}
	x.kek, x.cluster = bytes.Repeat([]byte{3}, 32), []byte{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
	var err error
	if x.pq, err = mldsa.NewPrivateKey(mldsa.MLDSA44(), bytes.Repeat([]byte{2}, 32)); err != nil {
		t.Fatal(err)
	}
	id := func(first byte) (id [16]byte) {
		for i := range id {
			id[i] = first + byte(i)
		}
		return id
	}
	salt, request := id(0x20), id(0x10)
	x.cleared, err = auditlog.EncodeRecord(&auditpb.Record{
		Schema: 2, Salt: salt[:], RequestId: request[:], EventTime: 1_700_000_000_000_000_000,
		EventName: "Encrypt", EventType: "AwsApiCall", EventSource: "kms.amazonaws.com",
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3) {
		e := auditlog.Entry{Index: i, RaftIndex: 10 + i/2, Time: 1_700_000_000_000_000_000 + int64(i), RequestID: id(0x10 * byte(i+1)), Generation: 1, Salt: id(0x80)}
		e.Commitment = sha256.Sum256(fmt.Appendf(nil, "conclave audit record v1\x00record %d", i))
		e.Body = fmt.Appendf(nil, "body %d", i)
		x.entries = append(x.entries, e)
	}
	x.entries[0].Commitment = sha256.Sum256(append([]byte("conclave audit record v1\x00"), x.cleared...))
	// With a random nonce, there would be another example each time. Package keymat, which makes
	// bodies, has a test that opens this one.
	nonce := bytes.Repeat([]byte{4}, 12)
	aead, err := cipher.NewGCM(must(aes.NewCipher(x.auditKey())))
	if err != nil {
		t.Fatal(err)
	}
	x.entries[0].Body = aead.Seal(nonce, nonce, x.cleared, x.additional())
	return x
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// auditKey derives the key of record 0's body.
func (x *example) auditKey() []byte {
	h := hmac.New(sha256.New, x.kek)
	h.Write([]byte("\x00\x00\x00\x01conclave audit v1\x00"))
	h.Write(x.cluster)
	h.Write(x.entries[0].Salt[:])
	h.Write([]byte{0, 0, 1, 0})
	return h.Sum(nil)
}

// additional is what record 0's body is bound to.
func (x *example) additional() []byte {
	e := x.entries[0]
	b := append([]byte("conclave audit body v1\x00"), e.Salt[:]...)
	b = append(b, e.RequestID[:]...)
	b = binary.BigEndian.AppendUint32(b, e.Generation)
	return append(b, e.Commitment[:]...)
}

// write writes the example as a log, as a node does, and returns the directory, the public
// keys, and a receipt for record 1.
func (x *example) write(t *testing.T) (dir, keys string, proof *receipt.Receipt) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "audit")
	l, err := auditlog.Open(dir, auditlog.Options{})
	if err == nil {
		err = l.Restore(auditlog.Frontier{}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	var tree auditlog.Frontier
	for _, e := range x.entries {
		leaf := e.LeafHash()
		tree.Append(leaf)
		if err := l.Append([]auditlog.Entry{e}, []auditlog.Hash{leaf}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	note, err := checkpoint.Sign(x.origin, x.ed, x.pq, tree.Size(), tree.Root())
	if err == nil {
		err = l.WriteCheckpoint(note)
	}
	if err != nil {
		t.Fatal(err)
	}
	proof = &receipt.Receipt{Index: 1, Leaf: x.entries[1].AppendLeaf(nil), Checkpoint: note}
	if proof.Proof, err = l.ProveInclusion(1, tree.Size()); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, checkpoint.VerifierKey(x.origin, x.ed.Public().(ed25519.PublicKey)) + "\n" + checkpoint.MLDSAVerifierKey(x.origin, x.pq.PublicKey()) + "\n", proof
}

// blocks are the blocks of the page, by name, as this package makes them.
func (x *example) blocks(t *testing.T) map[string]string {
	t.Helper()
	dir, keys, proof := x.write(t)
	file := func(name string) []byte { return must(os.ReadFile(filepath.Join(dir, name))) }
	var b strings.Builder
	value := func(name string, v []byte) { fmt.Fprintf(&b, "%s = %x\n", name, v) }
	value("Ed25519 seed", x.ed.Seed())
	value("ML-DSA-44 seed", x.pq.Bytes())
	value("keyring key, generation 1", x.kek)
	value("cluster id", x.cluster)
	value("record 0 in the clear", x.cleared)
	value("audit key", x.auditKey())
	value("additional data 0", x.additional())
	for i, e := range x.entries {
		value(fmt.Sprintf("commitment %d", i), e.Commitment[:])
		value(fmt.Sprintf("body %d", i), e.Body)
		value(fmt.Sprintf("leaf %d", i), e.AppendLeaf(nil))
		leaf := e.LeafHash()
		value(fmt.Sprintf("leaf hash %d", i), leaf[:])
	}
	left := sha256.Sum256(append(append([]byte{1}, hashOf(x.entries[0])...), hashOf(x.entries[1])...))
	value("node of leaves 0 and 1", left[:])
	root := sha256.Sum256(append(append([]byte{1}, left[:]...), hashOf(x.entries[2])...))
	value("root of 3 records", root[:])
	value("segments/00000000.seg", file("segments/00000000.seg"))
	value("durable", file("durable"))
	id := auditlog.EventID(x.entries[0].LeafHash())
	value("event id 0", id[:])
	head, _, _ := bytes.Cut(proof.Marshal(), proof.Checkpoint)
	return map[string]string{"values": b.String(), "keys": keys, "checkpoint": string(file("checkpoint")), "receipt": string(head), "schema": schema()}
}

func hashOf(e auditlog.Entry) []byte {
	h := e.LeafHash()
	return h[:]
}

// schema lists the fields of records in the clear.
func schema() string {
	var b strings.Builder
	messages := auditpb.File_auditlog_auditpb_record_proto.Messages()
	for i := range messages.Len() {
		m := messages.Get(i)
		fmt.Fprintf(&b, "%s\n", m.Name())
		for k := range m.Fields().Len() {
			f := m.Fields().Get(k)
			kind := f.Kind().String()
			if f.Kind() == protoreflect.MessageKind {
				kind = string(f.Message().Name())
			}
			if f.IsList() {
				kind = "repeated " + kind
			}
			fmt.Fprintf(&b, "%4d %s: %s\n", f.Number(), f.Name(), kind)
		}
	}
	return b.String()
}

// TestFormatPage: docs/audit-format.md, from which others write verifiers, has the values that
// this package makes and accepts.
func TestFormatPage(t *testing.T) {
	x := newExample(t)
	text := string(must(os.ReadFile(page)))
	changed := text
	for name, want := range x.blocks(t) {
		begin := "```text " + name + "\n"
		before, rest, found := strings.Cut(changed, begin)
		old, after, closed := strings.Cut(rest, "```\n")
		if !found || !closed {
			t.Fatalf("the page has no block %q", name)
		}
		if old != want && !*update {
			t.Errorf("block %s of the page is\n%s\nand should be\n%s\n(go test ./auditlog/verify -run TestFormatPage -update)", name, old, want)
		}
		changed = before + begin + want + "```\n" + after
	}
	if *update && changed != text {
		if err := os.WriteFile(page, []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir, keys, proof := x.write(t)
	if r, err := verify.Dir(dir, keys, verify.Options{}); err != nil || !r.OK() || r.CheckpointSize != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	again, err := receipt.Parse(proof.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := again.Verify(keys); err != nil {
		t.Error(err)
	}
}
