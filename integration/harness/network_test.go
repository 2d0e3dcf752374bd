package harness

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness/ports"
)

// echo answers everything that it is sent.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// trip sends a message and returns how long the echo takes, or an error.
func trip(c net.Conn, limit time.Duration) (time.Duration, error) {
	start := time.Now()
	if err := c.SetDeadline(start.Add(limit)); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return 0, err
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil {
		return 0, err
	}
	if !bytes.Equal(buf, []byte("hello")) {
		return 0, io.ErrUnexpectedEOF
	}
	return time.Since(start), nil
}

func TestNetwork(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	target := echo(t)
	w := NewNetwork(1)
	w.Break = true
	defer w.Close()
	dial := w.Dialer("a")
	connect := func() net.Conn {
		t.Helper()
		c, err := dial(ctx, "b", target)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := connect()
	if _, err := trip(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	// One direction at a time.
	const delay = 100 * time.Millisecond
	for _, d := range [][2]string{{"a", "b"}, {"b", "a"}} {
		w.Set(d[0], d[1], Rule{Delay: delay})
		if took, err := trip(c, 5*time.Second); err != nil || took < delay {
			t.Errorf("%v late by %v: %v, %v", d, delay, took, err)
		}
		w.Set("b", "c", Rule{Hold: true}) // not theirs
		w.Heal()
	}
	w.SetBoth("a", "b", Rule{Delay: delay, Jitter: delay})
	if took, err := trip(c, 5*time.Second); err != nil || took < 2*delay {
		t.Errorf("both late: %v, %v", took, err)
	}
	w.Heal()
	// What is held is not lost.
	w.Set("b", "a", Rule{Hold: true})
	held := make(chan error)
	go func() {
		_, err := trip(c, 20*time.Second)
		held <- err
	}()
	select {
	case err := <-held:
		t.Errorf("an echo came through a held link: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	w.Heal()
	if err := <-held; err != nil {
		t.Error(err)
	}
	// Chunks that end their connection.
	w.Set("a", "b", Rule{Reset: 1})
	if _, err := trip(c, 5*time.Second); err == nil {
		t.Error("an echo came through a link that breaks")
	}
	w.Heal()
	// A dead node.
	c = connect()
	w.Isolate("b")
	if _, err := trip(c, 5*time.Second); err == nil {
		t.Error("an isolated node answered")
	}
	if c, err := dial(ctx, "b", target); err == nil {
		c.Close()
		t.Error("an isolated node was reached")
	}
	w.Rejoin("b")
	if _, err := trip(connect(), 5*time.Second); err != nil {
		t.Error(err)
	}
}

func TestProxy(t *testing.T) {
	w := NewNetwork(1)
	w.Break = true
	defer w.Close()
	addr, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Proxy("b", addr, echo(t)); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := trip(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	const delay = 100 * time.Millisecond
	w.Set(Anyone, "b", Rule{Delay: delay})
	if took, err := trip(c, 5*time.Second); err != nil || took < delay {
		t.Errorf("%v, %v", took, err)
	}
	w.Isolate("b")
	if _, err := trip(c, 5*time.Second); err == nil {
		t.Error("an isolated node answered")
	}
}
