package depot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/fakes3"
)

// testBucket is a bucket of a store of the test, with parts of 1000 bytes. It is not for
// parallel tests: credentials are in the environment.
func testBucket(t *testing.T, options string) (*bucket, *fakes3.Store) {
	t.Helper()
	fake := &fakes3.Store{Bucket: "backups", Region: "eu-test-1", AccessKeyID: "AKIDTEST", SecretKey: "secret of the test", MaxPart: 1 << 20}
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", fake.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", fake.SecretKey)
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	s, err := Parse("s3://backups/a cluster?region=eu-test-1&endpoint=" + server.URL + options)
	if err != nil {
		t.Fatal(err)
	}
	b := s.(*bucket)
	b.partSize, b.backoff = 1000, none{}
	return b, fake
}

// none repeats requests at once.
type none struct{}

func (none) BackoffDelay(int, error) (time.Duration, error) { return 0, nil }

func put(t *testing.T, s Store, name string, content []byte) error {
	t.Helper()
	n, err := s.Put(t.Context(), name, func(w io.Writer) error {
		for len(content) > 0 { // in pieces that do not fit the parts
			k := min(len(content), 333)
			if _, err := w.Write(content[:k]); err != nil {
				return err
			}
			content = content[k:]
		}
		return nil
	})
	if err == nil && n == 0 {
		t.Error("Put returned no size")
	}
	return err
}

func get(t *testing.T, s Store, name string) ([]byte, error) {
	t.Helper()
	r, err := s.Open(t.Context(), name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func content(size int) []byte { return bytes.Repeat([]byte("0123456789"), size/10+1)[:size] }

// TestStores has both stores do the same things.
func TestStores(t *testing.T) {
	b, fake := testBucket(t, "")
	dir := t.TempDir()
	for _, s := range []Store{directory(dir), b} {
		for i, size := range []int{1, 999, 1000, 1001, 2000, 4321} {
			name := fmt.Sprintf("x-%d.backup", i)
			if err := put(t, s, name, content(size)); err != nil {
				t.Fatalf("%s: Put of %d bytes: %v", s, size, err)
			}
			if got, err := get(t, s, name); err != nil || !bytes.Equal(got, content(size)) {
				t.Errorf("%s: Open returned %d bytes, not the %d of Put: %v", s, len(got), size, err)
			}
		}
		if err := put(t, s, "other", content(5)); err != nil {
			t.Fatal(err)
		}
		names, err := s.List(t.Context(), "x-")
		if want := []string{"x-0.backup", "x-1.backup", "x-2.backup", "x-3.backup", "x-4.backup", "x-5.backup"}; err != nil || !slices.Equal(names, want) {
			t.Errorf("%s: List: %v, %v", s, names, err)
		}
		if err := s.Remove(t.Context(), "x-3.backup"); err != nil {
			t.Errorf("%s: Remove: %v", s, err)
		}
		if _, err := get(t, s, "x-3.backup"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: Open of an object that was removed: %v", s, err)
		}
		// An object that could not be written to its end is not there, and the old one stays.
		broken := errors.New("broken")
		_, err = s.Put(t.Context(), "x-5.backup", func(w io.Writer) error {
			_, err := w.Write(content(2500))
			return errors.Join(err, broken)
		})
		if !errors.Is(err, broken) {
			t.Errorf("%s: Put: %v", s, err)
		}
		if got, err := get(t, s, "x-5.backup"); err != nil || len(got) != 4321 {
			t.Errorf("%s: a Put that failed has left %d bytes: %v", s, len(got), err)
		}
		// What is there is not replaced, whether it has one part or several.
		for name, size := range map[string]int{"new-1": 10, "new-2": 2500} {
			write := func(w io.Writer) error { _, err := w.Write(content(size)); return err }
			if _, err := s.Create(t.Context(), name, write); err != nil {
				t.Errorf("%s: Create: %v", s, err)
			}
			other := func(w io.Writer) error { _, err := w.Write(content(size + 1)); return err }
			if _, err := s.Create(t.Context(), name, other); !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s: Create of %s, which there is: %v", s, name, err)
			}
			if got, err := get(t, s, name); err != nil || len(got) != size {
				t.Errorf("%s: %s has %d bytes after that: %v", s, name, len(got), err)
			}
		}
		for _, bad := range []string{"", "..", "a/b"} {
			if put(t, s, bad, content(1)) == nil || s.Remove(t.Context(), bad) == nil {
				t.Errorf("%s: the name %q is accepted", s, bad)
			}
		}
	}
	if fake.Denied() != 0 || fake.Uploads() != 0 {
		t.Errorf("%d requests were refused, %d uploads were not ended", fake.Denied(), fake.Uploads())
	}
	for _, key := range fake.Objects() {
		if !strings.HasPrefix(key, "a cluster/") {
			t.Errorf("object %s is outside of the prefix", key)
		}
	}
}

// TestBucketFailures has requests fail: those that may be repeated are, and whatever ends in
// an error leaves no object and no parts.
func TestBucketFailures(t *testing.T) {
	for name, c := range map[string]struct {
		fail func(op string, w http.ResponseWriter) bool
		size int
		ok   bool
	}{
		"twice unavailable": {once(2, "part", http.StatusServiceUnavailable), 2500, true},
		"put fails once":    {once(1, "PUT", http.StatusInternalServerError), 10, true},
		"connection breaks": {func() func(string, http.ResponseWriter) bool {
			var done atomic.Bool
			return func(op string, _ http.ResponseWriter) bool {
				if op == "part" && done.CompareAndSwap(false, true) {
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}(), 2500, true},
		"parts fail":      {once(100, "part", http.StatusInternalServerError), 2500, false},
		"put fails":       {once(100, "PUT", http.StatusInternalServerError), 10, false},
		"completion":      {once(100, "complete", http.StatusInternalServerError), 2500, false},
		"creation":        {once(100, "create", http.StatusForbidden), 2500, false},
		"error in a 200":  {embedded("complete"), 2500, false},
		"abort fails too": {once(100, "complete abort", http.StatusForbidden), 2500, false},
	} {
		t.Run(name, func(t *testing.T) {
			b, fake := testBucket(t, "")
			fake.Fail = func(op string, w http.ResponseWriter, _ *http.Request) bool { return c.fail(op, w) }
			err := put(t, b, "x", content(c.size))
			if (err == nil) != c.ok {
				t.Fatalf("Put: %v", err)
			}
			got, _ := fake.Get("a cluster/x")
			if c.ok != bytes.Equal(got, content(c.size)) || !c.ok && got != nil {
				t.Errorf("the object has %d bytes", len(got))
			}
			if name == "abort fails too" {
				if fake.Uploads() != 1 || !strings.Contains(err.Error(), "stay in the bucket") {
					t.Errorf("%d uploads are left, and the error is %v", fake.Uploads(), err)
				}
				fake.Fail = nil
				if err := b.Sweep(t.Context(), "x", time.Now().Add(-time.Hour)); err != nil || fake.Uploads() != 1 {
					t.Errorf("Sweep has ended an upload that is not old: %v", err)
				}
				if err := b.Sweep(t.Context(), "other", time.Now().Add(time.Hour)); err != nil || fake.Uploads() != 1 {
					t.Errorf("Sweep has ended an upload of something else: %v", err)
				}
				if err := b.Sweep(t.Context(), "x", time.Now().Add(time.Hour)); err != nil {
					t.Error(err)
				}
			}
			if fake.Uploads() != 0 {
				t.Errorf("%d uploads are left", fake.Uploads())
			}
		})
	}
}

// once fails the first requests of some kinds.
func once(times int64, ops string, status int) func(string, http.ResponseWriter) bool {
	var n atomic.Int64
	return func(op string, w http.ResponseWriter) bool {
		if !slices.Contains(strings.Fields(ops), op) || n.Add(1) > times {
			return false
		}
		w.WriteHeader(status)
		return true
	}
}

// embedded fails as S3 does when it has begun to answer.
func embedded(which string) func(string, http.ResponseWriter) bool {
	return func(op string, w http.ResponseWriter) bool {
		if op != which {
			return false
		}
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>InternalError</Code><Message>try again</Message></Error>`)
		return true
	}
}

// TestBucketCutShort has the store send less than it announced.
func TestBucketCutShort(t *testing.T) {
	b, fake := testBucket(t, "")
	fake.Set("a cluster/x", content(5000))
	fake.Fail = func(op string, w http.ResponseWriter, _ *http.Request) bool {
		if op != "GET" {
			return false
		}
		w.Header().Set("Content-Length", "5000")
		_, _ = w.Write(content(4000))
		return true
	}
	if got, err := get(t, b, "x"); err == nil {
		t.Errorf("%d of 5000 bytes were read without an error", len(got))
	}
}

// TestBucketEnds has the store hang: the context ends the upload, and its parts are removed
// all the same.
func TestBucketEnds(t *testing.T) {
	b, fake := testBucket(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	fake.Fail = func(op string, _ http.ResponseWriter, r *http.Request) bool {
		if op == "part" {
			cancel()
			<-r.Context().Done()
			return true
		}
		return false
	}
	_, err := b.Put(ctx, "x", func(w io.Writer) error {
		_, err := w.Write(content(5000))
		return err
	})
	if !errors.Is(err, context.Canceled) || fake.Uploads() != 0 {
		t.Errorf("Put: %v, %d uploads are left", err, fake.Uploads())
	}
}

func TestBucketDenied(t *testing.T) {
	b, fake := testBucket(t, "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "another secret")
	if err := put(t, b, "x", content(10)); err == nil || fake.Denied() != 1 {
		t.Errorf("Put with the wrong secret: %v, %d requests refused", err, fake.Denied())
	}
}

// TestObjectLock has objects locked, those in parts as well.
func TestObjectLock(t *testing.T) {
	b, fake := testBucket(t, "&lock-mode=GOVERNANCE&lock-for=720h")
	for name, size := range map[string]int{"one": 10, "parts": 2500} {
		if err := put(t, b, name, content(size)); err != nil {
			t.Fatal(err)
		}
		got, lock := fake.Get("a cluster/" + name)
		mode, until, _ := strings.Cut(lock, " until ")
		at, err := time.Parse(time.RFC3339, until)
		if len(got) != size || mode != "GOVERNANCE" || err != nil || time.Until(at) < 719*time.Hour || time.Until(at) > 721*time.Hour {
			t.Errorf("%s: %d bytes with lock %q", name, len(got), lock)
		}
		if b.Remove(t.Context(), name) == nil {
			t.Errorf("%s: removed in spite of its lock", name)
		}
	}
}

// TestNotRegular: what is no file is not opened, and nobody waits for it.
func TestNotRegular(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := errors.Join(syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600), os.Mkdir(filepath.Join(dir, "dir"), 0o700), os.Symlink(os.DevNull, filepath.Join(dir, "device"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pipe", "dir", "device"} {
		opened := make(chan error, 1)
		go func() {
			r, err := directory(dir).Open(t.Context(), name)
			if err == nil {
				_ = r.Close()
			}
			opened <- err
		}()
		select {
		case err := <-opened:
			if !errors.Is(err, errNotRegular) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: Open waits", name)
		}
	}
}

func TestSweepDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := time.Now().Add(-48 * time.Hour)
	for _, name := range []string{".conclave-1.backup-123", ".conclave-2.backup-123", "conclave-1.backup", ".other-1", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if name != ".conclave-2.backup-123" {
			if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := directory(dir).Sweep(t.Context(), "conclave-", time.Now().Add(-24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{".conclave-2.backup-123", ".other-1", "conclave-1.backup", "other"}; !slices.Equal(left, want) {
		t.Errorf("left are %v", left)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"", "s3://", "s3:///key", "s3://B/key", "s3://user:secret@bucket/key", "s3://bucket/a/../b", "s3://bucket//a",
		"s3://bucket/a?endpoint=store.example", "s3://bucket/a?endpoint=https://user:secret@store.example", "s3://bucket/a?endpoint=ftp://x",
		"s3://bucket/a?region=a&region=b", "s3://bucket/a?secret=x", "s3://bucket/a?path-style=maybe", "s3://bucket/a?lock-for=10h",
		"s3://bucket/a?lock-mode=GOVERNANCE", "s3://bucket/a?lock-mode=SOME&lock-for=1h", "s3://bucket/a?lock-mode=GOVERNANCE&lock-for=-1h", "s3://bucket/a#b",
	} {
		if s, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %v", bad, s)
		}
	}
	for place, want := range map[string]string{
		"/backups/": "/backups", "file:///backups": "/backups", "backups": "backups", "s3://bucket": "s3://bucket/", "s3://bucket/a": "s3://bucket/a/",
		"s3://bucket/a/b/?region=eu-west-1&endpoint=https://store.example:9000": "s3://bucket/a/b/",
	} {
		if s, err := Parse(place); err != nil || s.String() != want {
			t.Errorf("Parse(%q) = %v, %v", place, s, err)
		}
	}
	for file, want := range map[string][2]string{
		"a.backup": {".", "a.backup"}, "/x/a.backup": {"/x", "a.backup"}, "s3://bucket/a.backup": {"s3://bucket/", "a.backup"}, "s3://bucket/x/y/a.backup?region=r": {"s3://bucket/x/y/", "a.backup"},
	} {
		if s, name, err := ParseFile(file); err != nil || s.String() != want[0] || name != want[1] {
			t.Errorf("ParseFile(%q) = %v, %q, %v", file, s, name, err)
		}
	}
	for _, bad := range []string{"", "x/", "s3://bucket/", "s3://bucket", "s3://bucket/x/"} {
		if s, name, err := ParseFile(bad); err == nil {
			t.Errorf("ParseFile(%q) = %v, %q", bad, s, name)
		}
	}
}
