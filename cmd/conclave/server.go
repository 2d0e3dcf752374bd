package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/systemd"
	"github.com/conclavekms/conclave/cmd/conclave/node"
)

func serverCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run one node of a cluster",
		Long: `Server runs one node of a cluster. Each flag can also be given as an environment
variable: --node-id is CONCLAVE_NODE_ID. A flag takes precedence over the
environment.

The node is sealed when it starts. "conclave operator init" initialises the cluster,
once, and "conclave operator unseal" unseals nodes after each start.

The first nodes of a cluster are started with --peers, and later ones with --join:
they wait until "conclave cluster join" adds them.

SIGTERM and SIGINT stop it gracefully: it finishes requests in flight and hands over
leadership. A second signal stops it at once. SIGHUP makes it read its certificates
again.`,
		Example: `  conclave server --node-id node-1 --data /var/lib/conclave \
    --listen 10.0.0.1 --peers node-1=10.0.0.1:7602,node-2=10.0.0.2:7602,node-3=10.0.0.3:7602 \
    --tls-cert node-1.pem --tls-key node-1-key.pem --tls-ca ca.pem --gossip-key-file gossip.key`,
	}
	values := addServerFlags(cmd.Flags(), serverSettings)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := values.config(os.Getenv)
		if err != nil {
			return err
		}
		cfg.LogOutput = a.Stderr
		cfg.Release = cli.Version
		if err := harden(); err != nil {
			return err
		}
		return serve(cmd.Context(), a, cfg, nil)
	}
	return cmd
}

// statusInterval is how often the state of the node is told to systemd, if it has changed.
const statusInterval = time.Second

// serve runs a node until a signal or ctx stops it. started, if not nil, is
// called when the node is running; if it fails, the node is stopped again.
func serve(ctx context.Context, a *cli.App, cfg *node.Config, started func(context.Context, *node.Node) error) error {
	// Before the start, so that no signal is missed. Two signals to stop may
	// arrive together.
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(stop)
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(node.GCPercent)
	}
	n, err := node.Start(ctx, *cfg)
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	if started != nil {
		up := make(chan error, 1)
		go func() { up <- started(ctx, n) }()
		select {
		case err = <-up:
		case <-n.Done():
			err = n.Err()
		case <-stop:
			// started may have told others already that the node is ready: then this is
			// an ordinary stop.
			cancel()
			select {
			case err = <-up:
			case <-stop:
				err = ctx.Err()
			}
			if err != nil {
				err = errors.New("stopped while it was starting")
			}
		}
		if err != nil {
			cancel()
			return errors.Join(err, stopNode(n, cfg.ShutdownTimeout, stop))
		}
	}
	// What cannot be told to systemd is no reason to stop serving.
	manager := systemd.New(os.Getenv)
	tell := func(err error) {
		if err != nil {
			a.Note("conclave: %v", err)
		}
	}
	tell(manager.Ready(n.State()))
	look := time.NewTicker(statusInterval)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			tell(manager.Stopping())
			return stopNode(n, cfg.ShutdownTimeout, stop)
		case <-stop:
			tell(manager.Stopping())
			return stopNode(n, cfg.ShutdownTimeout, stop)
		case <-look.C:
			tell(manager.Status(n.State()))
		case <-reload:
			if err := n.Reload(); err != nil {
				// The old certificates stay in use.
				a.Note("conclave: reading the certificates again: %v; the old ones stay in use", err)
			}
		case <-n.Done():
			if err := n.Err(); err != nil {
				return fmt.Errorf("the node stopped: %w", err)
			}
			return nil
		}
	}
}

// stopNode stops a node gracefully, or at once at the next signal.
func stopNode(n *node.Node, limit time.Duration, again <-chan os.Signal) error {
	if limit == 0 {
		limit = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- n.Stop(ctx) }()
	select {
	case err := <-stopped:
		if err != nil {
			return fmt.Errorf("stopping: %w", err)
		}
		return nil
	case <-again:
		return errors.New("stopped at once by a second signal; requests in flight were not finished")
	}
}
