package tlog

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/tessera/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// server is a development server that publishes its audit log.
type server struct {
	cmd  *exec.Cmd
	data string            // its data directory
	env  map[string]string // what `conclave env` says
	conn *grpc.ClientConn
	tls  *tls.Config
	keys string // the log's public keys, as `conclave audit public-key` prints them
	// authorization is the header that lets its reader have the entries.
	authorization string
}

// start starts a server, which ends with the test.
func start(t *testing.T) *server {
	t.Helper()
	s := &server{data: filepath.Join(t.TempDir(), "data"), env: make(map[string]string)}
	home := t.TempDir()
	s.cmd = exec.Command(conclave, "dev", "--data", s.data, "--tls", "--publish-audit-log", "--account", "000000000000", "--region", "us-east-1",
		"--aws-listen", ":0", "--grpc-listen", ":0", "--peer-listen", ":0", "--ops-listen", ":0")
	// It tells users where it is in this directory, not in that of the real ones.
	s.cmd.Env = append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home)
	var log bytes.Buffer
	s.cmd.Stderr, s.cmd.WaitDelay = &log, 5*time.Second
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil || t.Failed() {
			t.Logf("the server: %v\n%s", err, log.String())
		}
	})
	sh := exec.CommandContext(t.Context(), "sh", "-c", `lines=$("$0" env --wait 30s --data "$1") && eval "$lines" && env`, conclave, s.data)
	sh.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_RUNTIME_DIR=" + home}
	out, err := sh.Output()
	if err != nil {
		t.Fatalf("conclave env: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		s.env[name] = value
	}
	ca, err := os.ReadFile(s.env["CONCLAVE_CA"])
	if err != nil {
		t.Fatal(err)
	}
	s.tls = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13}
	if !s.tls.RootCAs.AppendCertsFromPEM(ca) {
		t.Fatal("the CA file has no certificate")
	}
	s.keys = s.command(t, "audit", "public-key")
	s.authorization = "Bearer " + s.openSession(t)
	return s
}

// stop stops the server as an operator does, once.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	cmd := s.cmd
	s.cmd = nil
	timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Process.Signal(os.Interrupt)
	return cmd.Wait()
}

// try runs a command of Conclave's, and returns what it prints and whether it exits with 0.
func (s *server) try(t *testing.T, stdin []byte, args ...string) (string, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, conclave, args...)
	for name, value := range s.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stdin = bytes.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if ctx.Err() != nil {
		t.Fatalf("conclave %v: %v\n%s", args, err, errs.String())
	}
	return string(out) + errs.String(), err == nil
}

func (s *server) command(t *testing.T, args ...string) string {
	t.Helper()
	out, ok := s.try(t, nil, args...)
	if !ok {
		t.Fatalf("conclave %v: %s", args, out)
	}
	return out
}

// openSession opens a session of the root user, as any client over gRPC does, and returns its
// token.
func (s *server) openSession(t *testing.T) string {
	t.Helper()
	conn, err := grpc.NewClient(strings.TrimPrefix(s.env["CONCLAVE_ADDRESS"], "https://"), grpc.WithTransportCredentials(credentials.NewTLS(s.tls)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.conn = conn
	in := &kmspb.CreateSessionRequest{AccessKeyId: s.env["AWS_ACCESS_KEY_ID"], Time: time.Now().Unix(), Nonce: make([]byte, 32)}
	rand.Read(in.Nonce)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := kmspb.NewSessionClient(conn).Create(ctx, in, grpc.PerRPCCredentials(sessionProof{in, s.env["AWS_SECRET_ACCESS_KEY"]}))
	if err != nil {
		t.Fatal(err)
	}
	return out.GetToken()
}

// sessionProof proves that its caller knows the secret access key, on one connection.
type sessionProof struct {
	in     *kmspb.CreateSessionRequest
	secret string
}

func (p sessionProof) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	call, _ := credentials.RequestInfoFromContext(ctx)
	info, ok := call.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, errors.New("the connection is without TLS")
	}
	channel, err := info.State.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil, err
	}
	mac := func(key, message string) string {
		h := hmac.New(sha256.New, []byte(key))
		h.Write([]byte(message))
		return string(h.Sum(nil))
	}
	message := fmt.Sprintf("conclave session v2\n%s\n%d\n%x\n%s", p.in.AccessKeyId, p.in.Time, p.in.Nonce, hex.EncodeToString(channel))
	return map[string]string{"conclave-proof-bin": mac(mac("CONCLAVE1"+p.secret, "session"), message)}, nil
}

func (sessionProof) RequireTransportSecurity() bool { return true }

// record makes n records, by requests.
func (s *server) record(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", s.authorization), time.Minute)
	defer cancel()
	kms := kmspb.NewKMSClient(s.conn)
	size := int32(16)
	for range n {
		if _, err := kms.GenerateRandom(ctx, &kmspb.GenerateRandomRequest{NumberOfBytes: &size}); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *server) url() string { return s.env["AWS_ENDPOINT_URL_KMS"] + "/tlog/" }

// http returns a client of the published log that may read the entries too.
func (s *server) http() *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: authorized{s.authorization, &http.Transport{TLSClientConfig: s.tls, ForceAttemptHTTP2: true}}}
}

type authorized struct {
	header string
	to     http.RoundTripper
}

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", a.header)
	return a.to.RoundTrip(r)
}

// fetcher returns Tessera's reader of the published log.
func (s *server) fetcher(t *testing.T) *client.HTTPFetcher {
	t.Helper()
	u, err := url.Parse(s.url())
	if err != nil {
		t.Fatal(err)
	}
	f, err := client.NewHTTPFetcher(u, s.http())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// published waits until the published checkpoint covers so many records, and returns it.
func (s *server) published(t *testing.T, size uint64) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		raw, err := s.fetcher(t).ReadCheckpoint(ctx)
		if err == nil {
			if c, err := checkpoint.Parse(raw, s.keys); err != nil {
				t.Fatal(err)
			} else if c.Size >= size {
				return raw
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("no checkpoint covers %d records after 30 s: %v", size, err)
		}
	}
}

// keyFile returns a file with the log's public keys.
func (s *server) keyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.pub")
	if err := os.WriteFile(path, []byte(s.keys), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
