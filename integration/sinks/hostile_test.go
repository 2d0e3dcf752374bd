package sinks

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// hostile is a receiver that does not do what a receiver should.
type hostile struct {
	name, url string
	asked     *atomic.Int64 // how often the node has connected to it, or asked it
	confirms  bool          // it does say that it has what it is sent
}

// hostiles starts receivers that do what a receiver should not; what must never be reached is
// counted by strayed.
func hostiles(t *testing.T) (list []hostile, strayed *atomic.Int64) {
	t.Helper()
	elsewhere := serve(t, "elsewhere", func(http.ResponseWriter, *http.Request) {})
	return []hostile{
		listen(t, "blocked", func(net.Conn) {}), // it never reads
		listen(t, "slow", func(c net.Conn) {
			for b := make([]byte, 1); ; time.Sleep(time.Second) {
				if _, err := c.Read(b); err != nil {
					return
				}
			}
		}),
		serve(t, "failing", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }),
		confirming(serve(t, "endless", func(w http.ResponseWriter, r *http.Request) {
			for chunk := make([]byte, 64<<10); r.Context().Err() == nil; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		})),
		serve(t, "redirecting", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.url, http.StatusTemporaryRedirect)
		}),
		impostor(t, elsewhere),
	}, elsewhere.asked
}

// listen starts a receiver that handles connections itself.
func listen(t *testing.T, name string, handle func(net.Conn)) hostile {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := hostile{name: name, url: "http://" + l.Addr().String(), asked: new(atomic.Int64)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.asked.Add(1)
			t.Cleanup(func() { c.Close() })
			go handle(c)
		}
	}()
	return h
}

// serve starts a receiver that answers requests.
func serve(t *testing.T, name string, answer http.HandlerFunc) hostile {
	t.Helper()
	h := hostile{name: name, asked: new(atomic.Int64)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		answer(w, r)
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	h.url = s.URL
	return h
}

func confirming(h hostile) hostile {
	h.confirms = true
	return h
}

// impostor starts a receiver whose certificate no CA of the node has issued. What it is sent in
// spite of that counts as having strayed.
func impostor(t *testing.T, elsewhere hostile) hostile {
	t.Helper()
	h := hostile{name: "impostor", asked: new(atomic.Int64)}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.asked.Add(1) }))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			h.asked.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	h.url = s.URL
	return h
}

// configure writes a configuration with some receivers, and returns its name.
func configure(t *testing.T, list ...hostile) string {
	t.Helper()
	dir := t.TempDir()
	secret := write(t, filepath.Join(dir, "secret"), base64.StdEncoding.EncodeToString(make([]byte, 32)))
	var sinks []string
	for _, h := range list {
		sinks = append(sinks, fmt.Sprintf(`{"name": %q, "webhook": {"url": %q, "secretFile": %q}}`, h.name, h.url, secret))
	}
	return write(t, filepath.Join(dir, "sinks.json"), `{"sinks": [`+strings.Join(sinks, ", ")+`]}`)
}
