package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"strconv"
	"time"
)

// signer signs requests to the AWS API by Signature Version 4. It keeps the key
// of the day, so that signing costs two hashes and a MAC: the benchmark measures
// servers.
type signer struct {
	id, secret, region string

	day string
	mac hash.Hash
}

const signedHeaders = "content-type;host;x-amz-date;x-amz-target"

func sum(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	io.WriteString(h, data)
	return h.Sum(nil)
}

// request appends a whole HTTP/1.1 request to b.
func (s *signer) request(b []byte, now time.Time, host, target string, body []byte) []byte {
	stamp := now.UTC().Format("20060102T150405Z")
	if day := stamp[:8]; day != s.day {
		key := sum(sum(sum(sum([]byte("AWS4"+s.secret), day), s.region), "kms"), "aws4_request")
		s.day, s.mac = day, hmac.New(sha256.New, key)
	}
	const contentType = "application/x-amz-json-1.1"
	payload := sha256.Sum256(body)
	canonical := make([]byte, 0, 512)
	canonical = append(canonical, "POST\n/\n\ncontent-type:"+contentType+"\nhost:"+host+"\nx-amz-date:"+stamp+"\nx-amz-target:"+target+"\n\n"+signedHeaders+"\n"...)
	canonical = hex.AppendEncode(canonical, payload[:])
	digest := sha256.Sum256(canonical)
	scope := s.day + "/" + s.region + "/kms/aws4_request"
	s.mac.Reset()
	io.WriteString(s.mac, "AWS4-HMAC-SHA256\n"+stamp+"\n"+scope+"\n"+hex.EncodeToString(digest[:]))

	b = append(b, "POST / HTTP/1.1\r\nHost: "+host+"\r\nContent-Type: "+contentType+"\r\nX-Amz-Date: "+stamp+
		"\r\nX-Amz-Target: "+target+"\r\nAuthorization: AWS4-HMAC-SHA256 Credential="+s.id+"/"+scope+
		", SignedHeaders="+signedHeaders+", Signature="...)
	b = hex.AppendEncode(b, s.mac.Sum(nil))
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	return append(b, body...)
}

// httpConn is one kept-alive HTTPS connection that does what the benchmark needs
// and no more.
type httpConn struct {
	conn net.Conn
	in   *bufio.Reader
	host string
	out  []byte
	body []byte
	sign signer
}

func dialHTTP(ctx context.Context, addr string, cfg *tls.Config, sign signer) (*httpConn, error) {
	d := tls.Dialer{Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &httpConn{conn: conn, in: bufio.NewReaderSize(conn, 16<<10), host: addr, sign: sign}, nil
}

func (c *httpConn) close() { c.conn.Close() }

// do sends a request and reads the answer, which must be a 200.
func (c *httpConn) do(target string, body []byte) error {
	c.out = c.sign.request(c.out[:0], time.Now(), c.host, target, body)
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
