package systemd_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/systemd"
)

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@conclave-" + t.Name() + "-" + filepath.Base(t.TempDir())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n := systemd.New(func(key string) string { return map[string]string{"NOTIFY_SOCKET": name}[key] })
		for _, step := range []struct {
			do   func() error
			want string
		}{
			{func() error { return n.Ready("sealed") }, "READY=1\nSTATUS=sealed"},
			{func() error {
				if err := n.Status("sealed"); err != nil { // nothing new
					return err
				}
				return n.Status("active")
			}, "STATUS=active"},
			{n.Stopping, "STOPPING=1\nSTATUS=stopping"},
		} {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1024)
			size, err := l.Read(buf)
			if err != nil || string(buf[:size]) != step.want {
				t.Errorf("%s: got %q, %v, want %q", name, buf[:size], err, step.want)
			}
		}
	}
}

func TestNotifyWithoutManager(t *testing.T) {
	n := systemd.New(func(string) string { return "" })
	if err := n.Ready("sealed"); err != nil {
		t.Error(err)
	}
	n = systemd.New(func(string) string { return filepath.Join(t.TempDir(), "gone") })
	if err := n.Ready("sealed"); err == nil {
		t.Error("a socket that is not there was notified")
	}
}
