package auditwitness

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/witness"
	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

const origin = "conclave/00112233445566778899aabbccddeeff/0"

var (
	logKey  = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	logVKey = checkpoint.VerifierKey(origin, logKey.Public().(ed25519.PublicKey))
)

// testLog is a log on disk that signs its own checkpoints.
type testLog struct {
	*auditlog.Log
	t    *testing.T
	tree auditlog.Frontier
	what string // the content of its records
}

func newLog(t *testing.T, what string) *testLog {
	t.Helper()
	l, err := auditlog.Open(t.TempDir(), auditlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := l.Restore(auditlog.Frontier{}, nil); err != nil {
		t.Fatal(err)
	}
	return &testLog{Log: l, t: t, what: what}
}

// add appends records, and signs a checkpoint.
func (l *testLog) add(n int) {
	l.t.Helper()
	for range n {
		i := l.Size()
		e := auditlog.Entry{Index: i, RaftIndex: 10 + i, Time: int64(i), RequestID: [16]byte{1, byte(i), byte(i >> 8)}, Body: fmt.Appendf(nil, "%s %d", l.what, i)}
		leaf := e.LeafHash()
		if err := l.Append([]auditlog.Entry{e}, []auditlog.Hash{leaf}); err != nil {
			l.t.Fatal(err)
		}
		l.tree.Append(leaf)
	}
	err := l.Sync()
	if err == nil {
		var msg []byte
		if msg, err = checkpoint.Sign(origin, logKey, nil, l.Size(), l.tree.Root()); err == nil {
			err = l.WriteCheckpoint(msg)
		}
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

type memory struct{ state []byte }

func (m *memory) Load() ([]byte, error) { return m.state, nil }
func (m *memory) Save(b []byte) error   { m.state = b; return nil }

// server is a witness, and what is in front of it.
type server struct {
	conf   Witness
	before atomic.Pointer[http.HandlerFunc] // answers instead of the witness if it is there
}

func startWitness(t *testing.T, name string, seed byte) *server {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	signer, err := checkpoint.NewEd25519Cosigner(name, key, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	w, err := witness.New(witness.Config{
		Signers: []*checkpoint.Cosigner{signer}, Logs: []string{logVKey}, Store: &memory{witness.EmptyState()}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := new(server)
	h := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if before := s.before.Load(); before != nil {
			(*before)(rw, r)
			return
		}
		http.StripPrefix("/prefix", w).ServeHTTP(rw, r)
	}))
	t.Cleanup(func() { h.CloseClientConnections(); h.Close() })
	s.conf = Witness{URL: h.URL + "/prefix/", Keys: []string{checkpoint.Ed25519CosignatureKey(name, key.Public().(ed25519.PublicKey))}}
	return s
}

// service returns a Service whose Lead a test calls in steps.
func service(t *testing.T, log Log, quorum int, servers ...*server) *Service {
	t.Helper()
	conf := &Configuration{Quorum: quorum}
	for _, s := range servers {
		conf.Witnesses = append(conf.Witnesses, s.conf)
	}
	s, err := New(Config{
		Configuration: conf, Log: log, LogKey: func() string { return logVKey }, Leads: func() bool { return true }, Logger: slog.New(slog.DiscardHandler),
		AskLeader: func(context.Context) ([]byte, error) { return nil, errors.New("there is no leader") },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// step asks for cosignatures of the log's newest checkpoint, as Lead does.
func step(t *testing.T, s *Service) {
	t.Helper()
	clear(s.retry)
	s.begin()
	s.ask(t.Context())
	s.await(t.Context())
}

// size returns the size of a checkpoint, and how many of the service's witnesses have cosigned it.
func size(t *testing.T, s *Service, msg []byte) (uint64, int) {
	t.Helper()
	if msg == nil {
		return 0, 0
	}
	c, err := checkpoint.Parse(msg, logVKey)
	if err != nil {
		t.Fatal(err)
	}
	names, err := s.quorum.Check(msg)
	if err != nil && !errors.Is(err, checkpoint.ErrNotCosigned) {
		t.Fatal(err)
	}
	return c.Size, len(names)
}

// TestCosigned: what a quorum has cosigned is published, also after the leader has changed, and
// a witness that is away does not hold up the others.
func TestCosigned(t *testing.T) {
	log := newLog(t, "record")
	one, two, three := startWitness(t, "one.example", 11), startWitness(t, "two.example", 12), startWitness(t, "three.example", 13)
	want := func(s *Service, wantSize uint64, count int) {
		t.Helper()
		if n, by := size(t, s, s.Newest()); n != wantSize || by != count {
			t.Errorf("%d records are cosigned by %d witnesses, want %d by %d", n, by, wantSize, count)
		}
	}
	a, b := service(t, log, 2, one, two, three), service(t, log, 2, one, two, three)
	want(a, 0, 0)
	log.add(5)
	step(t, a)
	want(a, 5, 3)
	log.add(300)
	step(t, b) // the next leader is told what the witnesses know
	want(b, 305, 3)
	log.add(1)
	step(t, a) // and so is this one again
	want(a, 306, 3)

	down := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	three.before.Store(&down)
	log.add(1)
	step(t, a)
	want(a, 307, 2)
	two.before.Store(&down)
	log.add(1)
	step(t, a)
	want(a, 307, 2) // one is too few
	if n, by := size(t, a, a.Published()); n != 307 || by != 2 {
		t.Errorf("%d records by %d witnesses are published", n, by)
	}
	a.behind = time.Now().Add(-2 * patience)
	if n, by := size(t, a, a.Published()); n != 308 || by != 0 {
		t.Errorf("after long, %d records by %d witnesses are published", n, by)
	}
	two.before.Store(nil)
	three.before.Store(nil)
	step(t, a)
	want(a, 308, 3)
	if n, by := size(t, a, a.Published()); n != 308 || by != 3 {
		t.Errorf("%d records by %d witnesses are published", n, by)
	}
	if f := a.status[2].failures; f[unreachable] != 2 || len(f) != 1 {
		t.Errorf("the failures are %v", f)
	}
}

// TestAnotherHistory: a witness that knows another log than this one is told apart from one that
// is down.
func TestAnotherHistory(t *testing.T) {
	w := startWitness(t, "one.example", 11)
	longer := newLog(t, "record")
	longer.add(9)
	step(t, service(t, longer, 1, w))
	for name, n := range map[string]int{"rolled back": 5, "of the same size": 9, "forked": 20} {
		log := newLog(t, "another")
		log.add(n)
		s := service(t, log, 1, w)
		step(t, s)
		if s.Newest() != nil || s.status[0].failures[conflict] != 1 {
			t.Errorf("%s: %q, failures %v", name, s.Newest(), s.status[0].failures)
		}
	}
}

// TestHostileWitness: nothing that a witness answers is published, remembered or read without a
// bound, unless it is its cosignature.
func TestHostileWitness(t *testing.T) {
	log := newLog(t, "record")
	log.add(5)
	good := startWitness(t, "good.example", 11)
	other := startWitness(t, "other.example", 12)
	s := service(t, log, 1, other)
	step(t, s)
	line := strings.TrimPrefix(string(s.Newest()), string(log.Checkpoint())) // a cosignature by another witness
	own := service(t, log, 1, good)
	step(t, own)
	ownLine := strings.TrimPrefix(string(own.Newest()), string(log.Checkpoint()))

	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t.Error("a redirect was followed")
		_, _ = io.WriteString(w, ownLine)
	}))
	defer elsewhere.Close()
	say := func(status int, kind, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if kind != "" {
				w.Header().Set("Content-Type", kind)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, text)
		}
	}
	sizes := 0
	for name, c := range map[string]struct {
		h      http.HandlerFunc
		reason string
	}{
		"nothing":                {say(200, "", ""), invalid},
		"by another":             {say(200, "", line), invalid},
		"another text":           {say(200, "", "— x AAAA\n\n"+ownLine), invalid},
		"without an end":         {say(200, "", strings.TrimSuffix(ownLine, "\n")), invalid},
		"altered":                {say(200, "", ownLine[:len(ownLine)-9]+"AAAAAAA=\n"), invalid},
		"base64 of another form": {say(200, "", ownLine[:len(ownLine)-4]+string(ownLine[len(ownLine)-4]+1)+"==\n"), invalid},
		"too long":               {say(200, "", strings.Repeat(ownLine, 1000)), invalid},
		"endless":                {func(w http.ResponseWriter, _ *http.Request) { endless(w) }, invalid},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, refused},
		"unknown log":          {say(404, "", ""), refused},
		"no key":               {say(403, "", ""), refused},
		"a proof":              {say(422, "", ""), conflict},
		"a huge size":          {say(409, witness.SizeType, "9223372036854775807\n"), conflict},
		"no size":              {say(409, witness.SizeType, "18446744073709551616\n"), invalid},
		"the size of before":   {say(409, witness.SizeType, "0\n"), invalid},
		"a conflict of no use": {say(409, "", "5\n"), conflict},
		"always another size": {func(w http.ResponseWriter, r *http.Request) {
			sizes++
			say(409, witness.SizeType, fmt.Sprintf("%d\n", 1+sizes%4))(w, r)
		}, invalid},
		"busy": {say(429, "", ""), unreachable},
	} {
		good.before.Store(&c.h)
		s := service(t, log, 1, good)
		began := time.Now()
		step(t, s)
		if s.Newest() != nil || s.status[0].failures[c.reason] != 1 {
			t.Errorf("%s: %q, failures %v, want one: %s", name, s.Newest(), s.status[0].failures, c.reason)
		}
		if took := time.Since(began); took > askTimeout+10*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
		// What it said is forgotten once it answers as it should.
		good.before.Store(nil)
		if step(t, s); s.Newest() == nil {
			t.Errorf("%s: no cosignature afterwards: %v", name, s.status[0].failures)
		}
	}
}

func endless(w http.ResponseWriter) {
	for {
		if _, err := w.Write(make([]byte, 32<<10)); err != nil {
			return
		}
	}
}

// TestFuture: a cosignature from the future, or without a time, is not one.
func TestFuture(t *testing.T) {
	log := newLog(t, "record")
	log.add(5)
	w := startWitness(t, "one.example", 11)
	for name, now := range map[string]func() time.Time{"future": func() time.Time { return time.Now().Add(time.Hour) }, "none": nil} {
		signer, err := checkpoint.NewEd25519Cosigner("one.example", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{11}, 32)), now)
		if err != nil {
			t.Fatal(err)
		}
		h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			_, msg, _ := bytes.Cut(body, []byte("\n\n"))
			v, _ := note.NewVerifier(logVKey)
			n, err := note.Open(msg, note.VerifierList(v))
			if err != nil {
				t.Error(err)
				return
			}
			signed, err := note.Sign(&note.Note{Text: n.Text}, signer)
			if err != nil {
				t.Error(err)
			}
			_, sigs, _ := bytes.Cut(signed, []byte("\n\n"))
			_, _ = rw.Write(sigs)
		})
		w.before.Store(&h)
		s := service(t, log, 1, w)
		if step(t, s); s.Newest() != nil || s.status[0].failures[invalid] != 1 {
			t.Errorf("%s: %q, failures %v", name, s.Newest(), s.status[0].failures)
		}
	}
}

// TestFollow: a node that does not lead takes from the leader only what is cosigned and of its
// own log.
func TestFollow(t *testing.T) {
	log := newLog(t, "record")
	w := startWitness(t, "one.example", 11)
	log.add(5)
	leader := service(t, log, 1, w)
	step(t, leader)
	cosigned := leader.Newest()
	plain := log.Checkpoint()
	log.add(5)

	foreign := newLog(t, "another")
	foreign.add(5)
	second := startWitness(t, "one.example", 11) // the same key, for a test's fork
	liar := service(t, foreign, 1, second)
	step(t, liar)

	own, err := checkpoint.Decode(log.Checkpoint())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		msg  []byte
		want bool
	}{"cosigned": {cosigned, true}, "without cosignatures": {plain, false}, "of another log": {liar.Newest(), false}, "none": {nil, false}, "no checkpoint": {[]byte("x"), false}} {
		s := service(t, log, 1, w)
		s.cfg.AskLeader = func(context.Context) ([]byte, error) { return c.msg, nil }
		err := s.follow(t.Context(), own)
		if (s.Newest() != nil) != c.want {
			t.Errorf("%s: %q (%v)", name, s.Newest(), err)
		}
	}
}

// TestConfiguration: what is wrong with a configuration is refused when it is read.
func TestConfiguration(t *testing.T) {
	a, b := startWitness(t, "a.example", 1).conf, startWitness(t, "b.example", 2).conf
	sameKey := startWitness(t, "c.example", 1).conf
	load := func(v any) (*Configuration, error) {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "witnesses.json")
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(name)
	}
	c, err := load(Configuration{Witnesses: []Witness{a, b}})
	if err != nil || c.Quorum != 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	for name, bad := range map[string]any{
		"none":                Configuration{},
		"too large a quorum":  Configuration{Quorum: 3, Witnesses: []Witness{a, b}},
		"a negative quorum":   Configuration{Quorum: -1, Witnesses: []Witness{a, b}},
		"twice":               Configuration{Witnesses: []Witness{a, a}},
		"one key, two names":  Configuration{Witnesses: []Witness{a, sameKey}},
		"without a key":       Configuration{Witnesses: []Witness{{URL: a.URL}}},
		"a log's key":         Configuration{Witnesses: []Witness{{URL: a.URL, Keys: []string{logVKey}}}},
		"no URL":              Configuration{Witnesses: []Witness{{URL: "ftp://x", Keys: a.Keys}}},
		"a URL with a query":  Configuration{Witnesses: []Witness{{URL: "https://x/?y", Keys: a.Keys}}},
		"an unknown member":   map[string]any{"witnesses": []Witness{a}, "quroum": 1},
		"keys of two of them": Configuration{Witnesses: []Witness{{URL: a.URL, Keys: append(append([]string{}, a.Keys...), b.Keys...)}}},
	} {
		if _, err := load(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestOpenedOnce: a Service uses what Load has read, and nothing that is there later.
func TestOpenedOnce(t *testing.T) {
	h := httptest.NewTLSServer(http.NotFoundHandler())
	defer h.Close()
	dir := t.TempDir()
	ca, name := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "witnesses.json")
	conf := startWitness(t, "one.example", 11).conf
	conf.URL, conf.TLS = h.URL, &outbound.TLS{CA: ca}
	raw, err := json.Marshal(Configuration{Witnesses: []Witness{conf}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw}), name: raw} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	if s, err := New(Config{Configuration: c}); err != nil || !s.Enabled() {
		t.Errorf("the certificates were read again: %v", err)
	}
}

// TestLead: a new checkpoint is cosigned without being asked for, and the work ends with its
// context although a witness hangs.
func TestLead(t *testing.T) {
	log := newLog(t, "record")
	w := startWitness(t, "one.example", 11)
	s := service(t, log, 1, w)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Lead(ctx) }()
	log.add(3)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if n, _ := size(t, s, s.Newest()); n == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no cosignature")
		}
	}
	asked := make(chan struct{}, 16)
	hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
		asked <- struct{}{}
		<-r.Context().Done()
	})
	w.before.Store(&hang)
	log.add(1)
	<-asked
	began := time.Now()
	cancel()
	<-done
	if took := time.Since(began); took > askTimeout-time.Second {
		t.Errorf("it ended after %v", took)
	}
}

// TestSlowWitness: a witness that takes long does not hold up the others, nor the end of the work.
func TestSlowWitness(t *testing.T) {
	log := newLog(t, "record")
	one, two, three := startWitness(t, "one.example", 11), startWitness(t, "two.example", 12), startWitness(t, "three.example", 13)
	asked, gone := make(chan struct{}, 1), make(chan struct{})
	hold := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
		asked <- struct{}{}
		<-r.Context().Done()
		close(gone)
	})
	three.before.Store(&hold)
	s := service(t, log, 2, one, two, three)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Lead(ctx) }()
	for i := range uint64(3) {
		log.add(1)
		if i == 0 {
			<-asked
		}
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if n, _ := size(t, s, s.Newest()); n == i+1 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("no cosignature")
			}
		}
	}
	select {
	case <-gone:
		t.Error("the others were asked only after the slow witness had failed")
	default:
	}
	cancel()
	<-done
	<-gone
}

// TestLateAnswer: what a witness answers after others were asked for a newer checkpoint counts
// for the older one. While a quorum depends on such a witness, there is no newer one.
func TestLateAnswer(t *testing.T) {
	log := newLog(t, "record")
	one, two := startWitness(t, "one.example", 11), startWitness(t, "two.example", 12)
	for _, quorum := range []int{1, 2} {
		s := service(t, log, quorum, one, two)
		log.add(1)
		first := log.Size()
		s.begin()
		s.ask(t.Context())
		held := <-s.answers
		other := <-s.answers
		s.take(t.Context(), other) // the one that is held is of a witness that is still busy
		log.add(1)
		if begun := s.begin(); begun != (quorum == 1) {
			t.Fatalf("with a quorum of %d, the next checkpoint was begun: %v", quorum, begun)
		}
		s.ask(t.Context())
		s.take(t.Context(), held)
		if n, by := size(t, s, s.Newest()); n != first || by != 2 {
			t.Errorf("%d records are cosigned by %d witnesses, want %d by 2", n, by, first)
		}
		if behind := !s.status[held.i].since.IsZero(); behind != (quorum == 1) {
			t.Errorf("with a quorum of %d, the witness owes a cosignature: %v", quorum, behind)
		}
		s.await(t.Context())
		step(t, s)
		if n, by := size(t, s, s.Newest()); n != first+1 || by != 2 {
			t.Errorf("then, %d records are cosigned by %d witnesses, want %d by 2", n, by, first+1)
		}
	}
}
