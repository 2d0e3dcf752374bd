package tlogapi

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const origin = "conclave/00112233445566778899aabbccddeeff/0"

// engine lets everybody with the token "good" read the leaves.
type engine struct {
	log   *auditlog.Log
	asked int
	// cosigned is the published checkpoint if it is another one than the log's.
	cosigned []byte
}

func (e *engine) AuthenticateSession(_ context.Context, token string) (iam.Identity, error) {
	if token != "good" && token != "powerless" {
		return iam.Identity{}, kmsapi.Errorf(kmsapi.ErrUnrecognizedClient, "The token is invalid.")
	}
	return iam.Identity{}, nil
}

// PublishedCheckpoint returns the log's own checkpoint, with a cosignature if there is one.
func (e *engine) PublishedCheckpoint() []byte {
	if e.cosigned != nil {
		return e.cosigned
	}
	return e.log.Checkpoint()
}

func (e *engine) AuditLeaves(_ context.Context, c *iam.Caller, from uint64, n int) ([]auditlog.Entry, error) {
	e.asked++
	if c.Transport != "tlog" {
		return nil, errors.New("the caller is not described")
	}
	return e.log.Read(from, n, 1<<20)
}

func entry(i uint64) auditlog.Entry {
	return auditlog.Entry{Index: i, RaftIndex: 10 + i, Time: int64(i), RequestID: [16]byte{1, byte(i), byte(i >> 8)}, Body: fmt.Appendf(nil, "record %d", i)}
}

// serve publishes a log of size entries, of which the checkpoint covers signed.
func serve(t *testing.T, size, signed uint64) (*httptest.Server, *engine, auditlog.Hash) {
	t.Helper()
	l, err := auditlog.Open(t.TempDir(), auditlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := l.Restore(auditlog.Frontier{}, nil); err != nil {
		t.Fatal(err)
	}
	var tree auditlog.Frontier
	var root auditlog.Hash
	for i := range size {
		e := entry(i)
		leaf := e.LeafHash()
		if err := l.Append([]auditlog.Entry{e}, []auditlog.Hash{leaf}); err != nil {
			t.Fatal(err)
		}
		if tree.Append(leaf); tree.Size() == signed {
			root = tree.Root()
		}
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	if signed > 0 {
		note, err := checkpoint.Sign(origin, ed25519.NewKeyFromSeed(make([]byte, 32)), nil, signed, root)
		if err == nil {
			err = l.WriteCheckpoint(note)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	e := &engine{log: l}
	h, err := New(Config{Log: l, Engine: e})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h.Before(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })))
	t.Cleanup(s.Close)
	return s, e, root
}

func get(t *testing.T, s *httptest.Server, method, path, authorization string) (int, []byte, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b, res.Header
}

// reader reads tiles for package tlog, which verifies them.
type reader struct {
	t *testing.T
	s *httptest.Server
}

func (reader) Height() int                     { return 8 }
func (reader) SaveTiles([]tlog.Tile, [][]byte) {}
func (r reader) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, t := range tiles {
		status, b, _ := get(r.t, r.s, "GET", "/tlog/tile"+t.Path()[len("tile/8"):], "")
		if status != http.StatusOK {
			return nil, fmt.Errorf("%s: %d", t.Path(), status)
		}
		data = append(data, b)
	}
	return data, nil
}

func TestTilesProveEveryEntry(t *testing.T) {
	const size, signed = 700, 613
	s, e, root := serve(t, size, signed)
	tree := tlog.Tree{N: signed, Hash: tlog.Hash(root)}
	hashes := tlog.TileHashReader(tree, reader{t, s})
	for _, i := range []int64{0, 255, 256, 511, 512, 612} {
		p, err := tlog.ProveRecord(signed, i, hashes)
		if err != nil {
			t.Fatal(err)
		}
		e := entry(uint64(i))
		leaf := e.LeafHash()
		if err := tlog.CheckRecord(p, signed, tlog.Hash(root), i, tlog.Hash(leaf)); err != nil {
			t.Errorf("entry %d: %v", i, err)
		}
	}
	status, b, header := get(t, s, "GET", "/tlog/checkpoint", "")
	if c, err := checkpoint.Decode(b); status != 200 || err != nil || c.Size != signed || header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("the checkpoint: %d, %+v, %v, %v", status, c, err, header)
	}
	e.cosigned = append(b, "— witness.example/w 3q2+7wAAAAAAAAAA\n"...)
	if _, again, _ := get(t, s, "GET", "/tlog/checkpoint", ""); string(again) != string(e.cosigned) {
		t.Errorf("with a cosignature, %q is published", again)
	}
}

func TestEntryBundles(t *testing.T) {
	s, e, _ := serve(t, 700, 613)
	for path, want := range map[string]struct{ from, n uint64 }{
		"/tlog/tile/entries/000": {0, 256}, "/tlog/tile/entries/001": {256, 256}, "/tlog/tile/entries/002.p/101": {512, 101}, "/tlog/tile/entries/002.p/1": {512, 1},
	} {
		status, b, _ := get(t, s, "GET", path, "Bearer good")
		if status != 200 {
			t.Fatalf("%s: %d %s", path, status, b)
		}
		for i := range want.n {
			e := entry(want.from + i)
			leaf := e.AppendLeaf(nil)
			if len(b) < 2+len(leaf) || int(b[0])<<8|int(b[1]) != len(leaf) || string(b[2:2+len(leaf)]) != string(leaf) {
				t.Fatalf("%s: entry %d is not its leaf", path, want.from+i)
			}
			b = b[2+len(leaf):]
		}
		if len(b) != 0 {
			t.Errorf("%s: %d bytes too many", path, len(b))
		}
	}
	asked := e.asked
	for _, authorization := range []string{"", "good", "Bearer bad", "Basic good", "bearer good"} {
		if status, b, _ := get(t, s, "GET", "/tlog/tile/entries/000", authorization); status != http.StatusUnauthorized && status != http.StatusForbidden {
			t.Errorf("with %q: %d, %d bytes", authorization, status, len(b))
		}
	}
	// What no checkpoint covers is not read for anybody.
	if status, _, _ := get(t, s, "GET", "/tlog/tile/entries/002.p/102", "Bearer good"); status != http.StatusNotFound {
		t.Errorf("past the checkpoint: %d", status)
	}
	if e.asked != asked {
		t.Error("the engine was asked")
	}
}

func TestOnlyTheLogIsServed(t *testing.T) {
	s, _, _ := serve(t, 700, 613)
	for _, path := range []string{
		"/tlog/", "/tlog/tile", "/tlog/tile/", "/tlog/tile/0/", "/tlog/tile/0/0", "/tlog/tile/0/0000", "/tlog/tile/00/000", "/tlog/tile/64/000", "/tlog/tile/-1/000",
		"/tlog/tile/0/x000/000", "/tlog/tile/0/x001", "/tlog/tile/0/001/000", "/tlog/tile/0/000.p/0", "/tlog/tile/0/000.p/256", "/tlog/tile/0/000.p/01", "/tlog/tile/0/000.p/", "/tlog/tile/0/002",
		"/tlog/tile/0/002.p/102", "/tlog/tile/0/x999/x999/x999/x999/x999/x999/x999/999", "/tlog/tile/8/000", "/tlog/tile/0/..%2f..%2fcheckpoint", "/tlog/segments/00000000.seg", "/tlog/durable", "/tlog/checkpoint/", "/tlog/tile/1/000.p/3",
		"/tlog/tile/0/+00", "/tlog/tile/0/000.p/101/000",
	} {
		if status, b, _ := get(t, s, "GET", path, ""); status != http.StatusNotFound {
			t.Errorf("%s: %d, %d bytes", path, status, len(b))
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		if status, _, _ := get(t, s, method, "/tlog/checkpoint", ""); status < 400 {
			t.Errorf("%s: %d", method, status)
		}
	}
	if status, _, _ := get(t, s, "GET", "/tlogs", ""); status != http.StatusTeapot {
		t.Error("another path is not left to the next handler")
	}
	empty, _, _ := serve(t, 3, 0)
	for _, path := range []string{"/tlog/checkpoint", "/tlog/tile/0/000.p/3"} {
		if status, _, _ := get(t, empty, "GET", path, ""); status != http.StatusNotFound {
			t.Errorf("%s without a checkpoint: %d", path, status)
		}
	}
}
