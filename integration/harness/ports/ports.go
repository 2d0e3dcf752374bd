// Package ports finds TCP ports on loopback for the servers of tests.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The ports that are handed out lie below those that systems give to outgoing
// connections and below those that conclave dev, demo and bench choose, so that a port
// stays free while the server that owns it is down.
const (
	lowest    = 10000
	highest   = 16000 // exclusive
	blockSize = 50
)

// blocks are those that this process has. A block is owned for as long as its first
// port is listened on, so that test processes that run at once never hand out the same
// port, whoever listens on it at the moment.
var blocks struct {
	sync.Mutex
	locks []net.Listener
	next  int // port to be handed out
	end   int
}

// Free returns an address on loopback that nobody listens on, and that neither this
// process nor another one that uses this package hands out again while this process
// runs. Nothing is held open: the caller may listen on it, stop, and listen again.
func Free() (addr string, err error) {
	blocks.Lock()
	defer blocks.Unlock()
	for range (highest - lowest) * 2 {
		if blocks.next == blocks.end {
			if err := ownAnother(); err != nil {
				return "", err
			}
		}
		addr := loopback(blocks.next)
		blocks.next++
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		return addr, nil
	}
	return "", fmt.Errorf("no free port from %d to %d", lowest, highest)
}

// ownAnother takes a block that no process owns.
func ownAnother() error {
	const n = (highest - lowest) / blockSize
	first := rand.IntN(n)
	for i := range n {
		start := lowest + (first+i)%n*blockSize
		l, err := net.Listen("tcp", loopback(start))
		if err != nil {
			continue
		}
		blocks.locks = append(blocks.locks, l)
		blocks.next, blocks.end = start+1, start+blockSize
		return nil
	}
	return fmt.Errorf("all ports from %d to %d are handed out", lowest, highest)
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
