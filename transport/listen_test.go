package transport

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve starts a server on loopback and returns its address.
func serve(t *testing.T, cfg HTTPConfig, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	srv := NewHTTPServer(cfg, h)
	done := make(chan error, 1)
	go func() { done <- Serve(srv, l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	io.WriteString(w, r.Proto)
})

// A client that sends its headers or its body slowly, or sends nothing, is
// disconnected.
func TestSlowPeersAreCutOff(t *testing.T) {
	limits := Limits{HeaderTimeout: 200 * time.Millisecond, ReadTimeout: 400 * time.Millisecond, IdleTimeout: 200 * time.Millisecond}
	var bodyErr atomic.Value
	addr := serve(t, HTTPConfig{Limits: limits}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			bodyErr.Store(err)
		}
	}))
	for _, tc := range []struct{ name, send, drip string }{
		{"nothing", "", ""},
		{"headers", "POST / HTTP/1.1\r\nHost: x\r\n", "X"},
		{"body", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", "x"},
		{"idle", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, addr)
			io.WriteString(c, tc.send)
			stop := make(chan struct{})
			go func() {
				for tc.drip != "" {
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
						io.WriteString(c, tc.drip)
					}
				}
			}()
			defer close(stop)
			start := time.Now()
			_, err := io.Copy(io.Discard, c)
			if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() {
				t.Fatalf("still open after %v", time.Since(start))
			}
		})
	}
	if bodyErr.Load() == nil {
		t.Error("the slow body was read to its end")
	}
}

func TestHeaderLimit(t *testing.T) {
	addr := serve(t, HTTPConfig{}, hello)
	c := dial(t, addr)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nX-Big: "+strings.Repeat("a", 64<<10)+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %s, want 431", resp.Status)
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestTLSVersionsAndProtocols(t *testing.T) {
	cert := selfSigned(t)
	addr := serve(t, HTTPConfig{TLS: &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
	}}, hello)
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)

	for _, tc := range []struct {
		max  uint16
		ok   bool
		name string
	}{{tls.VersionTLS13, true, "1.3"}, {tls.VersionTLS12, true, "1.2"}, {tls.VersionTLS11, false, "1.1"}} {
		c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS10, MaxVersion: tc.max})
		if (err == nil) != tc.ok {
			t.Errorf("TLS %s: %v, want success %v", tc.name, err, tc.ok)
		}
		if err == nil {
			if tc.max == tls.VersionTLS13 && c.ConnectionState().CurveID != tls.X25519MLKEM768 {
				t.Errorf("key exchange %v, want X25519MLKEM768", c.ConnectionState().CurveID)
			}
			c.Close()
		}
	}
	for _, http2 := range []bool{true, false} {
		tr := &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: "localhost"},
			ForceAttemptHTTP2: http2,
		}
		if !http2 {
			tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		resp, err := (&http.Client{Transport: tr}).Post("https://"+addr+"/", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		want := "HTTP/1.1"
		if http2 {
			want = "HTTP/2.0"
		}
		if string(body) != want {
			t.Errorf("served as %s, want %s", body, want)
		}
	}
}
