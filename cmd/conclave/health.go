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
		Short: "Check the health of the server on this machine; for container health checks",
		Long: `Health queries the metrics and health port of the server on this machine, and exits
with 0 if the process answers and knows a leader. A sealed node is healthy: it waits
for its custodians, and a restart would not help.`,
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
	f.StringVar(&addr, "ops", "", "address to query (default from CONCLAVE_OPS_LISTEN, or 127.0.0.1:7604)")
	f.DurationVar(&timeout, "timeout", 2*time.Second, "how long to wait")
	return cmd
}

// opsAddress returns the address of the health port of the server with this
// environment.
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

// healthState returns the state that a node reports, or an error if it is
// unhealthy.
func healthState(ctx context.Context, addr string) (string, error) {
	if _, _, err := health.State(ctx, addr, "/livez"); err != nil {
		return "", err
	}
	state, _, err := health.State(ctx, addr, "/healthz")
	if err != nil {
		return "", err
	}
	if state == "no leader" {
		return "", errors.New("the node is not in contact with a leader")
	}
	return state, nil
}
