package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) healthCommand() *cobra.Command {
	var addr string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the server on this machine how it is; for container health checks",
		Long: `Health asks the metrics and health port of the server on this machine and exits
with 0 when the process answers and its Raft is up. A sealed node is healthy:
it waits for its custodians, and a restart would not help.`,
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
			_, err = fmt.Fprintln(a.stdout, state)
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
	if _, _, err := getState(ctx, addr, "/livez"); err != nil {
		return "", err
	}
	state, _, err := getState(ctx, addr, "/healthz")
	if err != nil {
		return "", err
	}
	if state == "no leader" {
		return "", errors.New("the node is in contact with no leader")
	}
	return state, nil
}

// getState asks one of the health paths.
func getState(ctx context.Context, addr, path string) (state string, code int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return "", 0, err
	}
	// A proxy of the environment has no business here.
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	var body struct {
		State string `json:"state"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&body); err != nil {
		return "", 0, fmt.Errorf("%s answered %s with something else than a state", addr, path)
	}
	return body.State, resp.StatusCode, nil
}
