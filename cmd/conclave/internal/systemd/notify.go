// Package systemd tells the service manager how far a server is, by the protocol of
// sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names.
package systemd

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// Notifier sends the state of a service to the service manager. Its zero value sends nothing,
// for programs that systemd did not start.
type Notifier struct {
	socket string
	status string // the last one that was sent
}

// New returns the Notifier for the environment of a process.
func New(getenv func(string) string) *Notifier { return &Notifier{socket: getenv("NOTIFY_SOCKET")} }

// Ready reports that the service has started, and its first status.
func (n *Notifier) Ready(status string) error {
	n.status = status
	return n.send("READY=1", "STATUS="+status)
}

// Status reports what `systemctl status` shows of the service, if it has changed.
func (n *Notifier) Status(status string) error {
	if status == n.status {
		return nil
	}
	n.status = status
	return n.send("STATUS=" + status)
}

// Stopping reports that the service has begun to stop.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1", "STATUS=stopping") }

// patience bounds how long a send may wait: the manager reads its socket at once, and a
// server must not wait for one that does not.
const patience = time.Second

func (n *Notifier) send(lines ...string) error {
	if n.socket == "" {
		return nil
	}
	// A name that begins with @ is in Linux's abstract namespace, which net supports.
	c, err := net.DialTimeout("unixgram", n.socket, patience)
	if err != nil {
		return fmt.Errorf("notifying systemd: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("notifying systemd: %w", err)
	}
	if _, err := c.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("notifying systemd: %w", err)
	}
	return nil
}
