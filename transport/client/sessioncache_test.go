package client

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/conclavekms/conclave/transport/kmspb"
)

func cacheDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "cache", "sessions")
}

// once simulates a program that makes one call.
func once(t *testing.T, cfg Config) error {
	t.Helper()
	c := dial(t, cfg)
	defer c.Close()
	_, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{})
	return err
}

func cacheFiles(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestSessionIsKeptBetweenPrograms(t *testing.T) {
	t.Parallel()
	f, dir := &fakeServer{}, cacheDir(t)
	addr := start(t, f)
	cfg := func() Config {
		c := withKey(addr)
		c.SessionCache = dir
		return c
	}
	for range 3 {
		if err := once(t, cfg()); err != nil {
			t.Fatal(err)
		}
	}
	if opened, calls := f.counts(); opened != 1 || calls != 3 {
		t.Errorf("%d sessions for %d calls, want 1 for 3", opened, calls)
	}
	names := cacheFiles(t, dir)
	if len(names) != 1 {
		t.Fatalf("files %v", names)
	}
	raw, err := os.ReadFile(names[0])
	fi, serr := os.Stat(names[0])
	if err != nil || serr != nil || fi.Mode().Perm() != 0o600 || bytes.Contains(raw, []byte("token")) {
		t.Errorf("the file has mode %v and is %q; %v, %v", fi.Mode(), raw, err, serr)
	}

	// A token that is refused is replaced, in the cache too.
	f.revokeAll()
	for range 2 {
		if err := once(t, cfg()); err != nil {
			t.Fatal(err)
		}
	}
	if opened, _ := f.counts(); opened != 2 {
		t.Errorf("%d sessions, want 2", opened)
	}
}

// TestSessionCacheIsBound: the session is not used by another caller or with
// another server.
func TestSessionCacheIsBound(t *testing.T) {
	t.Parallel()
	f, dir := &fakeServer{}, cacheDir(t)
	addr := start(t, f)
	cfg := withKey(addr)
	cfg.SessionCache = dir
	if err := once(t, cfg); err != nil {
		t.Fatal(err)
	}
	// With another secret for the same key id, the file cannot be decrypted, and
	// the proof fails.
	wrong := Config{Address: addr, AccessKeyID: testID, SecretAccessKey: Secret("another secret"), SessionCache: dir}
	if once(t, wrong) == nil {
		t.Error("another secret used the session")
	}
	key := mac([]byte("CONCLAVE1"+testSecret), "session")
	binding, err := (&Config{Address: addr, Plaintext: true}).binding()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := newSessionCache(dir, binding, testID, key).load(); !ok {
		t.Fatal("the session is not where the test looks")
	}
	for name, c := range map[string]*sessionCache{
		"other server": newSessionCache(dir, binding+"x", testID, key),
		"other id":     newSessionCache(dir, binding, testID+"X", key),
	} {
		// Even if the file has the right name.
		good := newSessionCache(dir, binding, testID, key)
		c.file = good.file
		if _, ok := c.load(); ok {
			t.Errorf("%s: opens the session", name)
		}
	}
	// A file that is damaged or too long, or not a file, is ignored.
	name := newSessionCache(dir, binding, testID, key).file
	for _, spoil := range []func() error{
		func() error { return os.WriteFile(name, []byte("x"), 0o600) },
		func() error { return os.WriteFile(name, make([]byte, maxCacheFile+1), 0o600) },
		func() error { _ = os.Remove(name); return os.Symlink("/dev/zero", name) },
		func() error { _ = os.Remove(name); return os.Mkdir(name, 0o700) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		again := withKey(addr)
		again.SessionCache = dir
		if err := once(t, again); err != nil {
			t.Error(err)
		}
	}
}

// TestSessionCacheNeedsADirectoryOfItsOwn: without a directory that only the
// user can access, there is no cache.
func TestSessionCacheNeedsADirectoryOfItsOwn(t *testing.T) {
	t.Parallel()
	f := &fakeServer{}
	addr := start(t, f)
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cfg := withKey(addr)
		cfg.SessionCache = open
		if err := once(t, cfg); err != nil {
			t.Fatal(err)
		}
	}
	if opened, _ := f.counts(); opened != 2 || len(cacheFiles(t, open)) != 0 {
		t.Errorf("%d sessions, files %v", opened, cacheFiles(t, open))
	}
}

// TestOldSessionsAreRemoved: old files are removed, and a session that is about
// to expire is not used.
func TestOldSessionsAreRemoved(t *testing.T) {
	t.Parallel()
	f, dir := &fakeServer{life: renewBefore / 2}, cacheDir(t)
	addr := start(t, f)
	if err := ownDir(dir); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "old")
	then := time.Now().Add(-2 * maxCacheAge)
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(old, then, then); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cfg := withKey(addr)
		cfg.SessionCache = dir
		if err := once(t, cfg); err != nil {
			t.Fatal(err)
		}
	}
	if opened, _ := f.counts(); opened != 2 || len(cacheFiles(t, dir)) != 1 {
		t.Errorf("%d sessions, files %v", opened, cacheFiles(t, dir))
	}
}
