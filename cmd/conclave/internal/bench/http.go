package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/conclavekms/conclave/transport/sigv4"
)

// signedRequests writes requests to the AWS API, signed with Signature Version 4.
type signedRequests struct {
	signer sigv4.Signer
	next   http.Request // has what all requests have in common
}

func newSignedRequests(id, secret, region, host string) *signedRequests {
	return &signedRequests{
		signer: sigv4.Signer{
			AccessKeyID: id, Region: region, Service: "kms", SignedHeaders: "content-type;host;x-amz-date;x-amz-target",
			SigningKey: sigv4.Secret(secret),
		},
		next: http.Request{
			Method: http.MethodPost, URL: &url.URL{Path: "/"}, Host: host,
			Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amz-Target": {""}},
		},
	}
}

// append appends a whole HTTP/1.1 request to b. It avoids the cost of
// http.Request.Write, since the benchmark is to measure servers.
func (s *signedRequests) append(b []byte, now time.Time, target string, body []byte) ([]byte, error) {
	h := s.next.Header
	h["X-Amz-Target"][0] = target
	if err := s.signer.Sign(&s.next, body, now); err != nil {
		return nil, err
	}
	b = append(b, "POST / HTTP/1.1\r\nHost: "+s.next.Host...)
	for _, name := range [...]string{"Content-Type", "X-Amz-Target", sigv4.HeaderDate, sigv4.HeaderAuthorization} {
		b = append(b, "\r\n"...)
		b = append(b, name...)
		b = append(b, ": "...)
		b = append(b, h[name][0]...)
	}
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	return append(b, body...), nil
}

// httpConn is one kept-alive HTTPS connection, reduced to what the benchmark
// needs.
type httpConn struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
	body []byte
	sign *signedRequests
}

func dialHTTP(ctx context.Context, addr string, cfg *tls.Config, sign *signedRequests) (*httpConn, error) {
	d := tls.Dialer{Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &httpConn{conn: conn, in: bufio.NewReaderSize(conn, 16<<10), sign: sign}, nil
}

func (c *httpConn) close() { c.conn.Close() }

// do sends a request and reads the answer, which must be a 200.
func (c *httpConn) do(target string, body []byte) error {
	out, err := c.sign.append(c.out[:0], time.Now(), target, body)
	if err != nil {
		return err
	}
	c.out = out
	if err := c.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	status, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	ok := bytes.HasPrefix(status, []byte("HTTP/1.1 200"))
	failure := ""
	if !ok {
		failure = string(bytes.TrimSpace(status))
	}
	length := -1
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil || length < 0 || length > 1<<20 {
				return fmt.Errorf("content length %q", value)
			}
		}
	}
	if length < 0 {
		return errors.New("the answer has no length")
	}
	if cap(c.body) < length {
		c.body = make([]byte, length)
	}
	c.body = c.body[:length]
	if _, err := io.ReadFull(c.in, c.body); err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%s: %s", failure, c.body)
	}
	return nil
}
