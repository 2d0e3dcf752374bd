package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/health"
)

func healthCommand(a *cli.App) *cobra.Command {
	var addr string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the server on this machine how it is; for container health checks",
		Long: `Health asks the metrics and health port of the server on this machine and exits
with 0 when the process answers and its Raft is up. A sealed node is healthy:
it waits for its custodians, and a restart would not help.`,
		Example: `  conclave health
  conclave health --timeout 10s`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if addr == "" {
				addr = opsAddress(os.Getenv)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			state, err := healthState(ctx, addr)
			if err != nil {
				return fmt.Errorf("not healthy: %w", err)
			}
			_, err = fmt.Fprintln(a.Stdout, state)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&addr, "ops", "", "address to ask (default from CONCLAVE_OPS_LISTEN, or 127.0.0.1:7604)")
	f.DurationVar(&timeout, "timeout", 2*time.Second, "how long to wait")
	return cmd
}

// opsAddress is where the server with this environment has its health port.
func opsAddress(getenv func(string) string) string {
	addr := getenv("CONCLAVE_OPS_LISTEN")
	if addr == "" {
		addr = net.JoinHostPort(getenv("CONCLAVE_LISTEN"), "7604")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr // the error comes with the request
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

// healthState is the state that a node reports, unless it is unhealthy.
func healthState(ctx context.Context, addr string) (string, error) {
	if _, _, err := health.State(ctx, addr, "/livez"); err != nil {
		return "", err
	}
	state, _, err := health.State(ctx, addr, "/healthz")
	if err != nil {
		return "", err
	}
	if state == "no leader" {
		return "", errors.New("the node is in contact with no leader")
	}
	return state, nil
}
