// Package raftscan bounds what a Raft connection may send. hashicorp/raft decodes whatever
// it receives: any announced number of entries, at a hundred bytes of memory for each byte
// received, and blobs of any length. So this package parses the bytes first, just enough to
// see where each request ends and how much it contains. A request that no honest node would
// send ends the connection.
package raftscan

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Limits of one request, not counting the content of a snapshot.
const (
	// MaxAppend is how many bytes of entries this node sends at once, unless a single entry
	// is larger. Next to it the rest of a request is negligible.
	MaxAppend = 4 << 20
	// maxRequest bounds the size of a request in bytes.
	maxRequest = MaxAppend + wire.MaxEntry + 1<<18
	// maxRequestValues bounds the msgpack values in a request. Each of the MaxEntries
	// entries has six fields, which are 13 values including their names.
	maxRequestValues = 16*MaxEntries + 64
	// MaxEntries is the maximum number of entries in a request.
	MaxEntries = 256
	// maxRequestDepth is the maximum nesting: a request, its entries, an entry.
	maxRequestDepth = 4
	// maxName bounds the length of a field's name.
	maxName = 32
	// MaxAnswer bounds the size of the answer to a request.
	MaxAnswer = 64 << 10
)

const (
	// largeRequest is the size above which a request counts as large. One sender may have
	// largeAtOnce large requests in progress, over all of its connections.
	largeRequest = 64 << 10
	largeAtOnce  = 2
)

// ErrExcess is returned for a request of a size or shape that no honest node sends.
var ErrExcess = errors.New("malformed or excessive request")

// requestScan parses the requests on a connection. A request is a byte for its kind, a
// msgpack map and, if the kind is installSnapshot, the content of the snapshot.
type requestScan struct {
	kind   byte
	began  bool
	bytes  int   // of the request so far
	values int   // in the request so far
	open   []int // for each open container, how many values are still to come
	skip   uint64
	length int    // bytes of a length that are still to come
	head   byte   // first byte of the value with that length
	number uint64 // the length or number read so far
	digits int    // bytes of a number that are still to come
	name   []byte // name of the field that is being read, or whose value is
	naming bool   // a name is being read
	size   uint64 // of the snapshot, from its field
	body   uint64 // bytes of the snapshot that are still to come
	last   bool   // the request was for a snapshot, so nothing may follow it
}

// installSnapshot is the kind of a request that is followed by a snapshot.
const installSnapshot = 2

// idle reports whether the next byte begins a request.
func (s *requestScan) idle() bool { return !s.began && s.body == 0 }

// scan parses the next bytes.
func (s *requestScan) scan(b []byte) error {
	for len(b) > 0 {
		switch {
		case s.body > 0:
			n := min(s.body, uint64(len(b)))
			s.body -= n
			b = b[n:]
		case s.last:
			return fmt.Errorf("%w: data after the bytes of a snapshot", ErrExcess)
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

// next parses a byte that does not belong to the content of a blob.
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
		// A negative number has its highest bit set.
		negative := s.head >= 0xd0 && s.number>>(8<<(s.head-0xd0)-1) != 0
		if err := s.counted(s.number, negative); err != nil {
			return err
		}
		s.value()
		return nil
	}
	return s.begin(c)
}

// begin parses the first byte of a value.
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
	case 2: // the request's own map: names and values alternate
		if s.naming = s.open[1]%2 == 0; s.naming {
			if s.name = s.name[:0]; !isText {
				return fmt.Errorf("%w: a field without a name", ErrExcess)
			}
		} else if s.sizes() && (c >= 0x80 && c < 0xcc || c > 0xd3 && c < 0xe0) {
			return fmt.Errorf("%w: the size of a snapshot is not a number", ErrExcess)
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
		return fmt.Errorf("%w: a value of an unknown MessagePack type", ErrExcess)
	case c <= 0xc6: // blobs
		s.length = 1 << (c - 0xc4)
	case c <= 0xc9: // extensions
		s.length = 1 << (c - 0xc7)
	case c <= 0xcb: // floating-point numbers
		s.skip = 4 << (c - 0xca)
	case c <= 0xcf:
		s.digits = 1 << (c - 0xcc)
	case c <= 0xd3:
		s.digits = 1 << (c - 0xd0)
	case c <= 0xd8: // extensions of a fixed length
		s.skip = 1 + 1<<(c-0xd4)
	case c <= 0xdb: // strings
		s.length = 1 << (c - 0xd9)
	case c <= 0xdd: // arrays
		s.length = 2 << (c - 0xdc)
	default: // maps
		s.length = 2 << (c - 0xde)
	}
	return nil
}

// sized handles a value whose length has been read.
func (s *requestScan) sized(head byte, n uint64) error {
	container := head&0xf0 == 0x80 || head&0xf0 == 0x90 || head >= 0xdc && head <= 0xdf
	if !container {
		if n > wire.MaxEntry || s.naming && n > maxName {
			return fmt.Errorf("%w: a blob of %d bytes", ErrExcess, n)
		}
		if head >= 0xc7 && head <= 0xc9 {
			n++ // the type of the extension
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

// sizes reports whether the current field is the size of the snapshot.
func (s *requestScan) sizes() bool { return s.kind == installSnapshot && string(s.name) == "Size" }

// counted handles a number.
func (s *requestScan) counted(n uint64, negative bool) error {
	if len(s.open) != 2 || s.naming || !s.sizes() {
		return nil
	}
	if negative || n > math.MaxInt64 {
		return fmt.Errorf("%w: the size of a snapshot is negative or not an integer", ErrExcess)
	}
	s.size = n
	return nil
}

// value ends a value and all containers that it completes.
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

// Large bounds the large requests of each sender.
type Large struct {
	mu sync.Mutex
	of map[standing.Sender]chan struct{}
}

// begin waits until the sender has fewer than largeAtOnce large requests in progress. The
// caller calls end when this one is done. ok is false if stop was closed first.
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

// Options configure a Conn.
type Options struct {
	From    standing.Sender
	Timeout time.Duration   // of one request, on the sender's side
	Large   *Large          // shared by all connections
	Excess  func(error)     // called with an ErrExcess when there is one
	Closed  func()          // called when the connection is closed
	Stop    <-chan struct{} // ends waits when it is closed
}

// Conn is a connection that receives requests, for one of hashicorp/raft's transports.
type Conn struct {
	net.Conn
	o     Options
	ended chan struct{}
	once  sync.Once

	// The fields below are used by the one goroutine that calls Read and Write.
	scan  requestScan
	end   func()    // ends the large request
	since time.Time // when the snapshot began
	took  int       // bytes of the snapshot
}

// New returns a Conn that reads from and writes to c.
func New(c net.Conn, o Options) *Conn {
	return &Conn{Conn: c, o: o, ended: make(chan struct{})}
}

// Ended returns a channel that is closed with the connection.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Read implements net.Conn. Once a request has begun, the rest must arrive in time, and a
// snapshot as fast as its sender's own timeout demands. Otherwise a sender that stops
// halfway would hold resources here and block Raft, which waits for the whole snapshot, for
// ever.
func (c *Conn) Read(b []byte) (int, error) {
	var deadline time.Time
	switch {
	case c.scan.body > 0:
		if c.since.IsZero() {
			c.since = time.Now()
		}
		deadline = c.since.Add(2*c.o.Timeout + time.Duration(c.took/raft.DefaultTimeoutScale)*2*c.o.Timeout)
	case c.scan.last: // the sender opens another connection for its next request
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

// Write implements net.Conn. It sends the answer to a request.
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

// Close implements net.Conn. hashicorp/raft calls it on the goroutine that reads, or before
// that goroutine exists.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		close(c.ended)
		c.release()
		c.o.Closed()
	})
	return err
}

// Appendable returns as many of a request's entries as are sent at once, but at least one.
// A configuration is only ever the first entry: the node that receives it may have to apply
// what comes before it to be able to check its signature.
func Appendable(entries []*raft.Log) []*raft.Log {
	size := 0
	for i, l := range entries {
		if size += len(l.Data) + len(l.Extensions); i > 0 && (size > MaxAppend || l.Type == raft.LogConfiguration) {
			return entries[:i]
		}
	}
	return entries
}
