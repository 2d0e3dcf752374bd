package cluster

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// TestPeerPortAbuse knocks with everything but a member's certificate.
func TestPeerPortAbuse(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	n := c.leader()
	addr := c.peers["n1"]
	pair := func(ca *pki.CA, r pki.IssueRequest) tls.Certificate {
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
	cert := func(ca *pki.CA, r pki.IssueRequest) []tls.Certificate { return []tls.Certificate{pair(ca, r)} }
	good := pki.IssueRequest{Kind: pki.KindNode, Name: "n1", Validity: time.Hour}
	expired := pki.IssueRequest{Kind: pki.KindNode, Name: "n1", Validity: -time.Minute}
	stranger := pki.IssueRequest{Kind: pki.KindNode, Name: "stranger", Validity: time.Hour}
	operator := pki.IssueRequest{Kind: pki.KindOperator, Name: "n1", Validity: time.Hour}
	for name, conf := range map[string]*tls.Config{
		"no certificate": {},
		"foreign CA":     {Certificates: cert(clustertest.NewCA(t), good)},
		"expired":        {Certificates: cert(c.ca, expired)},
		"other node":     {Certificates: cert(c.ca, stranger)},
		"operator":       {Certificates: cert(c.ca, operator)},
		"TLS 1.2":        {Certificates: cert(c.ca, good), MaxVersion: tls.VersionTLS12},
		"no protocol":    {Certificates: cert(c.ca, good), NextProtos: []string{}},
		"wrong protocol": {Certificates: cert(c.ca, good), NextProtos: []string{"http/1.1"}},
	} {
		for _, alpn := range []string{pki.ALPNRaft, pki.ALPNPeer} {
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
	if closed(t, addr, &tls.Config{InsecureSkipVerify: true, Certificates: cert(c.ca, good), NextProtos: []string{pki.ALPNPeer}}) {
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
		conn.SetDeadline(time.Now().Add(peerport.HandshakeTimeout + 2*time.Second))
		conn.Write(junk)
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection was kept", name)
		}
		conn.Close()
	}
	mustPropose(t, n, clustertest.Record())
	if open, _ := n.port.Open(""); open > 1 {
		t.Errorf("%d connections are still counted", open)
	}
	c.noFaults()
}

// recordingConn keeps what was written to it.
type recordingConn struct {
	net.Conn
	sent bytes.Buffer
}

func (c *recordingConn) Write(b []byte) (int, error) {
	c.sent.Write(b)
	return c.Conn.Write(b)
}

// TestReplayedConnection sends again what a member has sent, byte for byte.
func TestReplayedConnection(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	addr := c.peers["n1"]
	certPEM, keyPEM, err := c.ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: "n1", Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(peerport.HandshakeTimeout + 2*time.Second))
		return conn
	}
	recorded := &recordingConn{Conn: dial()}
	conn := tls.Client(recorded, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, NextProtos: []string{pki.ALPNPeer}})
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 9) // of the server's settings
	if _, err := io.ReadFull(conn, frame); err != nil || frame[3] != 4 {
		t.Fatalf("the member is not answered: got % x, %v: the test proves nothing", frame, err)
	}
	replayed := dial()
	if _, err := replayed.Write(recorded.sent.Bytes()); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(replayed)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection was kept")
	}
	// The server hello, and an alert since the client's certificate cannot be decrypted.
	t.Logf("%d bytes came back: %v", len(answer), err)
	mustPropose(t, c.leader(), clustertest.Record())
	c.noFaults()
}

// flood opens silent connections to addr, each from another of the addresses
// 127.a.b.1, and goes on until the test ends. It returns once there were n.
func flood(t *testing.T, addr string, n int) {
	t.Helper()
	to := mustAddr(t, addr)
	reached, stop, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		var open []net.Conn
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		for i := 0; ; i++ {
			if i == n {
				close(reached)
			}
			select {
			case <-stop:
				return
			default:
			}
			c, err := net.DialTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, byte(1+i/100%100), byte(i%100), 1)}, to)
			if err != nil {
				continue
			}
			open = append(open, c)
			if len(open) > 2*n { // let go of by the other end long ago
				open[0].Close()
				open = open[1:]
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-ended
	})
	select {
	case <-reached:
	case <-time.After(time.Minute):
		t.Fatal("void: the connections were not to be had")
	}
}

// TestSlowStrangersDoNotLockOut: while strangers at thousands of addresses open
// connections that never say a word, nodes come in.
func TestSlowStrangersDoNotLockOut(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	n := c.nodes["n1"]
	total, each := n.port.Door().Strangers()
	flood(t, c.peers["n1"], int(2*total))
	// From the address of a known node: as many as it may have, and one more.
	for range each + 1 {
		conn, err := net.Dial("tcp", c.peers["n1"])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	for _, from := range []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)} {
		for range 5 {
			// A machine that is busy enough lets newer strangers crowd out a handshake;
			// nodes try again.
			clustertest.Eventually(t, time.Minute, fmt.Sprintf("connection of a node from %v beside a flood of strangers", from), func() bool {
				conn, err := net.DialTCP("tcp", &net.TCPAddr{IP: from}, mustAddr(t, c.peers["n1"]))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				tc := tls.Client(conn, clustertest.Identity(t, c.ca, "n1").Client("n1", pki.ALPNPeer))
				return tc.HandshakeContext(within(t, peerport.HandshakeTimeout)) == nil
			})
		}
	}
	if open, _ := n.port.Open(""); open > int(total)+20 {
		t.Errorf("%d connections are open, strangers may have %d", open, total)
	}
}

// TestOneNodesConnections: who has one node's key does not take the places of all.
func TestOneNodesConnections(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	mustPropose(t, c.nodes["n1"], clustertest.Record()) // it is a member by then
	var open []*tls.Conn                                // of Raft, which waits for as long as the other end likes, once that has said that it proves nothing
	for range peerport.MaxOfNode {
		conn, err := tls.Dial("tcp", c.peers["n1"], clustertest.Identity(t, c.ca, "n1").Client("n1", pki.ALPNRaft))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := peerproof.Exchange(&peerport.Conn{Conn: conn, Node: "n1"}, "n1", peerproof.Dialer, nil, time.Now().Add(5*time.Second)); err != nil { // it was let in, before the next one
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	one := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{pki.ALPNRaft}, GetClientCertificate: clustertest.Identity(t, c.ca, "n1").Client("n1", pki.ALPNRaft).GetClientCertificate}
	within := time.Now().Add(10 * time.Second)
	for !closed(t, c.peers["n1"], one) {
		if time.Now().After(within) {
			t.Fatalf("one node has more than %d connections", peerport.MaxOfNode)
		}
	}
	open[0].Close()
	for closed(t, c.peers["n1"], one) {
		if time.Now().After(within) {
			t.Fatal("the place of a closed connection is not given back")
		}
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
	t.Parallel()
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	client, err := f.peers.Client(l.id)
	if err != nil {
		t.Fatal(err)
	}
	unknown := clustertest.Record()
	unknown.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	batch := func(b *fsmpb.Batch) *clusterpb.SubmitRequest {
		return &clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Batch{Batch: b}}
	}
	many := &fsmpb.Batch{Node: f.id, Seq: 1}
	for range commit.MaxBatchRecords + 1 {
		many.Records = append(many.Records, &fsmpb.Record{})
	}
	odd := &fsmpb.RegisterNode{Node: f.id, Incarnation: 1 << 40}
	odd.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	for _, n := range c.up() { // each registers first
		mustPropose(t, n, clustertest.Record())
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
	if _, err := client.Hello(within(t, 20*time.Second), &clusterpb.HelloRequest{Node: "n9"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Hello in another's name: %v", err)
	}
	if got := l.State().Index(); got != before {
		t.Errorf("index %d, was %d: something entered the log", got, before)
	}
	c.noFaults()
}
