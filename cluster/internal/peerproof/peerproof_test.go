package peerproof

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
)

func exported(t *testing.T, c *peerport.Conn) []byte {
	t.Helper()
	cs := c.ConnectionState()
	b, err := cs.ExportKeyingMaterial(exporter, nil, exporterSize)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signedFrame is a frame with a signature of the cluster's origin key.
func signedFrame(c *fsmpb.Cluster, generation uint32, domain string, d [32]byte) []byte {
	p := Proof{generation: generation, signature: ed25519.Sign(clustertest.OriginKey, origin.Message(c, domain, d))}
	return p.frame()
}

// exchanged is what n1, which is that end of a connection, makes of what the other end, n2,
// sends as its frame. The other end sends nothing more when a frame is cut short.
func exchanged(t *testing.T, ca *pki.CA, end Role, frame func(conn *peerport.Conn) []byte) (*Proof, error) {
	t.Helper()
	var theirs, ours *peerport.Conn
	if end == Acceptor {
		theirs, ours = clustertest.RaftPair(t, ca, "n2", "n1")
	} else {
		ours, theirs = clustertest.RaftPair(t, ca, "n1", "n2")
	}
	if b := frame(theirs); b != nil {
		if _, err := theirs.Write(append(preface(), b...)); err != nil {
			t.Fatal(err)
		}
		if len(b) < 1+proofSize && b[0] != 0 {
			_ = theirs.CloseWrite()
		}
	}
	return Exchange(ours, "n1", end, clustertest.SignOrigin, time.Now().Add(500*time.Millisecond))
}

// A proof is for one connection, one end of it, one prover, one verifier and one
// cluster.
func TestProofs(t *testing.T) {
	ca := clustertest.NewCA(t)
	other := clustertest.Cluster()
	other.Id[0] ^= 1
	sign := func(conn *peerport.Conn, prover, verifier string, end Role) []byte {
		return signedFrame(clustertest.Cluster(), 1, domain, digest(prover, verifier, end, exported(t, conn)))
	}
	for name, tt := range map[string]struct {
		frame func(conn *peerport.Conn) []byte
		good  bool
	}{
		"a good one": {func(conn *peerport.Conn) []byte { return sign(conn, "n2", "n1", Dialer) }, true},
		"none":       {func(*peerport.Conn) []byte { return []byte{0} }, false},
		"of another connection": {func(*peerport.Conn) []byte {
			before, _ := clustertest.RaftPair(t, ca, "n2", "n1")
			return sign(before, "n2", "n1", Dialer)
		}, false},
		"of the other end":  {func(conn *peerport.Conn) []byte { return sign(conn, "n2", "n1", Acceptor) }, false},
		"of another prover": {func(conn *peerport.Conn) []byte { return sign(conn, "n3", "n1", Dialer) }, false},
		"for another node":  {func(conn *peerport.Conn) []byte { return sign(conn, "n2", "n3", Dialer) }, false},
		"this node's own":   {func(conn *peerport.Conn) []byte { return sign(conn, "n1", "n2", Acceptor) }, false},
		"of another cluster": {func(conn *peerport.Conn) []byte {
			return signedFrame(other, 1, domain, digest("n2", "n1", Dialer, exported(t, conn)))
		}, false},
		"of another kind": {func(conn *peerport.Conn) []byte {
			return signedFrame(clustertest.Cluster(), 1, "conclave unsealed v1", digest("n2", "n1", Dialer, exported(t, conn)))
		}, false},
		"of an unknown generation": {func(conn *peerport.Conn) []byte {
			return signedFrame(clustertest.Cluster(), 2, domain, digest("n2", "n1", Dialer, exported(t, conn)))
		}, false},
		"of no generation": {func(conn *peerport.Conn) []byte {
			return signedFrame(clustertest.Cluster(), 0, domain, digest("n2", "n1", Dialer, exported(t, conn)))
		}, false},
		"with a flipped bit": {func(conn *peerport.Conn) []byte {
			b := sign(conn, "n2", "n1", Dialer)
			b[20] ^= 1
			return b
		}, false},
	} {
		p, err := exchanged(t, ca, Acceptor, tt.frame)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := p.Good(clustertest.Cluster()); got != tt.good {
			t.Errorf("%s: proven %v", name, got)
		}
	}
	p, err := exchanged(t, ca, Dialer, func(conn *peerport.Conn) []byte { return sign(conn, "n2", "n1", Acceptor) })
	if err != nil || !p.Good(clustertest.Cluster()) {
		t.Errorf("as the dialer: %v", err)
	}
}

// What begins with anything but a frame is closed, and soon.
func TestFrames(t *testing.T) {
	ca := clustertest.NewCA(t)
	for name, tt := range map[string]struct {
		frame []byte
		want  error
	}{
		"truncated": {[]byte{proofSize}, io.EOF},
		"cut short": {append([]byte{proofSize}, make([]byte, 20)...), io.ErrUnexpectedEOF},
		"oversized": {append([]byte{255}, make([]byte, 255)...), ErrFrame},
		"too short": {append([]byte{proofSize - 1}, make([]byte, proofSize-1)...), ErrFrame},
		"nothing":   {nil, context.DeadlineExceeded},
		"Raft":      {[]byte{1, 0x85}, ErrFrame},
	} {
		began := time.Now()
		_, err := exchanged(t, ca, Acceptor, func(*peerport.Conn) []byte { return tt.frame })
		var ne net.Error
		timeout := errors.As(err, &ne) && ne.Timeout()
		if tt.want == context.DeadlineExceeded && !timeout || tt.want != context.DeadlineExceeded && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: closed after %v", name, took)
		}
	}
	if _, err := exchanged(t, ca, Acceptor, func(*peerport.Conn) []byte { return []byte{0} }); err != nil {
		t.Error(err)
	}
}

// A connection of another Raft group is closed, whatever is proven over it, and so is
// one that ends before it says which group it is for.
func TestConnOfAnotherGroup(t *testing.T) {
	ca := clustertest.NewCA(t)
	for _, tt := range []struct {
		preface []byte
		want    error
	}{
		{[]byte{0, 0, 0, 1}, wire.ErrGroup},
		{[]byte{1, 0, 0, 0}, wire.ErrGroup},
		{[]byte{0, 0, 0}, io.ErrUnexpectedEOF},
		{[]byte{0, 0, 0, 0}, nil},
	} {
		theirs, ours := clustertest.RaftPair(t, ca, "n2", "n1")
		frame := signedFrame(clustertest.Cluster(), 1, domain, digest("n2", "n1", Dialer, exported(t, theirs)))
		if len(tt.preface) < prefaceSize {
			frame = nil
		}
		if _, err := theirs.Write(append(tt.preface, frame...)); err != nil {
			t.Fatal(err)
		}
		_ = theirs.CloseWrite()
		if _, err := Exchange(ours, "n1", Acceptor, clustertest.SignOrigin, time.Now().Add(5*time.Second)); !errors.Is(err, tt.want) {
			t.Errorf("%x: %v, want %v", tt.preface, err, tt.want)
		}
	}
}

// The proof of a frame has the length that its first byte says.
func TestFrameSize(t *testing.T) {
	p := Proof{generation: 7, signature: make([]byte, ed25519.SignatureSize)}
	b := p.frame()
	if len(b) != 1+proofSize || b[0] != proofSize || binary.BigEndian.Uint32(b[1:]) != 7 {
		t.Errorf("a frame of %d bytes, %x", len(b), b[:5])
	}
}
