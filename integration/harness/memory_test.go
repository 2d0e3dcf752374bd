package harness

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// memoryPair connects two nodes and returns both ends.
func memoryPair(t *testing.T, m *Memory, a, b string) (near, far net.Conn) {
	t.Helper()
	l := m.Listen(b)
	accepted := make(chan net.Conn)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	near, err := m.Dialer(a)(context.Background(), b, m.Address(b))
	if err != nil {
		t.Fatal(err)
	}
	return near, <-accepted
}

// arrives sends a text from one end to the other and waits for it for a second.
func arrives(from, to net.Conn) error {
	if _, err := from.Write([]byte("hello")); err != nil {
		return err
	}
	_ = to.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 16)
	n, err := to.Read(b)
	if err == nil && string(b[:n]) != "hello" {
		return errors.New("something else arrived: " + string(b[:n]))
	}
	return err
}

func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		near, far := memoryPair(t, m, "a", "b")
		if err := errors.Join(arrives(near, far), arrives(far, near)); err != nil {
			t.Fatal(err)
		}
		m.Cut("a", "b")
		if err := arrives(near, far); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("over a cut: %v", err)
		}
		if _, err := m.Dialer("a")(t.Context(), "b", ""); err == nil {
			t.Error("a cut can be dialled over")
		}
		m.Heal()
		if err := arrives(near, far); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection that lost bytes goes on: %v", err)
		}
		near, far = memoryPair(t, m, "a", "b")
		if err := arrives(near, far); err != nil {
			t.Error(err)
		}
		m.Unplug("b")
		if err := arrives(near, far); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("to a node that is gone: %v", err)
		}
		if _, err := m.Dialer("a")(t.Context(), "b", ""); err == nil {
			t.Error("a node that is gone can be dialled")
		}
	})
}
