package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports that are handed out lie below those that systems give to outgoing
// connections, so that a port stays free while the node that owns it is down.
const (
	portMin = 15000
	portMax = 32000
)

var handedOut = struct {
	sync.Mutex
	ports map[int]bool
}{ports: make(map[int]bool)}

// freeAddress is a loopback address that nobody listens on, and that this process
// hands out once.
func freeAddress() (string, error) {
	handedOut.Lock()
	defer handedOut.Unlock()
	for range 1000 {
		p := portMin + rand.IntN(portMax-portMin)
		if handedOut.ports[p] {
			continue
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		handedOut.ports[p] = true
		return addr, nil
	}
	return "", fmt.Errorf("no free port from %d to %d", portMin, portMax)
}
