package diagnose

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/cluster/pki"
)

func ports(ctx context.Context, s *subject, r *report) {
	const check = "ports"
	before := len(r.list)
	tried := 0
	for _, p := range []struct{ what, flag, network, addr string }{
		{"AWS API", "--aws-listen", "tcp", s.cfg.AWSListen},
		{"gRPC API", "--grpc-listen", "tcp", s.cfg.GRPCListen},
		{"other nodes", "--peer-listen", "tcp", s.cfg.PeerListen},
		{"the address book", "--gossip-listen", "tcp", s.cfg.GossipListen},
		{"the address book", "--gossip-listen", "udp", s.cfg.GossipListen},
		{"metrics and health", "--ops-listen", "tcp", s.cfg.OpsListen},
		{"profiles", "--pprof-address", "tcp", s.cfg.PprofAddress},
	} {
		if p.addr == "" {
			continue
		}
		tried++
		err := try(ctx, p.network, p.addr)
		next := "give an address of this machine with " + p.flag
		switch {
		case err == nil:
			continue
		case errors.Is(err, syscall.EADDRINUSE):
			next = "if a node runs here already, this is its port; otherwise stop the other program (ss -lptn shows it), or choose another port with " + p.flag
		case errors.Is(err, syscall.EACCES):
			next = "choose a port above 1023 with " + p.flag
		}
		r.add(check, Problem, next, "the port for %s: %v", p.what, err)
	}
	if len(r.list) == before && tried > 0 {
		r.ok(check, "all %d are free", tried)
	}
}

// try opens a port and closes it again.
func try(ctx context.Context, network, addr string) error {
	if network == "udp" {
		c, err := new(net.ListenConfig).ListenPacket(ctx, network, addr)
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// answer is how long a peer may take to answer.
const answer = 5 * time.Second

// peers finds out whether the other first nodes can be reached, and are who they should be.
// They need not run yet.
func peers(ctx context.Context, s *subject, r *report) {
	const check = "peers"
	if len(s.cfg.Peers) < 2 || s.identity == nil {
		return
	}
	// Nodes of a restored cluster speak only with each other.
	if _, lineage, err := cluster.DataDirOwner(s.cfg.Data); err == nil {
		s.identity.SetLineage(lineage)
	}
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	var all sync.WaitGroup
	for id, addr := range s.cfg.Peers {
		if id == s.cfg.NodeID {
			continue
		}
		all.Go(func() {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err != nil {
				r.add(check, Warning, "start that node, or look at names, routes and firewalls between the two: port and protocol TCP", "%s at %s cannot be reached: %v", id, addr, err)
				return
			}
			defer c.Close()
			if err := tls.Client(c, s.identity.Client(id, pki.ALPNPeer)).HandshakeContext(ctx); err != nil {
				r.add(check, Warning, "look at the certificates of both nodes, which have to be of the same CA, and at the address", "%s at %s answers, and is refused: %v", id, addr, err)
				return
			}
			r.ok(check, "%s answers at %s, with its certificate", id, addr)
		})
	}
	all.Wait()
	slices.SortFunc(r.list, func(a, b Finding) int { return cmp.Compare(a.Found, b.Found) })
}
