package clients

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// TestSeaweedFS stores objects in SeaweedFS with SSE-KMS and reads them back: a
// server that asks for a data key for each object, and for its plaintext for each
// read. With the configuration that docs/clients.md shows, it keeps no data keys,
// so that a disabled key ends all reads at once.
func TestSeaweedFS(t *testing.T) {
	needProgram(t, "seaweedfs", "weed")
	overBoth(t, func(t *testing.T, s *server) {
		config := documentedConfig(t, s)
		s.write(t, "s3.json", config)
		w := startWeed(t, s, "s3.json")
		s.use(t)
		c := client(t)
		key := key(t, c)
		plain := strings.Repeat("correct horse battery staple\n", 1000)
		w.put(t, "/photos", "", "")
		put := func(object string) {
			t.Helper()
			if h := w.put(t, object, plain, key); h.Get(sseHeader) != "aws:kms" || h.Get(sseKeyHeader) != key {
				t.Errorf("storing %s was answered with %v, want aws:kms and %s", object, h, key)
			}
		}
		reads := func(object string) {
			t.Helper()
			if got := w.get(t, object); got != plain {
				t.Errorf("%s was read as %d bytes, want the %d that were stored", object, len(got), len(plain))
			}
		}
		put("/photos/one")
		reads("/photos/one")
		reads("/photos/one")
		w.hides(t, "correct horse")

		// Each object has its own data key; each read has it decrypted.
		calls := s.audited(t, key)
		if n := calls["GenerateDataKey"]; n != 1 {
			t.Errorf("the audit log has %d GenerateDataKey for one object", n)
		}
		if n := calls["Decrypt"]; n != 2 {
			t.Errorf("the audit log has %d Decrypt for two reads", n)
		}

		disable(t, c, key)
		w.refuses(t, http.MethodGet, "/photos/one", "")
		w.refuses(t, http.MethodPut, "/photos/two", key)
		calls = s.audited(t, key)
		if calls["Decrypt DisabledException"] == 0 || calls["GenerateDataKey DisabledException"] == 0 {
			t.Errorf("the audit log has no refused Decrypt or GenerateDataKey: %v", calls)
		}
		s.does(t, "conclave", "key", "enable", key)
		reads("/photos/one")
		put("/photos/two")
		reads("/photos/two")
	})
}

// TestSeaweedFSCache shows what docs/clients.md warns of: unless its configuration
// says otherwise, SeaweedFS keeps the plaintext of data keys that it has used for an
// hour, and reads on when the key is disabled. What it has not read yet stays closed.
func TestSeaweedFSCache(t *testing.T) {
	needProgram(t, "seaweedfs", "weed")
	s := start(t)
	config := documentedConfig(t, s)
	cached := regexp.MustCompile(`,\s*"cache_enabled": false`).ReplaceAllString(config, "")
	if cached == config {
		t.Fatalf("the documented configuration has the cache:\n%s", config)
	}
	s.write(t, "s3.json", cached)
	w := startWeed(t, s, "s3.json")
	s.use(t)
	c := client(t)
	key := key(t, c)
	w.put(t, "/photos", "", "")
	w.put(t, "/photos/read", "correct horse", key)
	w.put(t, "/photos/unread", "correct horse", key)
	w.get(t, "/photos/read")
	disable(t, c, key)
	if status, _, body := w.call(t, http.MethodGet, "/photos/read", "", ""); status != http.StatusOK {
		t.Errorf("SeaweedFS keeps no data keys any more; docs/clients.md says that it does: %d %s", status, body)
	}
	w.refuses(t, http.MethodGet, "/photos/unread", "")
}

// documentedConfig is the configuration of SeaweedFS in docs/clients.md, with the
// server's settings for the variables in it.
func documentedConfig(t *testing.T, s *server) string {
	t.Helper()
	_, text := docs(t)
	_, section, ok := strings.Cut(text, "\n## SeaweedFS\n")
	m := regexp.MustCompile("(?s)\n```json\n(.*?)\n```").FindStringSubmatch(section)
	if !ok || m == nil {
		t.Fatal("docs/clients.md has no configuration under ## SeaweedFS")
	}
	config := os.Expand(m[1], func(name string) string {
		if s.settings[name] == "" {
			t.Fatalf("docs/clients.md names %s, which `conclave env` does not set", name)
		}
		return s.settings[name]
	})
	if !json.Valid([]byte(config)) {
		t.Fatalf("the configuration is no JSON:\n%s", config)
	}
	return config
}

// weed is SeaweedFS: a master, a volume server, a filer and the S3 API in one
// process.
type weed struct {
	s        *server
	dir      string
	endpoint string
}

// startWeed starts SeaweedFS on loopback, with a configuration of its S3 API that is
// a file in the server's directory. It ends with the test.
func startWeed(t *testing.T, s *server, config string) *weed {
	t.Helper()
	const loopback = "127.0.0.1"
	w := &weed{s: s, dir: t.TempDir()}
	args := []string{
		"-logtostderr=true", "server", "-ip=" + loopback, "-ip.bind=" + loopback, "-dir=" + w.dir, "-master.telemetry=false",
		"-s3", "-s3.config=" + filepath.Join(s.dir, config), "-s3.port.iceberg=0", "-s3.port.lance=0",
		"-s3.localSocket=" + filepath.Join(w.dir, "s3"), "-filer.localSocket=" + filepath.Join(w.dir, "filer"),
		"-volume.preStopSeconds=0",
	}
	// It takes numbers only, and has others connect to each by number.
	var held []net.Listener
	for _, name := range []string{"master", "volume", "filer", "s3"} {
		for _, suffix := range []string{".port", ".port.grpc"} {
			l, err := net.Listen("tcp", net.JoinHostPort(loopback, "0"))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, l)
			_, port, _ := net.SplitHostPort(l.Addr().String())
			args = append(args, "-"+name+suffix+"="+port)
			if name+suffix == "s3.port" {
				w.endpoint = "http://" + l.Addr().String()
			}
		}
	}
	for _, l := range held {
		l.Close()
	}
	cmd := exec.Command(filepath.Join(programs, "weed"), args...)
	cmd.Dir, cmd.Env = w.dir, s.environ()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		// It removes its sockets at once, and then waits for its own parts to miss
		// each other.
		timer := time.AfterFunc(2*time.Second, func() { cmd.Process.Kill() })
		defer timer.Stop()
		cmd.Process.Signal(os.Interrupt)
		if err := <-exited; t.Failed() {
			t.Logf("SeaweedFS: %v\n%s", err, tail(log.String(), 100))
		}
	})
	ready := func() error {
		resp, err := http.Get(w.endpoint + "/healthz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
	deadline := time.Now().Add(2 * time.Minute)
	for err := ready(); err != nil; err = ready() {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("SeaweedFS has ended: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("SeaweedFS does not answer: %v", err)
		}
	}
	return w
}

// tail is the end of a text.
func tail(text string, lines int) string {
	all := slices.Collect(strings.Lines(text))
	return strings.Join(all[max(0, len(all)-lines):], "")
}

const (
	sseHeader    = "X-Amz-Server-Side-Encryption"
	sseKeyHeader = "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"
)

// call makes a request of S3's API, with SSE-KMS under a key unless it is "".
func (w *weed) call(t *testing.T, method, path, body, key string) (status int, header http.Header, answer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, w.endpoint+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set(sseHeader, "aws:kms")
		req.Header.Set(sseKeyHeader, key)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(body)))
	req.Header.Set("X-Amz-Content-Sha256", sum)
	as := aws.Credentials{AccessKeyID: w.s.settings["AWS_ACCESS_KEY_ID"], SecretAccessKey: w.s.settings["AWS_SECRET_ACCESS_KEY"]}
	if err := v4.NewSigner().SignHTTP(ctx, as, req, sum, "s3", region, time.Now()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil && resp.StatusCode == http.StatusOK {
		// It begins an answer before it has found out that it cannot give it.
		return 0, resp.Header, err.Error()
	}
	return resp.StatusCode, resp.Header, string(b)
}

// put makes a bucket, or stores an object under a key.
func (w *weed) put(t *testing.T, path, body, key string) http.Header {
	t.Helper()
	// A new SeaweedFS takes objects once its parts have found each other.
	for start := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		status, header, answer := w.call(t, http.MethodPut, path, body, key)
		if status == http.StatusOK {
			return header
		}
		if status < http.StatusInternalServerError || time.Since(start) > 2*time.Minute {
			t.Fatalf("PUT %s: %d %s", path, status, answer)
		}
	}
}

// get reads an object.
func (w *weed) get(t *testing.T, path string) string {
	t.Helper()
	status, _, answer := w.call(t, http.MethodGet, path, "", "")
	if status != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, status, answer)
	}
	return answer
}

// refuses makes a call that SeaweedFS has to refuse.
func (w *weed) refuses(t *testing.T, method, path, key string) {
	t.Helper()
	if status, _, answer := w.call(t, method, path, "", key); status == http.StatusOK {
		t.Errorf("%s %s succeeds: %q", method, path, answer)
	}
}

// hides checks that a text is in none of SeaweedFS's files.
func (w *weed) hides(t *testing.T, text string) {
	t.Helper()
	size := 0
	err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		size += len(b)
		if bytes.Contains(b, []byte(text)) {
			t.Errorf("%s has a plaintext", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if size < 20_000 {
		t.Errorf("SeaweedFS has stored %d bytes: are these its files?", size)
	}
}

// audited counts the requests for a key in the audit log, by operation and, after a
// space, the error's name.
func (s *server) audited(t *testing.T, key string) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	for line := range strings.Lines(s.does(t, "conclave", "audit", "tail", "--lines", "1000", "-o", "json")) {
		var record struct {
			EventName, ErrorCode string
			Resources            []struct{ ARN string }
		}
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if len(record.Resources) > 0 && record.Resources[0].ARN == key {
			counts[strings.TrimSpace(record.EventName+" "+record.ErrorCode)]++
		}
	}
	return counts
}
