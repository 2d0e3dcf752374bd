package cluster

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

func TestCertificateIdentity(t *testing.T) {
	for raw, want := range map[string]string{
		"conclave://node/n1":           "n1",
		"conclave://operator/jo@x.org": "jo@x.org",
		"conclave://node/N1":           "",
		"conclave://node/":             "",
		"conclave://node/a/b":          "",
		"conclave://node/n1?x":         "",
		"conclave://node/n1#x":         "",
		"conclave://u@node/n1":         "",
		"conclave://node:1/n1":         "",
		"conclave://node/%6e1":         "",
		"conclave:node/n1":             "",
		"conclave://admin/n1":          "",
		"spiffe://node/n1":             "",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		_, got, err := CertificateIdentity(&x509.Certificate{URIs: []*url.URL{u}})
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", raw, got, err, want)
		}
	}
	u := identityURI(KindNode, "n1")
	if _, _, err := CertificateIdentity(&x509.Certificate{URIs: []*url.URL{u, identityURI(KindNode, "n2")}}); err == nil {
		t.Error("a certificate of two nodes was taken")
	}
}

func TestCARoundTrip(t *testing.T) {
	ca := testCA(t)
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(ca.CertPEM(), key)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := testCA(t).KeyPEM(); err != nil {
		t.Fatal(err)
	} else if _, err := LoadCA(ca.CertPEM(), other); err == nil {
		t.Error("a CA was loaded with another's key")
	}
	testIdentity(t, again, "n1")
	for _, r := range []IssueRequest{
		{Kind: "admin", Name: "n1", Validity: time.Hour}, {Kind: KindNode, Name: "N/1", Validity: time.Hour},
		{Kind: KindOperator, Name: "", Validity: time.Hour}, {Kind: KindNode, Name: "n1"},
	} {
		if _, _, err := ca.Issue(r); err == nil {
			t.Errorf("issued %+v", r)
		}
	}
}

func TestIdentityReload(t *testing.T) {
	ca, dir := testCA(t), t.TempDir()
	write := func(node string) {
		cert, key, err := ca.Issue(IssueRequest{Kind: KindNode, Name: node, Validity: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"c": cert, "k": key, "ca": ca.CertPEM()} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("n1")
	id, err := LoadIdentity(filepath.Join(dir, "c"), filepath.Join(dir, "k"), filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	serial := id.loaded.Load().cert.Leaf.SerialNumber
	write("n1")
	if err := id.Reload(); err != nil {
		t.Fatal(err)
	}
	if id.loaded.Load().cert.Leaf.SerialNumber.Cmp(serial) == 0 {
		t.Error("the certificate is the old one")
	}
	write("n2")
	if err := id.Reload(); err == nil || id.NodeID() != "n1" {
		t.Errorf("a reload made the node another: %v, %s", err, id.NodeID())
	}
	os.WriteFile(filepath.Join(dir, "k"), []byte("x"), 0o600)
	if err := id.Reload(); err == nil {
		t.Error("a broken key was loaded")
	}
}

// TestPeerPortAbuse knocks with everything but a member's certificate.
func TestPeerPortAbuse(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.leader()
	addr := c.peers["n1"]
	pair := func(ca *CA, r IssueRequest) tls.Certificate {
		certPEM, keyPEM, err := ca.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		p, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	cert := func(ca *CA, r IssueRequest) []tls.Certificate { return []tls.Certificate{pair(ca, r)} }
	good := IssueRequest{Kind: KindNode, Name: "n1", Validity: time.Hour}
	expired := IssueRequest{Kind: KindNode, Name: "n1", Validity: -time.Minute}
	stranger := IssueRequest{Kind: KindNode, Name: "stranger", Validity: time.Hour}
	operator := IssueRequest{Kind: KindOperator, Name: "n1", Validity: time.Hour}
	for name, conf := range map[string]*tls.Config{
		"no certificate": {},
		"foreign CA":     {Certificates: cert(testCA(t), good)},
		"expired":        {Certificates: cert(c.ca, expired)},
		"other node":     {Certificates: cert(c.ca, stranger)},
		"operator":       {Certificates: cert(c.ca, operator)},
		"TLS 1.2":        {Certificates: cert(c.ca, good), MaxVersion: tls.VersionTLS12},
		"no protocol":    {Certificates: cert(c.ca, good), NextProtos: []string{}},
		"wrong protocol": {Certificates: cert(c.ca, good), NextProtos: []string{"http/1.1"}},
	} {
		for _, alpn := range []string{alpnRaft, alpnPeer} {
			t.Run(name+" "+alpn, func(t *testing.T) {
				conf := conf.Clone()
				conf.InsecureSkipVerify = true
				if conf.NextProtos == nil {
					conf.NextProtos = []string{alpn}
				}
				if !closed(t, addr, conf) {
					t.Error("the connection was kept")
				}
			})
		}
	}
	if closed(t, addr, &tls.Config{InsecureSkipVerify: true, Certificates: cert(c.ca, good), NextProtos: []string{alpnPeer}}) {
		t.Error("a member's connection was refused: the test proves nothing")
	}
	for name, junk := range map[string][]byte{
		"plaintext": []byte("GET / HTTP/1.1\r\n\r\n"), "http2": []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		"garbage": bytes.Repeat([]byte{0xa5, 0, 0xff}, 1<<20), "big record": append([]byte{22, 3, 1, 0xff, 0xff}, make([]byte, 1<<16)...),
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(handshakeTimeout + 2*time.Second))
		conn.Write(junk)
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection was kept", name)
		}
		conn.Close()
	}
	mustPropose(t, n, record())
	n.port.mu.Lock()
	open := len(n.port.conns)
	n.port.mu.Unlock()
	if open > 1 {
		t.Errorf("%d connections are still counted", open)
	}
	c.noFaults()
}

// TestSlowStrangersDoNotLockOut opens connections that never say a word.
func TestSlowStrangersDoNotLockOut(t *testing.T) {
	c := startCluster(t, 1, nil)
	for range 3 * maxHandshakes {
		conn, err := net.Dial("tcp", c.peers["n1"])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	conn, err := net.DialTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, mustAddr(t, c.peers["n1"]))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tc := tls.Client(conn, testIdentity(t, c.ca, "n1").client("n1", alpnPeer))
	if err := tc.HandshakeContext(within(t, handshakeTimeout/2)); err != nil {
		t.Errorf("a node cannot connect beside %d silent strangers: %v", 3*maxHandshakes, err)
	}
}

func mustAddr(t *testing.T, s string) *net.TCPAddr {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// closed reports whether the server ends the connection by itself.
func closed(t *testing.T, addr string, conf *tls.Config) bool {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, conf)
	if err != nil {
		return true
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	// In TLS 1.3 the client learns of a refusal with its first read.
	for {
		if _, err = conn.Read(make([]byte, 512)); err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

// TestPeerServiceRefusesForeignBatches speaks with a member's certificate for
// another member.
func TestPeerServiceRefusesForeignBatches(t *testing.T) {
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	client, err := f.peers.client(l.id)
	if err != nil {
		t.Fatal(err)
	}
	unknown := record()
	unknown.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	batch := func(b *fsmpb.Batch) *clusterpb.SubmitRequest {
		return &clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Batch{Batch: b}}
	}
	many := &fsmpb.Batch{Node: f.id, Seq: 1}
	for range maxBatchRecords + 1 {
		many.Records = append(many.Records, &fsmpb.Record{})
	}
	odd := &fsmpb.RegisterNode{Node: f.id, Incarnation: 1 << 40}
	odd.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	for _, n := range c.up() { // each registers first
		mustPropose(t, n, record())
	}
	before := l.State().Index()
	for name, m := range map[string]*clusterpb.SubmitRequest{
		"another's batch":        batch(&fsmpb.Batch{Node: l.id, Incarnation: 1, Seq: 99}),
		"another's registration": {Message: &clusterpb.SubmitRequest_Register{Register: &fsmpb.RegisterNode{Node: l.id, Incarnation: 99}}},
		"unknown registration":   {Message: &clusterpb.SubmitRequest_Register{Register: odd}},
		"unknown field":          batch(&fsmpb.Batch{Node: f.id, Incarnation: 1, Seq: 99, Records: []*fsmpb.Record{unknown}}),
		"too many":               batch(many),
		"seq 0":                  batch(&fsmpb.Batch{Node: f.id, Incarnation: 1}),
		"empty":                  {},
	} {
		stream, err := client.Submit(within(t, 5*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		stream.Send(m)
		r, err := stream.Recv()
		if c := status.Code(err); c != codes.PermissionDenied && c != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if _, err := client.Hello(within(t, time.Second), &clusterpb.HelloRequest{Node: "n9"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Hello in another's name: %v", err)
	}
	if got := l.State().Index(); got != before {
		t.Errorf("index %d, was %d: something entered the log", got, before)
	}
	c.noFaults()
}

// TestDialWantsThatNode reaches another node than the one that was called.
func TestDialWantsThatNode(t *testing.T) {
	c := startCluster(t, 3, nil)
	n := c.nodes["n1"]
	ctx := within(t, 5*time.Second)
	for _, alpn := range []string{alpnRaft, alpnPeer} {
		if conn, err := n.peers.connectTo(ctx, "n2", c.peers["n3"], alpn); err == nil {
			conn.Close()
			t.Errorf("%s: n3 was taken for n2", alpn)
		}
		conn, err := n.peers.connectTo(ctx, "n2", c.peers["n2"], alpn)
		if err != nil {
			t.Errorf("%s: %v", alpn, err)
			continue
		}
		conn.Close()
	}
	// A server of a foreign CA, or an operator's.
	foreign := testIdentity(t, testCA(t), "n2")
	ln, err := tls.Listen("tcp", "127.0.0.1:0", foreign.server(func(string, string) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	if conn, err := n.peers.connectTo(ctx, "n2", ln.Addr().String(), alpnPeer); err == nil {
		conn.Close()
		t.Error("a foreign CA's n2 was taken for n2")
	}
}
