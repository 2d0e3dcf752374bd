package gossip

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/conclavekms/conclave/transport/admission"
)

const (
	// maxStreams bounds the concurrent streams of the address book. Two nodes that compare
	// their books need one for some milliseconds, twice a minute.
	maxStreams = 16
	// maxStream bounds the bytes that are read from one stream. It is several times the
	// size of the address book of the largest cluster. memberlist would read 20 MiB before
	// it checks whether the sender has the key.
	maxStream = 64 << 10
)

var errTooLong = errors.New("larger than the limit of the address book")

// network is memberlist's network, with limits on the memory that a sender without the key
// can make it use.
type network struct {
	*memberlist.NetTransport
	door    *admission.Door
	streams chan net.Conn
	done    chan struct{}
	running sync.WaitGroup
	stop    sync.Once
}

func newNetwork(mc *memberlist.Config, door *admission.Door) (*network, error) {
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{mc.BindAddr}, BindPort: mc.BindPort, Logger: mc.Logger,
	})
	if err != nil {
		return nil, err
	}
	g := &network{NetTransport: inner, door: door, streams: make(chan net.Conn), done: make(chan struct{})}
	g.running.Go(g.admit)
	return g, nil
}

func (g *network) admit() {
	for {
		select {
		case c := <-g.NetTransport.StreamCh():
			conn := g.door.Admit(c)
			if conn == nil {
				continue
			}
			select {
			case g.streams <- &boundedStream{Conn: conn, left: maxStream}:
			case <-g.done:
				conn.Close()
			}
		case <-g.done:
			return
		}
	}
}

// StreamCh implements memberlist.Transport.
func (g *network) StreamCh() <-chan net.Conn { return g.streams }

// DialAddressTimeout implements memberlist.NodeAwareTransport. The other end of these
// connections may lack the key too, so they have the same limits.
func (g *network) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	c, err := g.NetTransport.DialAddressTimeout(a, timeout)
	if err != nil {
		return nil, err
	}
	return &boundedStream{Conn: c, left: maxStream}, nil
}

// DialTimeout implements memberlist.Transport.
func (g *network) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return g.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// Shutdown implements memberlist.Transport.
func (g *network) Shutdown() error {
	var err error
	g.stop.Do(func() {
		// The inner transport waits for its listeners, which may be blocked handing over a
		// stream.
		ended := make(chan error, 1)
		go func() { ended <- g.NetTransport.Shutdown() }()
		for waiting := true; waiting; {
			select {
			case err = <-ended:
				waiting = false
			case c := <-g.NetTransport.StreamCh():
				c.Close()
			case <-g.NetTransport.PacketCh():
			}
		}
		close(g.done)
		g.running.Wait()
	})
	return err
}

// boundedStream returns an error after a number of bytes.
type boundedStream struct {
	net.Conn
	left int
}

// Read implements io.Reader.
func (s *boundedStream) Read(b []byte) (int, error) {
	if s.left <= 0 {
		return 0, errTooLong
	}
	n, err := s.Conn.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}
