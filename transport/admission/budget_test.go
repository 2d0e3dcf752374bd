package admission

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func listen(t *testing.T, b *Budget, s Share) *Listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	return b.Listener(inner, s)
}

// connect opens a connection from an address of 127.0.0.0/8 and accepts it.
func connect(t *testing.T, l *Listener, from string) (net.Conn, *Conn) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c, a.(*Conn)
}

func isOpen(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// TestShares: whatever strangers do, authenticated callers have their share.
func TestShares(t *testing.T) {
	reg := prometheus.NewRegistry()
	b, err := New(Config{Files: reservedFiles + minConnections, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, b, Share{Face: "aws", Sixteenths: 4}) // 16 strangers, 4 of one source
	if total, each := l.Door().Strangers(); total != 16 || each != 4 {
		t.Fatalf("%d strangers, %d of one source", total, each)
	}
	client, server := connect(t, l, "127.0.0.1")
	if !server.Promote(Client) || server.Class() != Client {
		t.Fatal("no place for a client")
	}
	slow, _ := connect(t, l, "127.0.0.9")
	var flood []net.Conn
	for i := range 100 {
		c, _ := connect(t, l, fmt.Sprintf("127.0.1.%d", i%10))
		flood = append(flood, c)
	}
	open := 0
	for _, c := range flood {
		if isOpen(c) {
			open++
		}
	}
	if open > 15 {
		t.Errorf("%d strangers are in", open)
	}
	if !isOpen(client) || !isOpen(slow) {
		t.Errorf("open: client %v, the stranger with one connection %v", isOpen(client), isOpen(slow))
	}
	// Operators have their own share, even if clients use all of theirs.
	var clients []*Conn
	for server.door.budget.open[Client].Inside() < b.limits[Client] {
		_, c := connect(t, l, "127.0.0.1")
		if !c.Promote(Client) {
			t.Fatal("the clients' share was not to be had")
		}
		clients = append(clients, c)
	}
	_, over := connect(t, l, "127.0.0.1")
	if over.Promote(Client) || over.Class() != Stranger {
		t.Error("more clients than their share")
	}
	_, op := connect(t, l, "127.0.0.1")
	if !op.Promote(Operator) {
		t.Error("an operator found no place")
	}
	want := fmt.Sprintf(`
		# HELP conclave_connections_refused_total Connections that found no place in their class, by face and class: strangers' are closed, others stay among the strangers or are closed by the face.
		# TYPE conclave_connections_refused_total counter
		conclave_connections_refused_total{class="client",face="aws"} 1
		conclave_connections_refused_total{class="operator",face="aws"} 0
		conclave_connections_refused_total{class="peer",face="aws"} 0
		conclave_connections_refused_total{class="stranger",face="aws"} 0
		# HELP conclave_connections_open Inbound connections open now, by face and by whose they are: stranger, client, operator or peer.
		# TYPE conclave_connections_open gauge
		conclave_connections_open{class="client",face="aws"} %d
		conclave_connections_open{class="operator",face="aws"} 1
		conclave_connections_open{class="peer",face="aws"} 0
		conclave_connections_open{class="stranger",face="aws"} %d
	`, b.limits[Client], l.door.strangers.Used())
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "conclave_connections_refused_total", "conclave_connections_open"); err != nil {
		t.Error(err)
	}
	for _, c := range append(clients, op, over) {
		c.Close()
		c.Close() // gives one place back, not two
	}
	if n := b.open[Client].Inside(); n != 1 {
		t.Errorf("%d clients are counted, one is there", n)
	}
	if over.Promote(Client) {
		t.Error("a closed connection was promoted")
	}
}

func TestBudgetFollowsDescriptors(t *testing.T) {
	if _, err := New(Config{Files: 256}); err == nil || !strings.Contains(err.Error(), "LimitNOFILE") {
		t.Errorf("a limit that no node can serve with: %v", err)
	}
	for _, files := range []uint64{512, 1024, 4096, 20_000, 1 << 20} {
		b, err := New(Config{Files: files})
		if err != nil {
			t.Fatal(err)
		}
		sum := int64(0)
		for c := range classes {
			if b.limits[c] < 16 {
				t.Errorf("%d files: %d places for %ss", files, b.limits[c], c)
			}
			sum += b.limits[c]
		}
		if uint64(sum)+reservedFiles > files {
			t.Errorf("%d files: %d connections", files, sum)
		}
	}
	n, err := fileLimit()
	if err != nil || n == 0 {
		t.Errorf("the process's limit: %d, %v", n, err)
	}
}

// TestConnectionOfARequest: a handler finds its connection, through TLS too.
func TestConnectionOfARequest(t *testing.T) {
	b, err := New(Config{Files: 1024})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, b, Share{Face: "aws", Sixteenths: 16})
	if Of(tls.Client(&Conn{}, nil)) == nil || Of(&net.TCPConn{}) != nil {
		t.Error("Of does not find what it should")
	}
	srv := &http.Server{ConnContext: NewContext, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := FromContext(r.Context())
		fmt.Fprint(w, c.Source() == src("127.0.0.1"), c.Promote(Client), c.Class())
	})}
	go srv.Serve(l)
	defer srv.Close()
	resp, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "true true client" {
		t.Errorf("got %q", body)
	}
}
