package witness

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	f_note "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	client "github.com/transparency-dev/witness/client/http"
	theirs "github.com/transparency-dev/witness/witness"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var emptyRoot = sha256.Sum256(nil)

// testLog is a log of the test, whose history it can change.
type testLog struct {
	origin, key string
	signer      note.Signer
	hashes      []tlog.Hash
	size        int64
}

func newLog(t *testing.T, origin string) *testLog {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	return &testLog{origin: origin, key: vkey, signer: must(note.NewSigner(skey))}
}

func (l *testLog) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, n := range at {
		out[i] = l.hashes[n]
	}
	return out, nil
}

// fork returns a log that begins with the first n entries of this one, with the same key.
func (l *testLog) fork(n int64) *testLog {
	f := *l
	f.size, f.hashes = n, slices.Clone(l.hashes[:tlog.StoredHashCount(n)])
	return &f
}

func (l *testLog) add(entries ...string) {
	for _, e := range entries {
		l.hashes = append(l.hashes, must(tlog.StoredHashes(l.size, []byte(e), l))...)
		l.size++
	}
}

// request is a request for a cosignature of the first size entries, to a witness that knows old.
func (l *testLog) request(old, size int64, signer note.Signer, change ...func(tlog.TreeProof) tlog.TreeProof) []byte {
	var proof tlog.TreeProof
	if old > 0 && old <= size {
		proof = must(tlog.ProveTree(size, old, l))
	}
	for _, f := range change {
		proof = f(proof)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", old)
	for _, h := range proof {
		fmt.Fprintln(&b, h)
	}
	root := must(tlog.TreeHash(size, l))
	text := fmt.Sprintf("%s\n%d\n%s\n", l.origin, size, root)
	fmt.Fprintf(&b, "\n%s", must(note.Sign(&note.Note{Text: text}, signer)))
	return b.Bytes()
}

// TestSameAnswers sends the same requests to three witnesses. All refuse what a log must not do.
func TestSameAnswers(t *testing.T) {
	l := newLog(t, "log.example/same")
	var entries []string
	for i := range 20 {
		entries = append(entries, fmt.Sprint("entry ", i))
	}
	l.add(entries...)
	fork := l.fork(4)
	fork.add("another history", "and so on", "and on", "and on", "and on")
	stranger := newLog(t, "log.example/stranger")
	stranger.add("entry")
	flip := func(p tlog.TreeProof) tlog.TreeProof { p[0][3] ^= 4; return p }
	short := func(p tlog.TreeProof) tlog.TreeProof { return p[1:] }
	long := func(p tlog.TreeProof) tlog.TreeProof { return append(p, tlog.Hash{}) }
	steps := []struct {
		what   string
		body   []byte
		status int
		answer string // of a conflict
	}{
		{"without a line", []byte("old"), 400, ""},
		{"a size that is no number", append([]byte("old x\n\n"), l.request(0, 3, l.signer)[7:]...), 400, ""},
		{"signed by another key", l.request(0, 3, newLog(t, l.origin).signer), 403, ""},
		{"a first checkpoint from a size", l.request(3, 7, l.signer), 409, "0\n"},
		{"the first checkpoint", l.request(0, 7, l.signer), 200, ""},
		{"again", l.request(7, 7, l.signer), 200, ""},
		{"an old size beyond the checkpoint", l.request(9, 5, l.signer), 400, ""},
		{"a fork from the beginning", fork.request(0, 9, l.signer), 409, "7\n"},
		{"a fork of the same size", fork.request(7, 7, l.signer), 422, ""},
		{"a larger fork", fork.request(7, 9, l.signer), 422, ""},
		{"a fork with the proof of what it was", fork.request(4, 9, l.signer), 409, "7\n"},
		{"rolled back", l.request(0, 5, l.signer), 409, "7\n"},
		{"rolled back, with the newest size", l.request(7, 5, l.signer), 400, ""},
		{"an altered proof", l.request(7, 20, l.signer, flip), 422, ""},
		{"a proof cut short", l.request(7, 20, l.signer, short), 422, ""},
		{"a proof with one hash more", l.request(7, 20, l.signer, long), 422, ""},
		{"what was appended", l.request(7, 20, l.signer), 200, ""},
		{"from before", l.request(7, 20, l.signer), 409, "20\n"},
	}
	for name, s := range map[string]*server{"litewitness": startLitewitness(t), "transparency-dev": startTheirs(t), "conclave": startOurs(t, l.key)} {
		if s.knows != nil {
			s.knows(l.origin, l.key)
		}
		for _, step := range steps {
			want := step.status
			switch {
			case name == "transparency-dev" && step.what == "a first checkpoint from a size":
				continue // it trusts the first checkpoint of a log whatever the old size is
			case name == "transparency-dev" && step.status == 403:
				want = 500 // it takes a note without a known signature for a fault
			}
			status, kind, answer := s.post(t, step.body)
			if status != want || status == 409 && (answer != step.answer || kind != "text/x.tlog.size") {
				t.Errorf("%s: %s: status %d and %q, want %d and %q", name, step.what, status, answer, want, step.answer)
			}
			if status == 200 && !strings.HasPrefix(answer, "— ") {
				t.Errorf("%s: %s: %q", name, step.what, answer)
			}
		}
		status, _, _ := s.post(t, stranger.request(0, 1, stranger.signer))
		if want := map[string]int{"litewitness": 403}[name]; status != want && status != 404 {
			t.Errorf("%s: a log that it does not know: status %d", name, status)
		}
	}
}

// recorder is a proxy that keeps the requests which a witness has accepted.
type recorder struct {
	mu       sync.Mutex
	accepted [][]byte
}

func (r *recorder) before(t *testing.T, s *server) string {
	t.Helper()
	target := must(url.Parse(s.url))
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target) }}
	proxy.ModifyResponse = func(res *http.Response) error {
		if res.StatusCode == http.StatusOK {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.accepted = append(r.accepted, res.Request.Context().Value(bodyOf{}).([]byte))
		}
		return nil
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		req.Body = io.NopCloser(bytes.NewReader(body))
		proxy.ServeHTTP(w, req.WithContext(context.WithValue(req.Context(), bodyOf{}, body)))
	}))
	t.Cleanup(front.Close)
	return front.URL
}

type bodyOf struct{}

func (r *recorder) list() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.accepted)
}

// TestWitnessesOfConclave: witnesses that others wrote cosign the checkpoints of a server, whose
// receipts then verify with a quorum of them. What the server has sent is refused once it is
// altered or sent again.
func TestWitnessesOfConclave(t *testing.T) {
	judges := map[string]*server{"litewitness": startLitewitness(t), "transparency-dev": startTheirs(t)}
	records := make(map[string]*recorder)
	type witness struct {
		URL  string   `json:"url"`
		Keys []string `json:"keys"`
	}
	var list []witness
	var flags []string
	for name, s := range judges {
		records[name] = new(recorder)
		list = append(list, witness{records[name].before(t, s), s.keys})
		flags = append(flags, "--witness", s.keys[0])
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "witnesses.json")
	if err := os.WriteFile(config, must(json.Marshal(map[string]any{"quorum": 2, "witnesses": list})), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	cmd := exec.Command(conclave, "dev", "--data", data, "--witnesses", config, "--publish-audit-log", "--aws-listen", ":0", "--grpc-listen", ":0", "--peer-listen", ":0", "--ops-listen", ":0")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	process(t, cmd)
	settings, err := try(t, []string{"XDG_RUNTIME_DIR=" + dir}, "env", "--wait", "30s", "--data", data)
	if err != nil {
		t.Fatal(settings)
	}
	var env []string
	for line := range strings.Lines(settings) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "export "); ok {
			name, value, _ := strings.Cut(rest, "=")
			env = append(env, name+"="+strings.Trim(value, `'"`))
		}
	}
	keys, err := try(t, env, "audit", "public-key")
	if err != nil {
		t.Fatal(keys)
	}
	key, _, _ := strings.Cut(keys, "\n")
	origin, _, _ := strings.Cut(key, "+")
	for _, s := range judges {
		s.knows(origin, key)
	}
	keyFile := filepath.Join(dir, "audit.pub")
	if err := os.WriteFile(keyFile, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	proof := filepath.Join(dir, "receipt")
	verify := append([]string{"audit", "verify-receipt", proof, "--key", keyFile}, flags...)
	eventually(t, "a receipt with two cosignatures", func() bool {
		if out, err := try(t, env, "audit", "receipt", "1", "--out", proof); err != nil {
			t.Log(out)
			return false
		}
		_, err := try(t, nil, verify...)
		return err == nil
	})
	for range 3 { // so that the tree grows in the eyes of the witnesses
		for name := range judges {
			before := len(records[name].list())
			if out, err := try(t, env, "key", "create"); err != nil {
				t.Fatal(out)
			}
			eventually(t, "another cosignature by "+name, func() bool { return len(records[name].list()) > before })
		}
	}
	// Their own libraries verify what is published.
	raw := must(os.ReadFile(proof))
	_, signed, _ := bytes.Cut(raw, []byte("\n\n"))
	lite := must(f_note.NewVerifierForCosignatureV1(judges["litewitness"].keys[0]))
	pq := must(f_note.NewMLDSAVerifier(judges["transparency-dev"].keys[0]))
	if n, err := note.Open(signed, note.VerifierList(lite, pq)); err != nil || len(n.Sigs) != 2 {
		t.Errorf("transparency-dev verifies %v of\n%s", err, signed)
	}
	// A cosignature that was altered does not verify, in theirs or in ours.
	at := bytes.LastIndex(raw, []byte("\n— ")) + 1
	sig := bytes.Split(bytes.TrimSpace(raw[at:]), []byte(" "))
	b := must(base64.StdEncoding.DecodeString(string(sig[2])))
	b[len(b)-1] ^= 1
	altered := append(bytes.Clone(raw[:at]), fmt.Sprintf("— %s %s\n", sig[1], base64.StdEncoding.EncodeToString(b))...)
	if err := os.WriteFile(proof, altered, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := try(t, nil, verify...); err == nil {
		t.Errorf("an altered cosignature verifies: %s", out)
	}
	_, signed, _ = bytes.Cut(altered, []byte("\n\n"))
	if n, err := note.Open(signed, note.VerifierList(lite, pq)); err == nil && len(n.Sigs) == 2 {
		t.Error("transparency-dev verifies an altered cosignature")
	}
	for name, s := range judges {
		refuses(t, name, s, records[name].list())
	}
}

// refuses sends requests that a witness has accepted again, and altered.
func refuses(t *testing.T, name string, s *server, accepted [][]byte) {
	t.Helper()
	last := accepted[len(accepted)-1]
	if status, _, _ := s.post(t, accepted[0]); status != 409 {
		t.Errorf("%s: the first checkpoint again: status %d", name, status)
	}
	_, checkpoint, _ := bytes.Cut(last, []byte("\n\n"))
	size := bytes.Split(checkpoint, []byte("\n"))[1]
	if status, _, _ := s.post(t, fmt.Appendf(nil, "old %s\n%s\n\n%s", size, base64.StdEncoding.EncodeToString(make([]byte, 32)), checkpoint)); status != 422 && name != "transparency-dev" {
		t.Errorf("%s: a proof where there is nothing to prove: status %d", name, status)
	}
	_, first, _ := bytes.Cut(accepted[0], []byte("\n\n"))
	if status, _, _ := s.post(t, fmt.Appendf(nil, "old %s\n\n%s", size, first)); status != 400 {
		t.Errorf("%s: the log rolled back: status %d", name, status)
	}
	// The checkpoint with another root, and the same signatures.
	lines := strings.SplitN(string(checkpoint), "\n", 4)
	lines[2] = base64.StdEncoding.EncodeToString(make([]byte, 32))
	if status, _, _ := s.post(t, fmt.Appendf(nil, "old %s\n\n%s", size, strings.Join(lines, "\n"))); status == 200 {
		t.Errorf("%s: cosigned a checkpoint that the log has not signed", name)
	}
}

// TestTesseraAsksConclave: a log of Tessera publishes checkpoints once Conclave's witness has
// cosigned them.
func TestTesseraAsksConclave(t *testing.T) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "log.example/tessera")
	if err != nil {
		t.Fatal(err)
	}
	ours := startOurs(t, vkey)
	witness, err := tessera.NewWitness(ours.keys[0], must(url.Parse(ours.url)))
	if err != nil {
		t.Fatal(err)
	}
	group := tessera.NewWitnessGroup(1, witness)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	opts := tessera.NewAppendOptions().WithCheckpointSigner(must(note.NewSigner(skey))).WithBatching(4, 50*time.Millisecond).
		WithCheckpointInterval(100*time.Millisecond).WithWitnesses(group, &tessera.WitnessOptions{Timeout: 10 * time.Second})
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		t.Fatal(err)
	}
	await := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 50*time.Millisecond)
	var last []byte
	for i := range 6 {
		if _, last, err = await.Await(ctx, appender.Add(ctx, tessera.NewEntry(fmt.Appendf(nil, "entry %d", i)))); err != nil {
			t.Fatal(err)
		}
	}
	if err := shutdown(ctx); err != nil {
		t.Error(err)
	}
	if !group.Satisfied(last) {
		t.Errorf("Tessera does not find the cosignature in\n%s", last)
	}
	if _, err := note.Open(last, note.VerifierList(must(f_note.NewVerifierForCosignatureV1(ours.keys[0])))); err != nil {
		t.Errorf("transparency-dev does not verify the cosignature: %v", err)
	}
}

// TestClientAsksConclave: the client of transparency-dev gets cosignatures of both kinds, is told
// the size that the witness knows, and is refused a fork.
func TestClientAsksConclave(t *testing.T) {
	l := newLog(t, "log.example/client")
	l.add("a", "b", "c", "d", "e")
	ours := startOurs(t, l.key)
	c := client.NewWitness(must(url.Parse(ours.url)), http.DefaultClient)
	ask := func(l *testLog, old, size int64) ([]byte, []byte, uint64, error) {
		_, msg, _ := bytes.Cut(l.request(old, size, l.signer), []byte("\n\n"))
		var proof [][]byte
		if old > 0 {
			for _, h := range must(tlog.ProveTree(size, old, l)) {
				proof = append(proof, h[:])
			}
		}
		sigs, known, err := c.Update(t.Context(), uint64(old), msg, proof)
		return msg, sigs, known, err
	}
	for _, step := range [][2]int64{{0, 3}, {3, 5}} {
		msg, sigs, _, err := ask(l, step[0], step[1])
		if err != nil {
			t.Fatal(err)
		}
		classic, pq := must(f_note.NewVerifierForCosignatureV1(ours.keys[0])), must(f_note.NewMLDSAVerifier(ours.keys[1]))
		n, err := note.Open(append(msg, sigs...), note.VerifierList(classic, pq))
		if err != nil || len(n.Sigs) != 2 {
			t.Fatalf("%d cosignatures verify (%v):\n%s", len(n.Sigs), err, sigs)
		}
		for _, s := range n.Sigs {
			if at, err := f_note.CoSigV1Timestamp(s); err != nil || time.Since(at).Abs() > time.Minute {
				t.Errorf("cosigned at %v (%v)", at, err)
			}
		}
	}
	if _, _, known, err := ask(l, 3, 5); !errors.Is(err, theirs.ErrCheckpointStale) || known != 5 {
		t.Errorf("from an old size: the witness knows %d (%v)", known, err)
	}
	fork := l.fork(2)
	fork.add("x", "y", "z", "z")
	if _, _, _, err := ask(fork, 5, 6); !errors.Is(err, theirs.ErrInvalidProof) {
		t.Errorf("a fork: %v", err)
	}
	res, err := http.Get(ours.url + fmt.Sprintf("/%x/checkpoint", sha256.Sum256([]byte(l.origin))))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	newest := must(io.ReadAll(res.Body))
	if n, err := note.Open(newest, note.VerifierList(must(note.NewVerifier(l.key)), must(f_note.NewVerifierForCosignatureV1(ours.keys[0])))); err != nil || len(n.Sigs) != 2 || !strings.HasPrefix(n.Text, l.origin+"\n5\n") {
		t.Errorf("the witness shows %v\n%s", err, newest)
	}
}
