// Package ports finds TCP ports on loopback for the servers of tests.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports are taken from below the range that operating systems use for outgoing connections,
// and below the ports that conclave dev, demo and bench choose, so that a port stays free
// while its server is down.
const (
	lowest    = 10000
	highest   = 16000 // exclusive
	blockSize = 50
)

// blocks are the blocks of ports that this process owns. It owns a block by listening on
// its first port, so that concurrent test processes never hand out the same port, even
// while no server listens on it.
var blocks struct {
	sync.Mutex
	locks []net.Listener
	next  int // the next port to hand out
	end   int
}

// Free returns a loopback address that is not in use. Neither this process nor another one
// that uses this package hands it out again while this process runs. The port is not held
// open: the caller may listen on it, stop, and listen again.
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
