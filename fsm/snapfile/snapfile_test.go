package snapfile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/wire"
)

var (
	header  = &fsmpb.SnapshotHeader{Schema: 1, Index: 7}
	cluster = &fsmpb.Cluster{Region: "eu-test-1", Version: 3}
	session = &fsmpb.Session{Node: "n1", Incarnation: 2}
)

func written(t *testing.T, items ...proto.Message) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range items {
		w.Item(m)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// read reads a whole snapshot.
func read(snap []byte) (items []*fsmpb.SnapshotItem, digest [32]byte, err error) {
	r, err := NewReader(bytes.NewReader(snap))
	if err != nil {
		return nil, digest, err
	}
	defer r.Close()
	for {
		item, err := r.Next()
		if err == io.EOF {
			return items, r.Digest(), nil
		}
		if err != nil {
			return nil, digest, err
		}
		items = append(items, item)
	}
}

// raw makes a file of items that Writer would not write.
func raw(items ...[]byte) []byte {
	b := []byte(magic)
	for _, item := range items {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(item))), item...)
	}
	z, _ := zstd.NewWriter(nil)
	return z.EncodeAll(b, nil)
}

func item(m proto.Message) []byte {
	b := protowire.AppendTag(nil, FieldOf(m), protowire.BytesType)
	return protowire.AppendBytes(b, wire.Marshal(nil, m))
}

func TestReadsWhatWasWritten(t *testing.T) {
	snap := written(t, header, cluster, session)
	items, digest, err := read(snap)
	if err != nil {
		t.Fatal(err)
	}
	if len(items) != 3 || !proto.Equal(items[0].GetHeader(), header) || !proto.Equal(items[1].GetCluster(), cluster) || !proto.Equal(items[2].GetSession(), session) {
		t.Errorf("read %v", items)
	}
	attested := func(w *Writer) { w.Item(header); w.Field(FieldOf(cluster), cluster) }
	if want := Digest(attested); digest != want {
		t.Errorf("the digest of what was read is %x, of what was written %x", digest, want)
	}
	if index, err := Index(bytes.NewReader(snap)); index != 7 || err != nil {
		t.Errorf("Index %d, %v", index, err)
	}
	if c, err := Cluster(bytes.NewReader(snap)); !proto.Equal(c, cluster) || err != nil {
		t.Errorf("Cluster %v, %v", c, err)
	}
	for _, without := range [][]byte{written(t, header), written(t, header, session)} {
		if c, err := Cluster(bytes.NewReader(without)); c != nil || err != nil {
			t.Errorf("without a cluster: %v, %v", c, err)
		}
	}
}

// Nodes of all releases compute the same digest.
func TestDigestNeverChanges(t *testing.T) {
	const want = "f87030d43306d332cd145e9a27049ae6c7d5febd49c158015fd6132de0ec7c98"
	if d := Digest(func(w *Writer) { w.Item(header); w.Item(cluster) }); hex.EncodeToString(d[:]) != want {
		t.Errorf("digest %x, want %s", d, want)
	}
}

// A writer's digest covers what was written before it, and the bytes are those of a
// writer that nobody asks for it.
func TestDigestWhileWriting(t *testing.T) {
	var buf bytes.Buffer
	w, err := NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	w.Item(header)
	digest := w.Digest()
	w.Item(session)
	if err := errors.Join(w.Err(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if want := Digest(func(w *Writer) { w.Item(header) }); digest != want {
		t.Errorf("digest %x, want %x", digest, want)
	}
	if !bytes.Equal(buf.Bytes(), written(t, header, session)) {
		t.Error("the same items gave other bytes")
	}
}

func TestDamagedFilesAreRefused(t *testing.T) {
	end := func(n uint64) []byte { return item(&fsmpb.SnapshotEnd{Items: n}) }
	if _, _, err := read(raw(item(header), item(session), end(2))); err != nil {
		t.Fatalf("an undamaged file: %v", err)
	}
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 4000, protowire.VarintType), 1)
	z, _ := zstd.NewWriter(nil)
	for name, b := range map[string][]byte{
		"empty":                  nil,
		"not compressed":         []byte(magic),
		"another magic":          z.EncodeAll([]byte("conclave snapshot\x00\x02"), nil),
		"no item":                raw(),
		"no header":              raw(end(0)),
		"header second":          raw(item(session), item(header), end(2)),
		"two headers":            raw(item(header), item(header), end(2)),
		"no end":                 raw(item(header), item(session)),
		"fewer items than said":  raw(item(header), end(2)),
		"more items than said":   raw(item(header), item(session), end(1)),
		"something behind":       raw(item(header), end(1), item(session)),
		"unknown item":           raw(item(header), unknown, end(2)),
		"unknown field":          raw(item(header), protowire.AppendBytes(protowire.AppendTag(nil, FieldOf(session), protowire.BytesType), unknown), end(2)),
		"not a message":          raw(item(header), []byte("\xff\xff"), end(2)),
		"large item":             raw(item(header), item(&fsmpb.Session{Node: string(make([]byte, maxItem))}), end(2)),
		"item longer than it is": z.EncodeAll(slices.Concat([]byte(magic), []byte{0, 0, 1, 0}, item(header)), nil),
		"absurd length":          z.EncodeAll(slices.Concat([]byte(magic), []byte{255, 255, 255, 255}), nil),
	} {
		if _, _, err := read(b); !errors.Is(err, wire.ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	whole := written(t, header, cluster, session)
	for n := range len(whole) {
		if _, _, err := read(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes: read", n, len(whole))
		}
	}
}

// Before the first item is known, nothing is said about a file.
func TestBeginningOfADamagedFile(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":     nil,
		"no header": raw(item(&fsmpb.SnapshotEnd{})),
		"cluster":   raw(item(cluster)),
	} {
		if _, err := Index(bytes.NewReader(b)); !errors.Is(err, wire.ErrUnreadable) {
			t.Errorf("%s: Index: %v", name, err)
		}
		if _, err := Cluster(bytes.NewReader(b)); !errors.Is(err, wire.ErrUnreadable) {
			t.Errorf("%s: Cluster: %v", name, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestWriteErrorsAreReported(t *testing.T) {
	full := errors.New("no space left")
	w, err := NewWriter(failing{full})
	if err != nil {
		t.Fatal(err)
	}
	w.Item(header)
	if err := w.Close(); !errors.Is(err, full) {
		t.Errorf("Close: %v", err)
	}
	if w, err = NewWriter(io.Discard); err != nil {
		t.Fatal(err)
	}
	w.Item(header)
	if err := w.Abandon(full); !errors.Is(err, full) {
		t.Errorf("Abandon: %v", err)
	}
}

// TestNewerSchema: a snapshot of a later release is refused for its schema, whatever else is
// in it that this release does not know.
func TestNewerSchema(t *testing.T) {
	later := &fsmpb.SnapshotHeader{Schema: level.Newest + 1}
	later.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1))
	_, err := Cluster(bytes.NewReader(written(t, later, cluster)))
	if !errors.Is(err, wire.ErrUnreadable) || !strings.Contains(err.Error(), "a newer release wrote it") {
		t.Errorf("a snapshot of a later release: %v", err)
	}
}
