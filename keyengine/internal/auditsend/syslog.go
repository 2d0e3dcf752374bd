package auditsend

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

// Syslog configures a server of syslog (RFC 5424) over TLS (RFC 5425).
type Syslog struct {
	Address string        `json:"address"` // HOST:PORT; the port of the standard is 6514
	TLS     *outbound.TLS `json:"tls,omitzero"`
	// Facility is the facility of all messages; the default is 13, which is "log audit".
	Facility *int `json:"facility,omitzero"`
	// Hostname is what messages name as their origin; the default is the machine's name.
	Hostname string `json:"hostname,omitzero"`
}

// The severities of messages: informational, and warning for an event with an error code.
const (
	severityInfo    = 6
	severityWarning = 4
)

type syslog struct {
	address  string
	facility int
	hostname string
	conf     *tls.Config
	conn     *tls.Conn
	ended    *atomic.Bool // the server has closed conn, or has sent something
}

// Open returns a Sender. It fails for what is wrong with the configuration.
func (c *Syslog) Open() (Sender, error) {
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("the address %q is not HOST:PORT", c.Address)
	}
	s := &syslog{address: c.Address, facility: 13, hostname: c.Hostname}
	if c.Facility != nil {
		s.facility = *c.Facility
	}
	if s.facility < 0 || s.facility > 23 {
		return nil, errors.New("the facility is not 0 to 23")
	}
	if s.hostname == "" {
		s.hostname, _ = os.Hostname()
	}
	s.hostname = token(s.hostname, 255)
	s.conf, err = c.TLS.Config(host)
	return s, err
}

// Send implements Sender. Syslog has no confirmation. Send returns once the server's machine has
// acknowledged all bytes, where the system can tell.
func (s *syslog) Send(ctx context.Context, records []Record) (err error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if s.conn != nil && s.ended.Load() {
		_ = s.Close()
		return errors.New("the server has closed the connection")
	}
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	conn := s.conn
	end, _ := ctx.Deadline()
	_ = conn.SetWriteDeadline(end)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var out bytes.Buffer
	for _, r := range records {
		m := s.message(r)
		fmt.Fprintf(&out, "%d ", len(m))
		out.Write(m)
	}
	if _, err := conn.Write(out.Bytes()); err != nil {
		return err
	}
	if err := drained(ctx, conn.NetConn(), s.ended); err != nil {
		return err
	}
	if s.ended.Load() {
		return errors.New("the server has closed the connection")
	}
	return nil
}

func (s *syslog) connect(ctx context.Context) error {
	raw, err := outbound.Dialer(false).DialContext(ctx, "tcp", s.address)
	if err != nil {
		return err
	}
	conn := tls.Client(raw, s.conf)
	shake, cancel := context.WithTimeout(ctx, outbound.DialTimeout)
	defer cancel()
	if err := conn.HandshakeContext(shake); err != nil {
		return errors.Join(err, raw.Close())
	}
	ended := new(atomic.Bool)
	s.conn, s.ended = conn, ended
	go func() {
		// A server sends nothing. The read ends when it closes the connection, and when this
		// side does.
		var b [1]byte
		_, _ = conn.Read(b[:])
		ended.Store(true)
	}()
	return nil
}

// message returns a record as a message, in UTF-8 and without control characters, as lines of
// records are.
func (s *syslog) message(r Record) []byte {
	severity := severityInfo
	if r.Failed {
		severity = severityWarning
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%d>1 %s %s conclave - %s [conclave@32473 index=\"%d\" eventID=\"%s\"] ",
		s.facility*8+severity, r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), s.hostname, token(r.Name, 32), r.Index, r.EventID)
	b.Write(r.Line)
	return b.Bytes()
}

// token returns a text as a field of a message: of printable ASCII without spaces, at most max
// bytes long, and "-" if nothing is left.
func token(s string, max int) string {
	var b []byte
	for i := 0; i < len(s) && len(b) < max; i++ {
		if s[i] > ' ' && s[i] < 0x7f {
			b = append(b, s[i])
		}
	}
	if len(b) == 0 {
		return "-"
	}
	return string(b)
}

// Confirms implements Sender.
func (s *syslog) Confirms() bool { return false }

// Close implements Sender.
func (s *syslog) Close() error {
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn = nil
	_ = conn.SetDeadline(time.Now().Add(time.Second)) // for the alert that ends TLS
	return conn.Close()
}
