package rafttransport

import (
	"errors"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/internal/raftscan"
)

// A node whose cluster is not initialised yet takes a proof, and can tell later what it is worth.
func TestConnProofBeforeFounding(t *testing.T) {
	n := newTestNode()
	d := n.transport(t).door
	n.cluster.Store(nil)
	n.sealed.Store(true)
	theirs, ours := clustertest.RaftPair(t, clustertest.NewCA(t), "n2", "n1")
	go func() {
		_, _ = peerproof.Exchange(theirs, "n2", peerproof.Dialer, clustertest.SignOrigin, time.Now().Add(5*time.Second))
	}()
	rc, err := d.introduce(ours, peerproof.Acceptor, time.Now().Add(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if d.connProven(rc) {
		t.Error("something is proven before there is a cluster")
	}
	if d.proveMore(rc) {
		t.Error("a sealed node has more to prove")
	}
	n.sealed.Store(false)
	n.cluster.Store(clustertest.Cluster())
	if !d.connProven(rc) {
		t.Error("the proof is not good after the founding")
	}
	if !d.proveMore(rc) {
		t.Error("a connection over which this node did not prove itself is kept")
	}
}

// An answer ends the connection when it is too long.
func TestLongAnswers(t *testing.T) {
	ours, theirs := clustertest.RaftPair(t, clustertest.NewCA(t), "n1", "n2")
	out := &outbound{conn: &conn{Conn: ours}}
	go func() { _, _ = theirs.Write(make([]byte, 3*raftscan.MaxAnswer)) }()
	b := make([]byte, 1000)
	read := 0
	for {
		n, err := out.Read(b)
		if read += n; err != nil {
			if !errors.Is(err, raftscan.ErrExcess) {
				t.Error(err)
			}
			break
		}
		if read > raftscan.MaxAnswer {
			t.Fatalf("%d bytes of an answer were taken", read)
		}
	}
	if _, err := out.Write([]byte("the next request")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(b); err != nil {
		t.Errorf("after the next request: %v", err)
	}
}
