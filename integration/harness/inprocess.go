package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/node"
)

// inProcess is a node that runs in this process.
type inProcess struct {
	n     *Node
	peers map[string]string
	joins bool // the peers, rather than being one of them
	node  atomic.Pointer[node.Node]
	log   io.Closer
}

func (p *inProcess) start(ctx context.Context) error {
	c := p.n.cluster
	logs, err := os.OpenFile(p.n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cfg := node.Config{
		NodeID: p.n.ID, Data: p.n.Data, AWSListen: p.n.AWS, GRPCListen: p.n.GRPC, PeerListen: p.n.Peer,
		TLSCert: p.n.certFile(), TLSKey: p.n.keyFile(), TLSCA: c.CAFile(),
		AllowUnlockedMemory: true, LogLevel: slog.LevelDebug, LogOutput: logs, Release: "test",
	}
	if p.joins {
		cfg.Join = maps.Clone(p.peers)
	} else {
		cfg.Peers, cfg.BootstrapExpect = maps.Clone(p.peers), len(p.peers)
	}
	cfg.Timeouts = Quick
	cfg.Test.Cluster.Dial = c.Network.Dialer(p.n.ID)
	cfg.RefusalRate = refusalRate
	if c.opts.Configure != nil {
		c.opts.Configure(p.n, &cfg)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		logs.Close()
		return err
	}
	p.node.Store(n)
	p.log = logs
	return nil
}

// kill stops the node abruptly. Its network has been cut already, so nothing that it still
// does is visible outside.
func (p *inProcess) kill() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if n := p.node.Load(); n != nil {
		// This comes first, so that no request keeps waiting for an outcome.
		_ = n.Cluster().Shutdown(ctx)
	}
	_ = p.end(ctx)
}

func (p *inProcess) stop(ctx context.Context) error { return p.end(ctx) }

func (p *inProcess) end(ctx context.Context) error {
	n := p.node.Swap(nil)
	if n == nil {
		return nil
	}
	err := n.Stop(ctx)
	err = errors.Join(err, WaitUnlocked(p.n.Data))
	p.log.Close()
	return err
}

func (p *inProcess) failure() error {
	if n := p.node.Load(); n != nil {
		return n.Err()
	}
	return nil
}

// WaitUnlocked waits until nobody has the Raft log in a node's data directory open.
// Everything that a killed node was doing has ended by then.
func WaitUnlocked(data string) error {
	path := filepath.Join(data, "groups", "0", "raft", "raft.db")
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	deadline := time.Now().Add(Patience)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		if err == nil {
			return syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s stays locked: %w", path, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
