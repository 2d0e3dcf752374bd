// Package raftscan bounds what a connection of Raft may bring. hashicorp/raft decodes
// whatever comes: as many entries as are announced, a hundred bytes of memory for each
// byte, and blobs of any length. So the bytes are looked at before it gets them, as far as
// to see where each request ends and how much it holds. What an honest node never sends
// ends the connection.
package raftscan

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Limits of one request, but for the content of a snapshot.
const (
	// MaxAppend is how many bytes of entries this node sends at once, unless one entry
	// has more: enough that the rest of a request does not matter.
	MaxAppend = 4 << 20
	// maxRequest bounds a request in bytes.
	maxRequest = MaxAppend + wire.MaxEntry + 1<<18
	// maxRequestValues bounds its msgpack values: MaxEntries entries have six
	// fields each, which with their names are 13 values.
	maxRequestValues = 16*MaxEntries + 64
	// MaxEntries is how many entries a request has at the most.
	MaxEntries = 256
	// maxRequestDepth is how deep they lie: a request, its entries, an entry.
	maxRequestDepth = 4
	// maxName bounds the name of a field of a request.
	maxName = 32
	// MaxAnswer bounds the answer to a request.
	MaxAnswer = 64 << 10
)

const (
	// largeRequest is a request of which one sender may have largeAtOnce at a time, over
	// all of its connections.
	largeRequest = 64 << 10
	largeAtOnce  = 2
)

// ErrExcess is a request of a size or shape that no honest node sends.
var ErrExcess = errors.New("malformed or excessive request")

// requestScan follows the requests that a connection brings: a byte for the kind, a
// msgpack map, and after that of kind installSnapshot the snapshot.
type requestScan struct {
	kind   byte
	began  bool
	bytes  int   // of the request so far
	values int   // so far
	open   []int // values that are still to come, in each container that is open
	skip   uint64
	length int    // bytes of a length that are still to come
	head   byte   // of the value whose length that is
	number uint64 // the length, or the number, so far
	digits int    // bytes of a number that are still to come
	name   []byte // of the field that is being read, or whose value is
	naming bool   // the name is being read
	size   uint64 // the snapshot's, by its field
	body   uint64 // bytes of the snapshot that are still to come
	last   bool   // the request was for a snapshot: nothing follows
}

// installSnapshot is the kind of a request with a snapshot behind it.
const installSnapshot = 2

// idle reports whether the next byte begins a request.
func (s *requestScan) idle() bool { return !s.began && s.body == 0 }

// scan takes the next bytes.
func (s *requestScan) scan(b []byte) error {
	for len(b) > 0 {
		switch {
		case s.body > 0:
			n := min(s.body, uint64(len(b)))
			s.body -= n
			b = b[n:]
		case s.last:
			return fmt.Errorf("%w: something follows a snapshot", ErrExcess)
		case !s.began:
			*s = requestScan{kind: b[0], began: true, bytes: 1, open: append(s.open[:0], 1), name: s.name[:0]}
			b = b[1:]
		case s.skip > 0:
			n := min(s.skip, uint64(len(b)))
			if s.naming {
				s.name = append(s.name, b[:n]...)
			}
			s.skip -= n
			s.bytes += int(n)
			b = b[n:]
			if s.skip == 0 {
				s.value()
			}
		default:
			if err := s.next(b[0]); err != nil {
				return err
			}
			s.bytes++
			b = b[1:]
		}
		if s.bytes > maxRequest {
			return fmt.Errorf("%w: more than %d bytes", ErrExcess, maxRequest)
		}
	}
	return nil
}

// next takes a byte that is not of a blob's content.
func (s *requestScan) next(c byte) error {
	switch {
	case s.length > 0:
		s.number = s.number<<8 | uint64(c)
		if s.length--; s.length > 0 {
			return nil
		}
		return s.sized(s.head, s.number)
	case s.digits > 0:
		s.number = s.number<<8 | uint64(c)
		if s.digits--; s.digits > 0 {
			return nil
		}
		// A negative one has its highest bit set.
		negative := s.head >= 0xd0 && s.number>>(8<<(s.head-0xd0)-1) != 0
		if err := s.counted(s.number, negative); err != nil {
			return err
		}
		s.value()
		return nil
	}
	return s.begin(c)
}

// begin takes the first byte of a value.
func (s *requestScan) begin(c byte) error {
	if s.values++; s.values > maxRequestValues {
		return fmt.Errorf("%w: more than %d values", ErrExcess, maxRequestValues)
	}
	isMap := c&0xf0 == 0x80 || c == 0xde || c == 0xdf
	isText := c&0xe0 == 0xa0 || c >= 0xd9 && c <= 0xdb
	s.naming = false
	switch len(s.open) {
	case 1:
		if !isMap {
			return fmt.Errorf("%w: not a request", ErrExcess)
		}
	case 2: // of the request: names and values in turn
		if s.naming = s.open[1]%2 == 0; s.naming {
			if s.name = s.name[:0]; !isText {
				return fmt.Errorf("%w: a field without a name", ErrExcess)
			}
		} else if s.sizes() && (c >= 0x80 && c < 0xcc || c > 0xd3 && c < 0xe0) {
			return fmt.Errorf("%w: the size of a snapshot is no number", ErrExcess)
		}
	}
	s.head, s.number = c, 0
	switch {
	case c < 0x80, c >= 0xe0:
		if err := s.counted(uint64(c), c >= 0xe0); err != nil {
			return err
		}
		s.value()
	case c < 0xa0: // a small map or array
		return s.sized(c, uint64(c&0x0f))
	case c < 0xc0:
		return s.sized(c, uint64(c&0x1f))
	case c == 0xc0, c == 0xc2, c == 0xc3:
		s.value()
	case c == 0xc1:
		return fmt.Errorf("%w: a value of no kind", ErrExcess)
	case c <= 0xc6: // blobs
		s.length = 1 << (c - 0xc4)
	case c <= 0xc9: // extensions
		s.length = 1 << (c - 0xc7)
	case c <= 0xcb: // fractions
		s.skip = 4 << (c - 0xca)
	case c <= 0xcf:
		s.digits = 1 << (c - 0xcc)
	case c <= 0xd3:
		s.digits = 1 << (c - 0xd0)
	case c <= 0xd8: // extensions of a fixed length
		s.skip = 1 + 1<<(c-0xd4)
	case c <= 0xdb: // texts
		s.length = 1 << (c - 0xd9)
	case c <= 0xdd: // arrays
		s.length = 2 << (c - 0xdc)
	default: // maps
		s.length = 2 << (c - 0xde)
	}
	return nil
}

// sized takes the length of a value that has one.
func (s *requestScan) sized(head byte, n uint64) error {
	container := head&0xf0 == 0x80 || head&0xf0 == 0x90 || head >= 0xdc && head <= 0xdf
	if !container {
		if n > wire.MaxEntry || s.naming && n > maxName {
			return fmt.Errorf("%w: a blob of %d bytes", ErrExcess, n)
		}
		if head >= 0xc7 && head <= 0xc9 {
			n++ // its type
		}
		if s.skip = n; n == 0 {
			s.value()
		}
		return nil
	}
	if head&0xf0 == 0x80 || head >= 0xde {
		n *= 2
	}
	if n > maxRequestValues || len(s.open) >= maxRequestDepth && n > 0 {
		return fmt.Errorf("%w: %d values in one, %d deep", ErrExcess, n, len(s.open))
	}
	if s.open = append(s.open, int(n)); n == 0 {
		s.open = s.open[:len(s.open)-1]
		s.value()
	}
	return nil
}

// sizes reports whether the field that is being read is the size of the snapshot.
func (s *requestScan) sizes() bool { return s.kind == installSnapshot && string(s.name) == "Size" }

// counted takes a number.
func (s *requestScan) counted(n uint64, negative bool) error {
	if len(s.open) != 2 || s.naming || !s.sizes() {
		return nil
	}
	if negative || n > math.MaxInt64 {
		return fmt.Errorf("%w: the size of a snapshot is no size", ErrExcess)
	}
	s.size = n
	return nil
}

// value ends a value, and the containers that end with it.
func (s *requestScan) value() {
	for {
		top := len(s.open) - 1
		if s.open[top]--; s.open[top] > 0 {
			return
		}
		if s.open = s.open[:top]; top == 0 {
			break
		}
	}
	s.began = false
	if s.kind == installSnapshot {
		s.body, s.last = s.size, true
	}
}

// Large bounds what the connections of one sender bring at a time.
type Large struct {
	mu sync.Mutex
	of map[standing.Sender]chan struct{}
}

// begin waits until a sender has fewer than largeAtOnce large requests under way, and
// returns what ends this one; false after stop.
func (l *Large) begin(from standing.Sender, stop <-chan struct{}) (end func(), ok bool) {
	l.mu.Lock()
	if l.of == nil {
		l.of = make(map[standing.Sender]chan struct{})
	}
	places := l.of[from]
	if places == nil {
		places = make(chan struct{}, largeAtOnce)
		l.of[from] = places
	}
	l.mu.Unlock()
	select {
	case places <- struct{}{}:
		return func() { <-places }, true
	case <-stop:
		return nil, false
	}
}

// Options are what a Conn needs to know.
type Options struct {
	From    standing.Sender
	Timeout time.Duration   // of one request, at its sender
	Large   *Large          // of all connections
	Excess  func(error)     // is called with an ErrExcess when there is one
	Closed  func()          // is called when the connection is closed
	Stop    <-chan struct{} // ends what waits
}

// Conn is a connection that brings requests, for one of hashicorp/raft's transports.
type Conn struct {
	net.Conn
	o     Options
	ended chan struct{}
	once  sync.Once

	// Read and Write are called by one goroutine.
	scan  requestScan
	end   func()    // of a large request
	since time.Time // when a snapshot began
	took  int       // bytes of it
}

// New returns a connection that reads and writes c.
func New(c net.Conn, o Options) *Conn {
	return &Conn{Conn: c, o: o, ended: make(chan struct{})}
}

// Ended is closed when the connection is.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Read implements net.Conn. A request that has begun goes on, and a snapshot as fast as
// its sender's own patience needs; otherwise whoever sent part of one would keep what
// it takes here, and Raft, which waits for a snapshot, for ever.
func (c *Conn) Read(b []byte) (int, error) {
	var deadline time.Time
	switch {
	case c.scan.body > 0:
		if c.since.IsZero() {
			c.since = time.Now()
		}
		deadline = c.since.Add(2*c.o.Timeout + time.Duration(c.took/raft.DefaultTimeoutScale)*2*c.o.Timeout)
	case c.scan.last: // its sender opens another one for what comes next
		return 0, io.EOF
	case !c.scan.idle():
		deadline = time.Now().Add(2 * c.o.Timeout)
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if n == 0 {
		return n, err
	}
	if !c.since.IsZero() {
		c.took += n
	}
	if serr := c.scan.scan(b[:n]); serr != nil {
		c.o.Excess(serr)
		return 0, serr
	}
	if c.scan.bytes > largeRequest && c.end == nil {
		end, ok := c.o.Large.begin(c.o.From, c.o.Stop)
		if !ok {
			return 0, io.ErrClosedPipe
		}
		c.end = end
	}
	return n, err
}

// Write implements net.Conn: it answers a request.
func (c *Conn) Write(b []byte) (int, error) {
	c.release()
	return c.Conn.Write(b)
}

func (c *Conn) release() {
	if c.end != nil {
		c.end()
		c.end = nil
	}
}

// Close implements net.Conn. hashicorp/raft calls it on the goroutine that reads, or
// before there is one.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		close(c.ended)
		c.release()
		c.o.Closed()
	})
	return err
}

// Appendable are as many of a request's entries as are sent at once: some at least.
func Appendable(entries []*raft.Log) []*raft.Log {
	size := 0
	i := slices.IndexFunc(entries, func(l *raft.Log) bool {
		size += len(l.Data) + len(l.Extensions)
		return size > MaxAppend
	})
	if i < 0 {
		return entries
	}
	return entries[:max(i, 1)]
}
