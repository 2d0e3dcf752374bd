package witness

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/mldsa"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

const origin = "log.example/one"

var logKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))

// history is a log whose tree can be forked.
type history []tlog.Hash

func (h history) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, n := range at {
		out[i] = h[n]
	}
	return out, nil
}

// grow returns a log with entries more than another one has.
func grow(t *testing.T, h history, size int64, entries ...string) history {
	t.Helper()
	h = append(history(nil), h[:tlog.StoredHashCount(size)]...)
	for i, e := range entries {
		more, err := tlog.StoredHashes(size+int64(i), []byte(e), h)
		if err != nil {
			t.Fatal(err)
		}
		h = append(h, more...)
	}
	return h
}

func numbered(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprint("entry ", i))
	}
	return list
}

// request is a request for a cosignature of the first size entries.
func (h history) request(t *testing.T, old, size int64) *Request {
	t.Helper()
	root, err := tlog.TreeHash(size, h)
	if err != nil {
		t.Fatal(err)
	}
	r := &Request{Old: uint64(old)}
	if r.Checkpoint, err = checkpoint.Sign(origin, logKey, nil, uint64(size), root); err != nil {
		t.Fatal(err)
	}
	if old > 0 && old < size {
		proof, err := tlog.ProveTree(size, old, h)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range proof {
			r.Proof = append(r.Proof, auditlog.Hash(p))
		}
	}
	return r
}

// memory is a store that can fail before and after it has saved.
type memory struct {
	mu    sync.Mutex
	state []byte
	fails string // "before", "after" or ""
}

func (m *memory) Load() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, nil
}

func (m *memory) Save(state []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails != "before" {
		m.state = state
	}
	if m.fails != "" {
		return errors.New("the disk fails")
	}
	return nil
}

func cosigners(t *testing.T, seed byte) []*checkpoint.Cosigner {
	t.Helper()
	const name = "witness.example/w"
	ed, err := checkpoint.NewEd25519Cosigner(name, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := mldsa.NewPrivateKey(mldsa.MLDSA44(), bytes.Repeat([]byte{seed}, mldsa.PrivateKeySize))
	if err != nil {
		t.Fatal(err)
	}
	pq, err := checkpoint.NewMLDSACosigner(name, key, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return []*checkpoint.Cosigner{ed, pq}
}

func open(store Store, signers []*checkpoint.Cosigner) (*Witness, error) {
	return New(Config{
		Signers: signers, Store: store, Logger: slog.New(slog.DiscardHandler),
		Logs: []string{checkpoint.VerifierKey(origin, logKey.Public().(ed25519.PublicKey))},
	})
}

func newWitness(t *testing.T) (*Witness, *memory) {
	t.Helper()
	m := &memory{state: EmptyState()}
	w, err := open(m, cosigners(t, 9))
	if err != nil {
		t.Fatal(err)
	}
	return w, m
}

func send(w *Witness, method, path string, body []byte) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, httptest.NewRequest(method, path, bytes.NewReader(body)))
	return rec
}

func wantStatus(t *testing.T, what string, rec *httptest.ResponseRecorder, want int) {
	t.Helper()
	if rec.Code != want {
		t.Errorf("%s: status %d (%s), want %d", what, rec.Code, strings.TrimSpace(rec.Body.String()), want)
	}
}

// TestWitness: each answer that C2SP tlog-witness names.
func TestWitness(t *testing.T) {
	w, _ := newWitness(t)
	h := grow(t, nil, 0, numbered(20)...)
	fork := grow(t, h, 4, "another history", "b", "c", "d", "e", "f")
	add := func(what string, r *Request, want int) *httptest.ResponseRecorder {
		t.Helper()
		rec := send(w, "POST", AddCheckpoint, r.Marshal())
		wantStatus(t, what, rec, want)
		return rec
	}
	wantStatus(t, "before the first", send(w, "GET", checkpointPath(origin), nil), 404)
	first := h.request(t, 0, 7)
	stranger := *first
	stranger.Checkpoint = bytes.ReplaceAll(first.Checkpoint, []byte(origin), []byte("log.example/two"))
	add("a log that is not known", &stranger, 404)
	forged := *first
	forged.Checkpoint = bytes.Replace(first.Checkpoint, []byte("\n7\n"), []byte("\n8\n"), 1)
	add("another size than was signed", &forged, 403)
	unsigned := *first
	unsigned.Checkpoint = append(bytes.SplitAfter(first.Checkpoint, []byte("\n\n"))[0], "— "+origin+" "+base64.StdEncoding.EncodeToString(make([]byte, 68))+"\n"...)
	add("signed by another key", &unsigned, 403)
	unsigned.Old = 9
	add("an old size beyond the checkpoint, which nobody has to verify", &unsigned, 400)
	otherForm := *first
	otherForm.Checkpoint = bytes.Clone(first.Checkpoint)
	otherForm.Checkpoint[len(otherForm.Checkpoint)-3]++ // before "=\n", with bits that base64 does not use
	add("a signature in another form of base64", &otherForm, 400)
	withProof := *first
	withProof.Proof = []auditlog.Hash{{}}
	add("a proof from nothing", &withProof, 422)
	if rec := add("from a size without a tree", h.request(t, 3, 7), 409); rec.Body.String() != "0\n" || rec.Header().Get("Content-Type") != SizeType {
		t.Errorf("a conflict says %q", rec.Body)
	}

	rec := add("the first", first, 200)
	signed := append(bytes.Clone(first.Checkpoint), rec.Body.Bytes()...)
	n, err := note.Open(signed, note.VerifierList(cosigners(t, 9)[0], cosigners(t, 9)[1]))
	if err != nil || len(n.Sigs) != 2 {
		t.Fatalf("%v: %s", err, rec.Body)
	}
	if shown := send(w, "GET", checkpointPath(origin), nil).Body.Bytes(); !bytes.Equal(shown, signed) {
		t.Errorf("the witness shows\n%s, not\n%s", shown, signed)
	}
	add("the same again", h.request(t, 7, 7), 200)
	add("from before", h.request(t, 0, 7), 409)
	add("an old size beyond the checkpoint", func() *Request { r := h.request(t, 0, 7); r.Old = 9; return r }(), 400)
	add("rolled back", func() *Request { r := h.request(t, 0, 5); r.Old = 7; return r }(), 400)
	add("a fork of the same size", fork.request(t, 7, 7), 422)
	add("a larger fork", fork.request(t, 7, 9), 422)
	for i := range h.request(t, 7, 20).Proof {
		r := h.request(t, 7, 20)
		r.Proof[i][i] ^= 1
		add("an altered proof", r, 422)
	}
	short := h.request(t, 7, 20)
	short.Proof = short.Proof[1:]
	add("a proof cut short", short, 422)
	add("the next", h.request(t, 7, 20), 200)
	if rec := add("from the one before", h.request(t, 7, 20), 409); rec.Body.String() != "20\n" {
		t.Errorf("a conflict says %q", rec.Body)
	}

	wantStatus(t, "GET", send(w, "GET", AddCheckpoint, nil), 405)
	wantStatus(t, "PUT", send(w, "PUT", checkpointPath(origin), nil), 405)
	wantStatus(t, "another path", send(w, "GET", "/", nil), 404)
	wantStatus(t, "too long", send(w, "POST", AddCheckpoint, make([]byte, MaxRequest+1)), 413)
	for _, body := range []string{"", "old 0\n", "old 00\n\nx", "old -1\n\nx", "new 1\n\nx", "old 1\nAAAA\n\nx", "old 20\n\n" + origin + "\n"} {
		wantStatus(t, fmt.Sprintf("%q", body), send(w, "POST", AddCheckpoint, []byte(body)), 400)
	}
}

// TestExtensionLines: checkpoints of others' logs may have them, and a size of zero.
func TestExtensionLines(t *testing.T) {
	w, _ := newWitness(t)
	v, err := note.NewVerifier(checkpoint.VerifierKey(origin, logKey.Public().(ed25519.PublicKey)))
	if err != nil {
		t.Fatal(err)
	}
	sign := func(root [32]byte, more string) []byte {
		text := fmt.Sprintf("%s\n0\n%s\n%s", origin, base64.StdEncoding.EncodeToString(root[:]), more)
		msg, err := note.Sign(&note.Note{Text: text}, signer{v})
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte("old 0\n\n"), msg...)
	}
	wantStatus(t, "the empty tree with another root", send(w, "POST", AddCheckpoint, sign([32]byte{}, "")), 422)
	wantStatus(t, "the empty tree", send(w, "POST", AddCheckpoint, sign(sha256.Sum256(nil), "an extension\n")), 200)
}

type signer struct{ note.Verifier }

func (signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(logKey, msg), nil }

// TestForksAtOnce: of many forks that arrive together, one is cosigned.
func TestForksAtOnce(t *testing.T) {
	for round := range 8 {
		w, _ := newWitness(t)
		var wg sync.WaitGroup
		status := make([]int, 8)
		for i := range status {
			h := grow(t, nil, 0, fmt.Sprint(round, " fork ", i))
			body := h.request(t, 0, 1).Marshal()
			wg.Go(func() { status[i] = send(w, "POST", AddCheckpoint, body).Code })
		}
		wg.Wait()
		granted := 0
		for _, s := range status {
			if s == 200 {
				granted++
			} else if s != 409 {
				t.Errorf("status %d", s)
			}
		}
		if granted != 1 {
			t.Fatalf("%d forks were cosigned", granted)
		}
	}
}

// TestCrash: whatever a crash leaves, and whether or not the witness goes on without one, no two
// forks are cosigned.
func TestCrash(t *testing.T) {
	h := grow(t, nil, 0, numbered(9)...)
	one, other := grow(t, h, 5, "one", "one"), grow(t, h, 5, "other", "other")
	for _, fails := range []string{"before", "after"} {
		for _, restart := range []bool{false, true} {
			w, m := newWitness(t)
			wantStatus(t, "the first", send(w, "POST", AddCheckpoint, h.request(t, 0, 5).Marshal()), 200)
			m.fails = fails
			rec := send(w, "POST", AddCheckpoint, one.request(t, 5, 6).Marshal())
			wantStatus(t, "with a failing disk", rec, 500)
			if strings.Contains(rec.Body.String(), "— ") {
				t.Fatal("a cosignature that is not kept was given away")
			}
			m.fails = ""
			if restart {
				var err error
				if w, err = open(m, cosigners(t, 9)); err != nil {
					t.Fatal(err)
				}
			}
			granted := 0
			for _, l := range []history{other, one} {
				if send(w, "POST", AddCheckpoint, l.request(t, 5, 7).Marshal()).Code == 200 {
					granted++
				}
				if send(w, "POST", AddCheckpoint, l.request(t, 6, 7).Marshal()).Code == 200 {
					granted++
				}
			}
			if granted != 1 {
				t.Errorf("failing %s, restart %v: %d forks were cosigned", fails, restart, granted)
			}
		}
	}
}

// TestCorruptState: a state in which anything was changed is refused, and so is none.
func TestCorruptState(t *testing.T) {
	w, m := newWitness(t)
	h := grow(t, nil, 0, numbered(9)...)
	wantStatus(t, "the first", send(w, "POST", AddCheckpoint, h.request(t, 0, 5).Marshal()), 200)
	good := bytes.Clone(m.state)
	if again, err := open(m, cosigners(t, 9)); err != nil {
		t.Fatal(err)
	} else if rec := send(again, "POST", AddCheckpoint, h.request(t, 0, 9).Marshal()); rec.Code != 409 || rec.Body.String() != "5\n" {
		t.Errorf("after a restart: %d %s", rec.Code, rec.Body)
	}
	own := cosigners(t, 9)
	refused := func(what string, state []byte, signers []*checkpoint.Cosigner) {
		t.Helper()
		if _, err := open(&memory{state: state}, signers); !errors.Is(err, auditlog.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("of another witness", good, cosigners(t, 8))
	refused("empty", nil, own)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		refused(fmt.Sprintf("byte %d changed", i), bad, own)
		if i%16 == 0 {
			refused(fmt.Sprintf("cut at %d", i), good[:i], own)
		}
	}
	// Whoever can make a digest cannot make a cosignature.
	older := strings.Replace(w.newest[origin].note, "\n5\n", "\n4\n", 1)
	refused("a smaller tree", encodeState(map[string]string{origin: older}), own)
	refused("under another name", encodeState(map[string]string{"log.example/two": w.newest[origin].note}), own)
}

// TestBusy: requests beyond a limit are refused and not queued.
func TestBusy(t *testing.T) {
	w, _ := newWitness(t)
	for range maxRequests {
		w.room <- struct{}{}
	}
	rec := send(w, "GET", checkpointPath(origin), nil)
	wantStatus(t, "one more", rec, 503)
	if rec.Header().Get("Retry-After") == "" {
		t.Error("the answer does not say when to come back")
	}
	<-w.room
	wantStatus(t, "with room", send(w, "GET", checkpointPath(origin), nil), 404)
}

// stalled is a body that does not arrive until done is closed.
type stalled struct {
	reading chan<- struct{}
	done    <-chan struct{}
}

func (s stalled) Read([]byte) (int, error) {
	s.reading <- struct{}{}
	<-s.done
	return 0, errors.New("cut off")
}

// TestSlowSenders: requests that have not arrived yet occupy no room.
func TestSlowSenders(t *testing.T) {
	w, _ := newWitness(t)
	reading, done := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	for range maxRequests {
		wg.Go(func() {
			rec := httptest.NewRecorder()
			w.ServeHTTP(rec, httptest.NewRequest("POST", AddCheckpoint, stalled{reading, done}))
			wantStatus(t, "a request that is cut off", rec, 400)
		})
		<-reading
	}
	h := grow(t, nil, 0, numbered(5)...)
	wantStatus(t, "beside slow senders", send(w, "POST", AddCheckpoint, h.request(t, 0, 5).Marshal()), 200)
	close(done)
	wg.Wait()
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("old 1\n" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n\nx"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if r, err := parseRequest(body); err == nil && !bytes.Equal(r.Marshal(), body) {
			t.Errorf("%q is encoded as %q", body, r.Marshal())
		}
	})
}
