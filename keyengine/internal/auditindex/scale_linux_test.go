package auditindex

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// What TestScale requires, whatever the number of records and the load of the machine.
const (
	maxSegmentBytes = 1100 // of a segment for a record: an Encrypt with a context of two pairs
	maxTileBytes    = 33   // of tiles: 32 for the leaf, and a 256th of that for each level above
	maxIndexBytes   = 64
	// maxGrowth is how much memory the process may use beyond what it had when the log was
	// written, in bytes, besides the 8 bytes that verifying keeps for a record.
	maxGrowth = 96 << 20
	// maxP99 is how long a search may take at any number of records, with what it needs in the
	// page cache. It is checked by `make bench-audit` only.
	maxP99 = time.Second
)

// TestScale writes a log of records as Encrypt leaves them, verifies, indexes and searches it,
// and prints what that takes. `make bench-audit` runs it with ten million records, of which
// docs/bench.md has the figures. Otherwise the log has somewhat more than a segment, and only
// what does not depend on the load of the machine is checked.
func TestScale(t *testing.T) {
	n := auditlog.SegmentSize + 4000
	full := os.Getenv("CONCLAVE_AUDIT_RECORDS")
	if full != "" {
		var err error
		if n, err = strconv.Atoi(full); err != nil || n < 10000 {
			t.Fatalf("CONCLAVE_AUDIT_RECORDS is %q, not a number of at least 10,000", full)
		}
	} else if testing.Short() {
		n = 20_000
	}
	s := &scale{fixture: newFixture(t), n: n, full: full != "", gen: newGenerator(n)}
	s.block = blockSize
	t.Logf("%d records, %d processors, %s %s/%s", n, runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	s.write()
	s.verify()
	s.build()
	s.sizes()
	s.findAll()
	s.latencies("in the page cache", 200)
	if s.full {
		s.restart()
		s.latencies("from the disk, with an empty page cache", 1)
	}
}

// scale is a run of TestScale.
type scale struct {
	*fixture
	n    int
	full bool
	gen  *generator
	key  string // that verifies checkpoints
	base int64  // memory when the log was written
}

// generator makes the records of the log. What it makes depends on the index only, and it
// knows how many records have what.
type generator struct {
	n     int
	users []string
	keys  []string
	rare  int // each rare-th record is of a user of its own, ten in all
}

func newGenerator(n int) *generator {
	g := &generator{n: n, rare: n / 10}
	for i := range 1000 {
		g.users = append(g.users, fmt.Sprintf("service-%03d", i))
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		g.keys = append(g.keys, fmt.Sprintf("arn:aws:kms:eu-west-1:111122223333:key/%08x-%04x-4%03x-a%03x-%012x", r.Uint32(), r.Uint32()>>16, r.Uint32()>>20, r.Uint32()>>20, r.Uint64()>>16))
	}
	return g
}

const (
	rareUser = "contractor"
	spread   = 90 * 24 * time.Hour // how long the log took
)

// user returns the number of the user who made a request: half of them are by fifty users.
func (g *generator) user(at int) int {
	h := mix(uint64(at))
	if h&1 == 0 {
		return int(h>>8) % 50
	}
	return int(h>>8) % len(g.users)
}

func (g *generator) isRare(at int) bool    { return at%g.rare == g.rare/2 }
func (g *generator) isRefused(at int) bool { return mix(uint64(at)+1<<40)%500 == 0 }

func (g *generator) operation(at int) string {
	switch h := mix(uint64(at)+2<<40) % 100; {
	case h < 60:
		return "Encrypt"
	case h < 90:
		return "Decrypt"
	case h < 98:
		return "GenerateDataKey"
	}
	return "DescribeKey"
}

// requestID returns a request id as random as those of requests.
func (g *generator) requestID(at int) (id [16]byte) {
	h := sha256.Sum256(strconv.AppendInt(nil, int64(at), 10))
	copy(id[:], h[:])
	return id
}

// at returns when a record was made, in cluster time.
func (g *generator) at(at int) time.Time {
	return began.Add(time.Duration(at) * (spread / time.Duration(g.n)))
}

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// event returns what is recorded of a request, as package request describes one.
func (g *generator) event(at int) record.Event {
	u := g.user(at)
	name := g.users[u]
	if g.isRare(at) {
		name = rareUser
	}
	// A user has a few keys and addresses.
	key := g.keys[(u*7+int(mix(uint64(at)+3<<40)%4))%len(g.keys)]
	ev := record.Event{
		Name: g.operation(at), Kind: record.KindCall, RequestID: g.requestID(at), At: g.at(at), Region: "eu-west-1", ReadOnly: true,
		SourceIP: fmt.Sprintf("10.%d.%d.%d", u%4, u%250, mix(uint64(at)+4<<40)%4), UserAgent: "aws-sdk-go-v2/1.41.5 ua/2.1 os/linux lang/go#1.26.8 md/GOARCH#amd64 api/kms#1.52.0",
		Transport: "aws", TLS: &auditpb.Tls{Version: "TLSv1.3", Cipher: "TLS_AES_128_GCM_SHA256", Host: "kms.eu-west-1.example.com:7600", KeyExchange: "X25519MLKEM768"},
		Identity: &auditpb.Identity{
			Type: "IAMUser", PrincipalId: fmt.Sprintf("AIDAQAAAAAAAUSER%04dA", u), Arn: "arn:aws:iam::111122223333:user/" + name,
			AccountId: "111122223333", UserName: name, AccessKeyId: fmt.Sprintf("AKIAQAAAAAAAKEYS%04dA", u),
		},
		Parameters: []*auditpb.Field{
			auditfield.Text("keyId", key),
			auditfield.TextMap("encryptionContext", map[string]string{"service": name, "tenant": strconv.Itoa(at % 977)}),
			auditfield.Text("encryptionAlgorithm", "SYMMETRIC_DEFAULT"),
		},
		Resources:  []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: "111122223333", Arn: key}},
		Additional: []*auditpb.Field{auditfield.TextList("authorization", []string{"allowed by the key policy, statement use"}), auditfield.Text("keyMaterialId", strings.Repeat("0123456789abcdef", 4))},
	}
	if g.isRefused(at) {
		ev.Err = kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to perform: kms:%s on resource: %s because no identity-based policy allows the action", ev.Identity.Arn, ev.Name, key)
		ev.Additional = ev.Additional[:1]
	}
	return ev
}

const (
	groupCommit = 30     // records of a Raft entry, as with 64 clients
	chunk       = 12_000 // records for which a checkpoint is signed: what comes in a second
)

// entries are ready to be appended.
type entries struct {
	list   []auditlog.Entry
	leaves []auditlog.Hash
}

// make makes entries from an index on, with all processors.
func (s *scale) make(from, n int) entries {
	s.t.Helper()
	c := entries{make([]auditlog.Entry, n), make([]auditlog.Hash, n)}
	o, err := s.vault.Current()
	if err != nil {
		s.t.Fatal(err)
	}
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				at := from + i
				ev := s.gen.event(at)
				e := auditlog.Entry{Index: uint64(at), RaftIndex: uint64(at/groupCommit + 1), Time: ev.At.UnixNano(), RequestID: ev.RequestID}
				rec, err := record.Build(o, "node-1", time.Now(), s.cluster, 2, &ev)
				if err != nil {
					failed.Store(&err)
					return
				}
				e.Body, e.Generation, e.Salt, e.Commitment = rec.Body, rec.Generation, [16]byte(rec.Salt), auditlog.Hash(rec.Commitment)
				c.list[i], c.leaves[i] = e, e.LeafHash()
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		s.t.Fatal(*err)
	}
	return c
}

// write writes the log as a node does: an Append for each Raft entry, and each second an fsync
// and a checkpoint.
func (s *scale) write() {
	s.t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	const origin = "conclave/scale"
	s.key = checkpoint.VerifierKey(origin, pub)
	var tree auditlog.Frontier
	var making, appending spent
	for at := 0; at < s.n; at += chunk {
		var c entries
		making.add(func() { c = s.make(at, min(chunk, s.n-at)) })
		for _, h := range c.leaves {
			tree.Append(h)
		}
		appending.add(func() {
			for i := 0; i < len(c.list); i += groupCommit {
				end := min(i+groupCommit, len(c.list))
				if err := s.log.Append(c.list[i:end], c.leaves[i:end]); err != nil {
					s.t.Fatal(err)
				}
			}
			if err := s.log.Sync(); err != nil {
				s.t.Fatal(err)
			}
			note, err := checkpoint.Sign(origin, priv, nil, tree.Size(), tree.Root())
			if err == nil {
				err = s.log.WriteCheckpoint(note)
			}
			if err != nil {
				s.t.Fatal(err)
			}
		})
	}
	s.t.Logf("made and encrypted   %s", making.rate(s.n))
	s.t.Logf("appended and synced  %s", appending.rate(s.n))
	debug.FreeOSMemory()
	s.base = memory("RssAnon")
	s.t.Logf("memory: %d MiB, of which the Go heap has %d", s.base>>20, heap()>>20)
}

// verify verifies the log, and hashes the same bytes without looking at them.
func (s *scale) verify() {
	s.t.Helper()
	var report *verify.Report
	var verifying, hashing spent
	grown := s.peak(func() {
		verifying.add(func() {
			var err error
			if report, err = verify.Dir(s.logDir, s.key, verify.Options{}); err != nil {
				s.t.Fatal(err)
			}
		})
	})
	if !report.OK() || report.Size != uint64(s.n) || report.CheckpointSize != uint64(s.n) {
		s.t.Fatalf("verified %d records, %d of them signed, with problems %v", report.Size, report.CheckpointSize, report.Problems)
	}
	bytes := int64(0)
	hashing.add(func() {
		names, err := filepath.Glob(filepath.Join(s.logDir, "segments", "*"))
		if err != nil {
			s.t.Fatal(err)
		}
		h, buf := sha256.New(), make([]byte, 1<<20)
		for _, name := range names {
			f, err := os.Open(name)
			if err != nil {
				s.t.Fatal(err)
			}
			n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
			if bytes += n; err != nil {
				s.t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				s.t.Fatal(err)
			}
		}
	})
	s.t.Logf("verified             %s, %.0f MB/s", verifying.rate(s.n), float64(bytes)/1e6/verifying.cpu.Seconds())
	s.t.Logf("SHA-256 of segments  %s, %.0f MB/s: verifying takes %.2f times as long", hashing.rate(s.n), float64(bytes)/1e6/hashing.cpu.Seconds(), verifying.cpu.Seconds()/hashing.cpu.Seconds())
	s.within("verifying", grown, 3*8*int64(s.n)) // a list that grows is copied
}

// build builds the index.
func (s *scale) build() {
	s.t.Helper()
	var building spent
	grown := s.peak(func() {
		building.add(func() {
			s.start()
			if got := s.index.Wait(s.t.Context(), uint64(s.n), 2*time.Hour); got != uint64(s.n) {
				s.t.Fatalf("%d records of %d are indexed", got, s.n)
			}
		})
	})
	s.t.Logf("indexed              %s", building.rate(s.n))
	s.within("indexing", grown, 0)
}

// restart closes the index, lets the system forget the files, and opens the index again.
func (s *scale) restart() {
	s.t.Helper()
	s.stop()
	s.forget(s.path)
	err := filepath.WalkDir(s.logDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			s.forget(path)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.start()
	s.indexed()
}

// forget drops a file from the page cache.
func (s *scale) forget(path string) {
	s.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		s.t.Fatal(err)
	}
}

// sizes checks how much of the disk a record takes.
func (s *scale) sizes() {
	s.t.Helper()
	for _, part := range []struct {
		name, path string
		max        int64
	}{
		{"segments", filepath.Join(s.logDir, "segments"), maxSegmentBytes},
		{"tiles", filepath.Join(s.logDir, "tile"), maxTileBytes},
		{"index", s.path, maxIndexBytes},
	} {
		var total int64
		err := filepath.WalkDir(part.path, func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				total += info.Size()
			}
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Logf("disk: %-9s %8.1f MiB, %.1f bytes for a record", part.name, float64(total)/(1<<20), float64(total)/float64(s.n))
		if total > part.max*int64(s.n) {
			s.t.Errorf("the %s take %d bytes, more than %d for a record", part.name, total, part.max)
		}
	}
}

// findAll compares what searches find with what the log was made of.
func (s *scale) findAll() {
	s.t.Helper()
	from := s.gen.at(s.n / 2)
	to := s.gen.at(s.n/2 + 1000)
	for _, c := range []struct {
		name string
		q    Query
		keep func(at int) bool
	}{
		{"a rare user", Query{Where: where("principal", rareUser)}, s.gen.isRare},
		{"refused decryption", Query{Where: where("outcome", "AccessDeniedException", "operation", "Decrypt")}, func(at int) bool {
			return s.gen.isRefused(at) && s.gen.operation(at) == "Decrypt"
		}},
		{"a request", Query{Where: where("request-id", record.UUID(s.gen.requestID(s.n/3)))}, func(at int) bool { return at == s.n/3 }},
		{"nobody", Query{Where: where("principal", "nobody")}, func(int) bool { return false }},
		{"an operation in time", Query{Where: where("operation", "Encrypt"), From: from, To: to}, func(at int) bool {
			return s.gen.operation(at) == "Encrypt" && !s.gen.at(at).Before(from) && s.gen.at(at).Before(to)
		}},
	} {
		c.q.OldestFirst = true
		want := every(s.n, c.keep)
		if got := s.find(c.q, 1000); !slices.Equal(got, want) {
			s.t.Errorf("%s: found %d records, want %d", c.name, len(got), len(want))
		}
	}
}

// latencies prints how long searches of the whole log take, each for a page of 100 records.
func (s *scale) latencies(state string, rounds int) {
	s.t.Helper()
	const limit = 100
	r := rand.New(rand.NewPCG(3, 4))
	end := uint64(s.n)
	shapes := []struct {
		name string
		ask  func() (Query, Position)
	}{
		{"a rare value", s.newest(func() Query { return Query{Where: where("principal", rareUser)} })},
		{"the id of a request", s.newest(func() Query {
			return Query{Where: where("request-id", record.UUID(s.gen.requestID(r.IntN(s.n))))}
		})},
		{"a common value", s.newest(func() Query { return Query{Where: where("operation", "Encrypt")} })},
		{"two values", s.newest(func() Query {
			return Query{Where: where("outcome", "AccessDeniedException", "username", s.gen.users[r.IntN(len(s.gen.users))])}
		})},
		{"two values that do not meet", s.newest(func() Query {
			return Query{Where: where("operation", "Encrypt", "source", "10.0.0.0", "username", s.gen.users[1])}
		})},
		{"a time and a value", s.newest(func() Query {
			from := s.gen.at(r.IntN(s.n))
			return Query{From: from, To: from.Add(time.Hour), Where: where("operation", "Decrypt")}
		})},
		{"nothing found", s.newest(func() Query { return Query{Where: where("key", fmt.Sprintf("alias/none-%d", r.IntN(1000)))} })},
		{"a deep page", func() (Query, Position) {
			return Query{Where: where("username", s.gen.users[60+r.IntN(900)])}, Position{Bound: end, Next: r.Uint64N(end)}
		}},
	}
	s.t.Logf("searches %s, %d of each:", state, rounds)
	grown := s.peak(func() {
		for _, shape := range shapes {
			var took []time.Duration
			cpu := processor()
			found, deadline := 0, time.Now().Add(time.Minute)
			for len(took) < rounds && (s.full || len(took) < 5) && time.Now().Before(deadline) {
				q, pos := shape.ask()
				start := time.Now()
				got, err := s.index.Search(s.t.Context(), &q, pos, limit)
				took = append(took, time.Since(start))
				if err != nil {
					s.t.Fatal(err)
				}
				found += len(got.Items)
			}
			slices.Sort(took)
			p50, p99 := took[len(took)/2], took[min(len(took)*99/100, len(took)-1)]
			n := len(took)
			s.t.Logf("  %-28s p50 %7.1f ms  p99 %7.1f ms  of a core %6.1f ms  found %5.1f", shape.name, ms(p50), ms(p99), ms(processor()-cpu)/float64(n), float64(found)/float64(n))
			if s.full && rounds > 1 && p99 > maxP99 {
				s.t.Errorf("%s: p99 is %v, more than %v", shape.name, p99, maxP99)
			}
		}
	})
	s.within("searching", grown, 0)
}

// newest makes a query for the newest records of the log.
func (s *scale) newest(ask func() Query) func() (Query, Position) {
	return func() (Query, Position) {
		q := ask()
		return q, Start(&q, uint64(s.n))
	}
}

// peak returns by how many bytes the memory of the process exceeded that of the beginning
// while fn ran, at most. What the system can take back, such as pages of files, does not count.
func (s *scale) peak(fn func()) int64 {
	debug.FreeOSMemory()
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for most := memory("RssAnon"); ; most = max(most, memory("RssAnon")) {
			select {
			case <-tick.C:
			case <-stop:
				peak <- most
				return
			}
		}
	}()
	fn()
	close(stop)
	return <-peak - s.base
}

// within reports by how much the memory grew, and checks it.
func (s *scale) within(what string, grown, more int64) {
	s.t.Helper()
	s.t.Logf("memory: %s takes up to %d MiB more; then the Go heap has %d MiB, and %d MiB of files are mapped", what, grown>>20, heap()>>20, memory("RssFile")>>20)
	if grown > maxGrowth+more {
		s.t.Errorf("%s takes %d MiB of memory, more than %d", what, grown>>20, (maxGrowth+more)>>20)
	}
}

// memory returns a line of /proc/self/status, in bytes.
func memory(name string) int64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// spent is how long something took, and how much of the processors' time.
type spent struct{ wall, cpu time.Duration }

func (sp *spent) add(fn func()) {
	wall, cpu := time.Now(), processor()
	fn()
	sp.wall += time.Since(wall)
	sp.cpu += processor() - cpu
}

// rate returns how many of n were done in a second, and in a second of a processor.
func (sp *spent) rate(n int) string {
	return fmt.Sprintf("%9.0f records/s, %9.0f per second of a core (%.1f s, %.1f s of cores)",
		float64(n)/sp.wall.Seconds(), float64(n)/sp.cpu.Seconds(), sp.wall.Seconds(), sp.cpu.Seconds())
}

// processor returns the processors' time that this process has used.
func processor() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
