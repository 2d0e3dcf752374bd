package auditsend

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

// records returns records with the indexes from a number up to another one.
func records(from, to uint64) (list []Record) {
	for i := from; i < to; i++ {
		list = append(list, Record{
			Index: i, EventID: fmt.Sprintf("id-%d", i), Time: time.Date(2030, 1, 2, 3, 4, 5, 678_000, time.UTC), Name: "Encrypt", Failed: i%2 == 1,
			Line: fmt.Appendf(nil, `{"eventName":"Encrypt","conclave":{"index":%d}}`, i),
		})
	}
	return list
}

// authority is a CA for 127.0.0.1, and its file.
func authority(t *testing.T) (cert tls.Certificate, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func serve(t *testing.T, h http.HandlerFunc) (url, ca string) {
	t.Helper()
	cert, ca := authority(t)
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL, ca
}

var hookKey = []byte("0123456789abcdef0123456789abcdef")

func openHook(t *testing.T, url, ca string) Sender {
	t.Helper()
	s, err := (&Webhook{URL: url, SecretFile: write(t, "whsec_"+base64.StdEncoding.EncodeToString(hookKey)+"\n"), TLS: &outbound.TLS{CA: ca}}).Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestWebhook: a receiver can verify what it gets, and gets the same id when it is sent again.
func TestWebhook(t *testing.T) {
	var ids []string
	url, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		id, at := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
		m := hmac.New(sha256.New, hookKey)
		m.Write([]byte(id + "." + at + "." + string(body)))
		if r.Header.Get("Webhook-Signature") != "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)) {
			t.Error("the signature is wrong")
		}
		if sec, err := strconv.ParseInt(at, 10, 64); err != nil || time.Since(time.Unix(sec, 0)).Abs() > time.Minute {
			t.Errorf("the timestamp is %q", at)
		}
		if bytes.Count(body, []byte("\n")) != 3 || r.Header.Get("Conclave-First-Index") != "5" || r.Header.Get("Conclave-Last-Index") != "7" {
			t.Errorf("got %s with %v", body, r.Header)
		}
		if ids = append(ids, id); len(ids) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	s := openHook(t, url, ca)
	if err := s.Send(t.Context(), records(5, 8)); err == nil {
		t.Error("status 503 is taken for a confirmation")
	}
	if err := s.Send(t.Context(), records(5, 8)); err != nil {
		t.Error(err)
	}
	if len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("the ids are %q", ids)
	}
}

// TestHostileReceivers: whatever a receiver does, Send ends in time, and takes nothing but
// success for a confirmation.
func TestHostileReceivers(t *testing.T) {
	elsewhere := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	defer other.Close()
	for name, tt := range map[string]struct {
		answer   http.HandlerFunc
		confirms bool
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}, false},
		"error": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, false},
		"silence": {func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // so that the end of the connection is noticed
			<-r.Context().Done()
			// To return would answer 200, which a client that is closing its connection still reads.
			panic(http.ErrAbortHandler)
		}, false},
		"long header":    {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }, false},
		"endless error":  {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(400); endless(w, r.Context().Done()) }, false},
		"endless answer": {func(w http.ResponseWriter, r *http.Request) { endless(w, r.Context().Done()) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			url, ca := serve(t, tt.answer)
			hook := openHook(t, url, ca)
			otel, err := (&OTLP{URL: url + "/v1/logs", TLS: &outbound.TLS{CA: ca}}).Open()
			if err != nil {
				t.Fatal(err)
			}
			defer otel.Close()
			for kind, s := range map[string]Sender{"webhook": hook, "otlp": otel} {
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				began := time.Now()
				err := s.Send(ctx, records(0, 2))
				cancel()
				if (err == nil) != (tt.confirms && kind == "webhook") {
					t.Errorf("%s: Send = %v", kind, err)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("%s: it took %v", kind, took)
				}
				if err != nil && strings.Contains(err.Error(), url) && kind == "webhook" {
					t.Errorf("%s: the error shows the URL: %v", kind, err)
				}
			}
		})
	}
	if elsewhere > 0 {
		t.Error("a redirect was followed")
	}
	url, _ := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a receiver with a wrong certificate got records") })
	_, wrong := authority(t)
	if err := openHook(t, url, wrong).Send(t.Context(), records(0, 1)); err == nil {
		t.Error("a wrong certificate is accepted")
	}
}

func endless(w io.Writer, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	}
}

// TestAddresses: link-local addresses are refused, and so is sending in the clear over a network.
func TestAddresses(t *testing.T) {
	for url, want := range map[string]string{
		"https://169.254.169.254/": "is link-local",
		"http://192.0.2.1/":        "has no TLS",
	} {
		s, err := (&Webhook{URL: url, SecretFile: write(t, base64.StdEncoding.EncodeToString(hookKey))}).Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(t.Context(), records(0, 1)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, c := range []interface{ Open() (Sender, error) }{
		&Webhook{URL: "ftp://a/", SecretFile: "x"}, &Webhook{URL: "https://user:secret@a/", SecretFile: "x"},
		&Webhook{URL: "https://a/", SecretFile: write(t, "dG9vIHNob3J0")}, &OTLP{URL: "https://a/v1/logs?token=x"},
		&Syslog{Address: "a"}, &Syslog{Address: "a:1", Facility: new(24)}, &File{Directory: "relative"}, &File{Directory: "/does/not/exist"},
	} {
		if _, err := c.Open(); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

// TestOTLP reads what the exporter sends with OpenTelemetry's own types.
func TestOTLP(t *testing.T) {
	var got *collector.ExportLogsServiceRequest
	var partial bool
	url, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		body, _ := io.ReadAll(z)
		got = new(collector.ExportLogsServiceRequest)
		if err := proto.Unmarshal(body, got); err != nil || r.Header.Get("Authorization") != "Bearer x" || r.URL.Path != "/v1/logs" {
			t.Errorf("%v, %v %v", err, r.URL, r.Header)
		}
		if partial {
			b, _ := proto.Marshal(&collector.ExportLogsServiceResponse{PartialSuccess: &collector.ExportLogsPartialSuccess{RejectedLogRecords: 1}})
			w.Header().Set("Content-Type", "application/x-protobuf")
			_, _ = w.Write(b)
		}
	})
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "Authorization=wrong")
	s, err := (&OTLP{URL: url + "/v1/logs", HeadersFile: write(t, "Authorization: Bearer x\n"), TLS: &outbound.TLS{CA: ca}}).Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		if err := s.Send(t.Context(), records(3, 6)); err != nil {
			t.Fatal(err)
		}
		logs := got.ResourceLogs[0].ScopeLogs[0].LogRecords
		if len(logs) != 3 {
			t.Fatalf("got %d records", len(logs))
		}
		for i, r := range logs {
			index, id := r.Attributes[0], r.Attributes[1]
			if string(r.Body.GetStringValue()) != string(records(3, 6)[i].Line) || r.EventName != "Encrypt" || index.Key != "conclave.audit.index" || index.Value.GetIntValue() != int64(3+i) ||
				id.Value.GetStringValue() != fmt.Sprintf("id-%d", 3+i) || r.TimeUnixNano != uint64(records(3, 4)[0].Time.UnixNano()) {
				t.Errorf("got %v", r)
			}
		}
	}
	partial = true
	if err := s.Send(t.Context(), records(3, 6)); err == nil {
		t.Error("records that the collector has rejected are taken for delivered")
	}
}

// TestSyslog reads messages as RFC 5425 frames them.
func TestSyslog(t *testing.T) {
	cert, ca := authority(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	messages, conns := make(chan string, 100), make(chan net.Conn, 2)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns <- conn
			go func() {
				r := bufio.NewReader(conn)
				for {
					var n int
					if _, err := fmt.Fscanf(r, "%d ", &n); err != nil {
						return
					}
					b := make([]byte, n)
					if _, err := io.ReadFull(r, b); err != nil {
						return
					}
					messages <- string(b)
				}
			}()
		}
	}()
	s, err := (&Syslog{Address: l.Addr().String(), TLS: &outbound.TLS{CA: ca}, Hostname: "node 1\n"}).Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Confirms() {
		t.Error("syslog confirms nothing")
	}
	if err := s.Send(t.Context(), records(7, 9)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`<108>1 2030-01-02T03:04:05.000678Z node1 conclave - Encrypt [conclave@32473 index="7" eventID="id-7"] {"eventName":"Encrypt","conclave":{"index":7}}`,
		`<110>1 2030-01-02T03:04:05.000678Z node1 conclave - Encrypt [conclave@32473 index="8" eventID="id-8"] {"eventName":"Encrypt","conclave":{"index":8}}`,
	} {
		if got := <-messages; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	// Once the server is gone, the next Send fails, and the one after connects again.
	(<-conns).Close()
	for end := time.Now().Add(10 * time.Second); ; {
		if err := s.Send(t.Context(), records(9, 10)); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no error after the server has closed the connection")
		}
	}
	if err := s.Send(t.Context(), records(9, 10)); err != nil {
		t.Error(err)
	}
	// A server that reads nothing blocks nobody for ever.
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	d, err := (&Syslog{Address: deaf.Addr().String(), TLS: &outbound.TLS{CA: ca}}).Open()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := d.Send(ctx, records(0, 1)); err == nil {
		t.Error("Send to a server without TLS returned no error")
	}
}

func lines(t *testing.T, dir string) (indexes []string, files int) {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			_, rest, _ := strings.Cut(line, `"index":`)
			indexes = append(indexes, strings.TrimSuffix(rest, "}}\n"))
		}
	}
	return indexes, len(names)
}

// TestFile: each record is in a node's files once, whatever is sent again, after interrupted
// writes and across files.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	open := func() Sender {
		t.Helper()
		s, err := (&File{Directory: dir, MaxBytes: 4096}).Open()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	send := func(s Sender, from, to uint64) {
		t.Helper()
		if err := s.Send(t.Context(), records(from, to)); err != nil {
			t.Fatal(err)
		}
	}
	s := open()
	send(s, 0, 50)
	send(s, 40, 100)
	s.Close()
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	last := names[len(names)-1]
	f, err := os.OpenFile(last, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(`{"eventName":"Encrypt","conclave":{"ind`)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	s = open()
	send(s, 60, 200)
	send(s, 300, 310) // another node has led in between
	s.Close()
	got, files := lines(t, dir)
	var want []string
	for i := range 200 {
		want = append(want, fmt.Sprint(i))
	}
	for i := 300; i < 310; i++ {
		want = append(want, fmt.Sprint(i))
	}
	if strings.Join(got, " ") != strings.Join(want, " ") || files < 3 {
		t.Errorf("%d files with the records %v", files, got)
	}
	if _, err := os.Stat(filepath.Join(dir, "audit-00000000000000000300.jsonl")); err != nil {
		t.Error(err)
	}
	// A file of somebody else is not written to.
	if err := os.WriteFile(filepath.Join(dir, "audit-00000000000000009999.jsonl"), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open().Send(t.Context(), records(310, 311)); err == nil {
		t.Error("a file that is not of the audit log is extended")
	}
}

// TestFileWithGaps: a directory that does not get all records has them in one file, each once,
// also when they are sent again.
func TestFileWithGaps(t *testing.T) {
	dir := t.TempDir()
	for _, again := range []bool{false, true} {
		s, err := (&File{Directory: dir, Gaps: true}).Open()
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range []uint64{3, 20, 90} {
			if err := s.Send(t.Context(), records(from, from+2)); err != nil {
				t.Fatalf("again %v: %v", again, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, files := lines(t, dir); strings.Join(got, " ") != "3 4 20 21 90 91" || files != 1 {
		t.Errorf("%d files with the records %v", files, got)
	}
}
