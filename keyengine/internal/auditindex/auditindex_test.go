package auditindex

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// began is the cluster time of record 0; there is one record each second.
var began = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// testBlock is how many records a block has in these tests, so that a log of several blocks is
// short. TestScale has blocks of the real size.
const testBlock = 1024

// fixture is a log with a vault that opens it and an index of it.
type fixture struct {
	t       *testing.T
	cluster *fsmpb.Cluster
	unseal  []byte
	vault   *vault.Vault
	log     *auditlog.Log
	logDir  string
	path    string
	index   *Index
	block   uint64 // records in a block of the index
	grow    atomic.Bool
	stop    func()
	said    said
}

// said is what an index logged.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) contains(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text.String(), text)
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, block: testBlock, path: filepath.Join(t.TempDir(), "index")}
	f.grow.Store(true)
	var err error
	if f.vault, err = vault.New(time.Now, false); err != nil {
		t.Fatal(err)
	}
	f.cluster = &fsmpb.Cluster{Id: bytes.Repeat([]byte{7}, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: bytes.Repeat([]byte{8}, 16), Epoch: 1}}
	o, unseal, err := f.vault.Initialise(f.cluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := unseal.With(func(b []byte) error { f.unseal = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	unseal.Destroy()
	f.vault.Install(o)
	f.newLog()
	t.Cleanup(func() {
		if f.stop != nil {
			f.stop()
		}
		if err := f.log.Close(); err != nil {
			t.Error(err)
		}
		if err := f.vault.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// newLog replaces the log by an empty one.
func (f *fixture) newLog() {
	f.t.Helper()
	if f.log != nil {
		if err := f.log.Close(); err != nil {
			f.t.Fatal(err)
		}
	}
	f.logDir = f.t.TempDir()
	var err error
	if f.log, err = auditlog.Open(f.logDir, auditlog.Options{}); err != nil {
		f.t.Fatal(err)
	}
	if err := f.log.Restore(auditlog.Frontier{}, nil); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) unsealAgain() {
	f.t.Helper()
	key, err := f.vault.Arena().Store(bytes.Clone(f.unseal))
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.vault.Open(f.cluster, key); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) newIndex() *Index {
	x := New(Config{
		Path: f.path, Log: f.log, Feed: &auditfeed.Feed{Log: f.log, Vault: f.vault}, Vault: f.vault,
		MayGrow: f.grow.Load, Eager: true, Logger: slog.New(slog.NewTextHandler(&f.said, nil)),
	})
	x.block = f.block
	return x
}

// start runs an index until stop is called.
func (f *fixture) start() {
	f.t.Helper()
	f.index = f.newIndex()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); f.index.Run(ctx) }()
	f.stop = func() { cancel(); <-ended; f.stop = nil }
}

// indexed waits until the index has the whole log.
func (f *fixture) indexed() {
	f.t.Helper()
	if got := f.index.Wait(f.t.Context(), f.log.Size(), 30*time.Second); got != f.log.Size() {
		f.t.Fatalf("%d records of %d are indexed", got, f.log.Size())
	}
}

// add appends records, and returns what was appended.
func (f *fixture) add(records ...*auditpb.Record) {
	f.t.Helper()
	o, err := f.vault.Current()
	if err != nil {
		f.t.Fatal(err)
	}
	first := f.log.Size()
	entries, leaves := make([]auditlog.Entry, len(records)), make([]auditlog.Hash, len(records))
	for i, rec := range records {
		at := first + uint64(i)
		e := auditlog.Entry{Index: at, RaftIndex: at + 1, Time: began.Add(time.Duration(at) * time.Second).UnixNano(), RequestID: requestID(at)}
		rec.Schema, rec.Salt, rec.RequestId = auditlog.RecordSchema, make([]byte, 16), e.RequestID[:]
		plain, err := auditlog.EncodeRecord(rec)
		if err != nil {
			f.t.Fatal(err)
		}
		if e.Body, e.Generation, e.Salt, e.Commitment, err = o.SealBody(time.Now(), e.RequestID, plain); err != nil {
			f.t.Fatal(err)
		}
		entries[i], leaves[i] = e, e.LeafHash()
	}
	if err := f.log.Append(entries, leaves); err != nil {
		f.t.Fatal(err)
	}
}

func requestID(at uint64) (id [16]byte) {
	id[0], id[14], id[15], id[13] = 0xaa, byte(at>>8), byte(at), byte(at>>16)
	return id
}

// rec is record at of a log in which values repeat at known distances.
func rec(at int) *auditpb.Record {
	rec := &auditpb.Record{
		EventName: []string{"Encrypt", "Decrypt", "CreateKey"}[at%3], EventType: "AwsApiCall", EventSource: "kms.amazonaws.com",
		SourceIp: fmt.Sprintf("192.0.2.%d", at%200), ReadOnly: at%2 == 0, RecipientAccountId: "111122223333",
		Identity: &auditpb.Identity{
			Type: "IAMUser", PrincipalId: fmt.Sprintf("AIDA%d", at%1000), Arn: fmt.Sprintf("arn:aws:iam::111122223333:user/u%d", at%1000),
			AccountId: "111122223333", UserName: fmt.Sprintf("u%d", at%1000), AccessKeyId: fmt.Sprintf("AKIA%d", at%1000),
		},
		Resources: []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: "111122223333", Arn: fmt.Sprintf("arn:aws:kms:eu-west-1:111122223333:key/k%d", at%700)}},
	}
	if at%500 == 7 {
		rec.ErrorCode = "AccessDeniedException"
	}
	return rec
}

func records(from, to int) (list []*auditpb.Record) {
	for at := from; at < to; at++ {
		list = append(list, rec(at))
	}
	return list
}

// find returns the indices of all records that a query finds, by pages of some size.
func (f *fixture) find(q Query, limit int) (found []int) {
	f.t.Helper()
	pos := Start(&q, f.log.Size())
	for range 1_000_000 {
		r, err := f.index.Search(f.t.Context(), &q, pos, limit)
		if err != nil {
			f.t.Fatal(err)
		}
		if len(r.Items) > limit {
			f.t.Fatalf("%d records in a page of %d", len(r.Items), limit)
		}
		for _, it := range r.Items {
			found = append(found, int(it.Entry.Index))
		}
		if r.Next == nil {
			return found
		}
		pos = *r.Next
	}
	f.t.Fatal("a search without end")
	return nil
}

func where(pairs ...string) (list []Condition) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, Condition{Field(pairs[i]), pairs[i+1]})
	}
	return list
}

// every is the indices below n for which keep holds.
func every(n int, keep func(at int) bool) (list []int) {
	for at := range n {
		if keep(at) {
			list = append(list, at)
		}
	}
	return list
}

func TestSearch(t *testing.T) {
	f := newFixture(t)
	const n = 2*testBlock + 300
	for at := 0; at < n; at += 1000 {
		f.add(records(at, min(at+1000, n))...)
	}
	f.start()
	f.indexed()
	role := &auditpb.Identity{
		Type: "AssumedRole", PrincipalId: "AROA1:job-7", Arn: "arn:aws:sts::444455556666:assumed-role/R/job-7", AccountId: "444455556666",
		SessionContext: []*auditpb.Field{{Name: "sessionIssuer", Value: &auditpb.Field_Map{Map: &auditpb.TextMap{Pairs: []*auditpb.TextPair{
			{Key: "arn", Value: "arn:aws:iam::444455556666:role/path/R"}, {Key: "type", Value: "Role"}, {Key: "userName", Value: "R"},
		}}}}},
	}
	f.add(
		&auditpb.Record{EventName: "Sign", EventSource: "kms.amazonaws.com", Identity: role, ErrorCode: "NotFoundException", RequestParameters: []*auditpb.Field{
			{Name: "keyId", Value: &auditpb.Field_Text{Text: "alias/gone"}},
		}},
		&auditpb.Record{EventName: "Seal", EventSource: "conclave", Identity: &auditpb.Identity{Type: "Root", Arn: "arn:aws:iam::111122223333:root", AccountId: "111122223333"}},
	)
	f.indexed()
	last := rec(n - 1)
	id := auditlog.EventID(hash(t, f, 5))
	everywhere := n + 2
	for name, tt := range map[string]struct {
		q    Query
		want []int // in ascending order
	}{
		"a principal":           {Query{Where: where("principal", "arn:aws:iam::111122223333:user/u17")}, every(n, func(at int) bool { return at%1000 == 17 })},
		"its name":              {Query{Where: where("principal", "u17")}, every(n, func(at int) bool { return at%1000 == 17 })},
		"username":              {Query{Where: where("username", "u17")}, every(n, func(at int) bool { return at%1000 == 17 })},
		"username is no key id": {Query{Where: where("username", "AKIA17")}, nil},
		"access key":            {Query{Where: where("access-key", "AKIA17", "outcome", "Success")}, every(n, func(at int) bool { return at%1000 == 17 })},
		"a key":                 {Query{Where: where("key", "k3", "operation", "Decrypt")}, every(n, func(at int) bool { return at%700 == 3 && at%3 == 1 })},
		"a key's ARN":           {Query{Where: where("resource", "arn:aws:kms:eu-west-1:111122223333:key/k3")}, every(n, func(at int) bool { return at%700 == 3 })},
		"what was asked for":    {Query{Where: where("key", "alias/gone")}, []int{n}},
		"not a resource":        {Query{Where: where("resource", "alias/gone")}, nil},
		"resource type":         {Query{Where: where("resource-type", "AWS::KMS::Key", "source", "192.0.2.199")}, every(n, func(at int) bool { return at%200 == 199 })},
		"refused":               {Query{Where: where("outcome", "AccessDeniedException")}, every(n, func(at int) bool { return at%500 == 7 })},
		"request id":            {Query{Where: where("request-id", "aa000000-0000-0000-0000-000000000401")}, []int{testBlock + 1}},
		"event id":              {Query{Where: where("event-id", record.UUID(id))}, []int{5}},
		"event source":          {Query{Where: where("event-source", "conclave")}, []int{n + 1}},
		"account":               {Query{Where: where("account", "444455556666")}, []int{n}},
		"role":                  {Query{Where: where("principal", "arn:aws:iam::444455556666:role/path/R")}, []int{n}},
		"session name":          {Query{Where: where("username", "job-7")}, []int{n}},
		"root":                  {Query{Where: where("username", "root")}, []int{n + 1}},
		"read-only":             {Query{Where: where("read-only", "true", "principal", last.Identity.Arn)}, every(n, func(at int) bool { return at%1000 == (n-1)%1000 && at%2 == 0 })},
		"nothing":               {Query{Where: where("principal", "nobody")}, nil},
		"no such pair":          {Query{Where: where("principal", "u17", "key", "alias/gone")}, nil},
		"everything":            {Query{}, every(everywhere, func(int) bool { return true })},
		"a time":                {Query{From: began.Add((testBlock - 4) * time.Second), To: began.Add((testBlock + 6) * time.Second)}, every(n, func(at int) bool { return at >= testBlock-4 && at < testBlock+6 })},
		"no time":               {Query{From: began.Add((testBlock - 4) * time.Second), To: began.Add((testBlock - 4) * time.Second)}, nil},
		"before all":            {Query{To: began}, nil},
		"after all":             {Query{From: began.Add(time.Hour * 1000)}, nil},
		"from":                  {Query{From: began.Add((n - 1) * time.Second)}, []int{n - 1, n, n + 1}},
		"an operation in time":  {Query{From: began.Add(100 * time.Second), To: began.Add(109 * time.Second), Where: where("operation", "Encrypt")}, []int{102, 105, 108}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, limit := range []int{1000, 7} {
				if limit == 7 && len(tt.want) > 1000 {
					continue
				}
				q := tt.q
				q.OldestFirst = true
				if got := f.find(q, limit); !slices.Equal(got, tt.want) {
					t.Errorf("oldest first, pages of %d: got %d records %v, want %d", limit, len(got), head(got), len(tt.want))
				}
				q.OldestFirst = false
				got := f.find(q, limit)
				slices.Reverse(got)
				if !slices.Equal(got, tt.want) {
					t.Errorf("newest first, pages of %d: got %d records %v, want %d", limit, len(got), head(got), len(tt.want))
				}
			}
		})
	}
}

func head(list []int) []int { return list[:min(len(list), 20)] }

func hash(t *testing.T, f *fixture, at uint64) auditlog.Hash {
	t.Helper()
	entries, err := f.log.Read(at, 1, 1)
	if err != nil || len(entries) != 1 {
		t.Fatal(err)
	}
	return entries[0].LeafHash()
}

// TestStablePages: records that are added between two pages change no page.
func TestStablePages(t *testing.T) {
	f := newFixture(t)
	f.add(records(0, 100)...)
	f.start()
	f.indexed()
	for _, oldest := range []bool{false, true} {
		q := Query{Where: where("operation", "Encrypt"), OldestFirst: oldest}
		bound := int(f.log.Size())
		pos := Start(&q, f.log.Size())
		var got []int
		for {
			r, err := f.index.Search(t.Context(), &q, pos, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range r.Items {
				got = append(got, int(it.Entry.Index))
			}
			if r.Next == nil {
				break
			}
			pos = *r.Next
			f.add(rec(0), rec(1))
			f.indexed()
		}
		if !oldest {
			slices.Reverse(got)
		}
		want := f.find(Query{Where: q.Where, OldestFirst: true}, 1000)
		want = slices.DeleteFunc(want, func(at int) bool { return at >= bound })
		if !slices.Equal(got, want) {
			t.Errorf("oldest first %v: got %v, want %v", oldest, got, want)
		}
	}
}

// TestRestart: a new process goes on with the file.
func TestRestart(t *testing.T) {
	f := newFixture(t)
	f.add(records(0, testBlock+10)...)
	f.start()
	f.indexed()
	want := f.find(Query{Where: where("principal", "u3")}, 1000)
	f.stop()
	before, err := os.Stat(f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.start()
	f.indexed()
	if after, err := os.Stat(f.path); err != nil || !os.SameFile(before, after) || f.index.blocks != 1 {
		t.Errorf("the file was made again: %v", err)
	}
	f.add(records(testBlock+10, testBlock+1010)...)
	f.indexed()
	if got := f.find(Query{Where: where("principal", "u3")}, 1000); len(got) != len(want)+1 {
		t.Errorf("got %d records, want %d and one more", len(got), len(want))
	}
}

// TestSealed: the index is gone while the node is sealed, and is back later.
func TestSealed(t *testing.T) {
	f := newFixture(t)
	f.add(records(0, 100)...)
	f.start()
	f.indexed()
	f.vault.Seal()
	q := Query{Where: where("operation", "Encrypt")}
	waitFor(t, func() bool { return f.index.Indexed() == 0 })
	if _, err := f.index.Search(t.Context(), &q, Start(&q, 100), 10); err != vault.ErrSealed {
		t.Errorf("got %v, want %v", err, vault.ErrSealed)
	}
	f.unsealAgain()
	f.indexed()
	if got := f.find(q, 1000); len(got) != 34 {
		t.Errorf("got %d records", len(got))
	}
}

// TestReplaced: the file of another log, a damaged one, and one of another cluster are made
// again.
func TestReplaced(t *testing.T) {
	for name, replace := range map[string]func(f *fixture){
		"another log": func(f *fixture) {
			f.newLog()
			f.add(records(1, testBlock+101)...)
		},
		"damaged": func(f *fixture) {
			b, err := os.ReadFile(f.path)
			if err != nil {
				f.t.Fatal(err)
			}
			seed := uint64(time.Now().UnixNano())
			f.t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 1))
			for i := 8 * os.Getpagesize(); i < len(b); i += 64 {
				b[i+rnd.IntN(64)] ^= 1 << rnd.IntN(8)
			}
			if err := os.WriteFile(f.path, b, 0o600); err != nil {
				f.t.Fatal(err)
			}
		},
		"gone": func(f *fixture) {
			if err := os.Remove(f.path); err != nil {
				f.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.add(records(0, testBlock+100)...)
			f.start()
			f.indexed()
			f.stop()
			replace(f)
			f.start()
			q := Query{Where: where("key", "k5"), OldestFirst: true}
			waitFor(t, func() bool {
				// The search may be what notices the damage.
				_, err := f.index.Search(t.Context(), &q, Start(&q, f.index.Indexed()), 1000)
				return err == nil && f.index.Indexed() == f.log.Size()
			})
			first := 5
			if name == "another log" {
				first = 4
			}
			want := every(testBlock+100, func(at int) bool { return at%700 == first })
			if got := f.find(q, 1000); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", head(got), head(want))
			}
			if reported := f.said.contains("is damaged and is made again"); reported != (name != "gone") {
				t.Errorf("reported: %v: %s", reported, f.said.text.String())
			}
		})
	}
}

// TestFlippedBits flips bits of the file. An index answers as it did, or reports the damage, or
// begins again: it never leaves out a record or finds another one.
func TestFlippedBits(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	n := 150
	if os.Getenv("CONCLAVE_FULL") == "1" {
		n = 2000
	}
	f := newFixture(t)
	f.add(records(0, testBlock)...)
	f.start()
	f.indexed()
	waitFor(t, func() bool { f.index.mu.RLock(); defer f.index.mu.RUnlock(); return f.index.blocks == 1 })
	f.stop()
	good, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	var queries []*Query
	for at := 0; at < testBlock; at += 13 {
		queries = append(queries, &Query{Where: where("request-id", record.UUID(requestID(uint64(at))))},
			&Query{Where: where("key", fmt.Sprintf("k%d", at%700))})
	}
	// answers asks everything of the index that is in the file.
	answers := func() (found [][]uint16, err error) {
		x := f.newIndex()
		defer x.drop(false)
		if err := x.open(); err != nil {
			return nil, err
		}
		if err := x.file.Replaced(); err != nil {
			return nil, err
		}
		if x.Indexed() == 0 {
			return nil, ErrBehind // as it was before its last transaction; what is missing is indexed again
		}
		for _, q := range queries {
			terms, err := x.terms(q)
			if err != nil {
				return nil, err
			}
			at, err := x.candidates(0, terms)
			if err != nil {
				return nil, err
			}
			found = append(found, at)
		}
		return found, nil
	}
	want, err := answers()
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range want {
		if len(at) == 0 {
			t.Fatalf("query %d finds nothing", i)
		}
	}
	if err := os.WriteFile(f.path, good[:3*os.Getpagesize()], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := answers(); !errors.Is(err, localfile.ErrDamaged) || !f.said.contains("is damaged and is made again") {
		t.Errorf("a file that was cut short: %v; reported: %s", err, f.said.text.String())
	}
	noticed, behind := 0, 0
	for range n {
		bit := r.IntN(8 * len(good))
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(f.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		switch got, err := answers(); {
		case errors.Is(err, localfile.ErrDamaged):
			noticed++
		case errors.Is(err, ErrBehind):
			behind++
		case err != nil:
			// A file of another keyring, as far as it says.
			if !strings.Contains(err.Error(), "cannot be opened") {
				t.Errorf("bit %d of byte %d: %v", bit%8, bit/8, err)
			}
			noticed++
		case !slices.EqualFunc(got, want, slices.Equal):
			t.Errorf("bit %d of byte %d: other answers", bit%8, bit/8)
		}
	}
	if noticed < n/4 {
		t.Errorf("%d of %d flipped bits were noticed", noticed, n)
	}
	t.Logf("%d bits of %d bytes: %d noticed, %d begun again, %d where nothing is", n, len(good), noticed, behind, n-noticed-behind)
}

// TestDiskScarce: without room on the disk the index waits, and goes on later.
func TestDiskScarce(t *testing.T) {
	f := newFixture(t)
	f.grow.Store(false)
	f.add(records(0, testBlock+100)...)
	f.start()
	if got := f.index.Wait(t.Context(), testBlock, 30*time.Second); got != testBlock {
		t.Fatalf("%d records are indexed", got)
	}
	if got := f.index.Wait(t.Context(), testBlock+1, 50*time.Millisecond); got != testBlock {
		t.Errorf("%d records are indexed, though the disk has no room", got)
	}
	q := Query{Where: where("key", "k5")}
	if r, err := f.index.Search(t.Context(), &q, Start(&q, testBlock), 1000); err != nil || len(r.Items) != len(every(testBlock, func(at int) bool { return at%700 == 5 })) {
		t.Errorf("%d records, %v", len(r.Items), err)
	}
	f.grow.Store(true)
	f.indexed()
}

// TestUnopenable: a record that cannot be decrypted is found as one.
func TestUnopenable(t *testing.T) {
	f := newFixture(t)
	f.add(records(0, 3)...)
	e := auditlog.Entry{Index: 3, RaftIndex: 4, Time: began.Add(3 * time.Second).UnixNano(), RequestID: requestID(3), Generation: 1, Body: make([]byte, 100)}
	if err := f.log.Append([]auditlog.Entry{e}, []auditlog.Hash{e.LeafHash()}); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.indexed()
	for _, c := range []Condition{{Operation, auditlog.UnopenableEvent}, {RequestID, record.UUID(e.RequestID)}} {
		if got := f.find(Query{Where: []Condition{c}}, 10); !slices.Equal(got, []int{3}) {
			t.Errorf("%s: got %v", c.Field, got)
		}
	}
}

// TestWait: a search that waits gets what was added in the meantime, and no more patience than
// it asked for.
func TestWait(t *testing.T) {
	f := newFixture(t)
	f.start()
	waited := make(chan uint64, 1)
	go func() { waited <- f.index.Wait(t.Context(), 1, 10*time.Second) }()
	f.add(rec(0))
	if got := <-waited; got != 1 {
		t.Errorf("got %d", got)
	}
	if got := f.index.Wait(t.Context(), 5, time.Millisecond); got != 1 {
		t.Errorf("got %d", got)
	}
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("it does not become true")
		}
		time.Sleep(2 * time.Millisecond)
	}
}
