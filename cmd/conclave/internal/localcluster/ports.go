package localcluster

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
)

// FreePorts returns loopback addresses that are free for both TCP and UDP, since
// nodes must know each other's addresses before they start. The ports are below
// the range that Linux uses for outgoing connections, so that none of those takes
// one before the node does.
func FreePorts(n int) (addrs []string, err error) {
	var held []io.Closer
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for tries := 0; len(addrs) < n; tries++ {
		if tries == 100*n {
			return nil, fmt.Errorf("found only %d free ports of %d", len(addrs), n)
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(16000+rand.IntN(16000)))
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		held = append(held, tcp)
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		held = append(held, udp)
		addrs = append(addrs, addr)
	}
	return addrs, nil
}
