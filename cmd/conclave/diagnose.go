package main

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/diagnose"
)

func diagnoseCommand(a *cli.App) *cobra.Command {
	var env envFile
	cmd := &cobra.Command{
		Use:   "diagnose",
		Short: "Find what would keep this machine from running a node",
		Long: `Diagnose looks at what "conclave server" would use with the same flags and
environment: the clock, certificates, the data directory, free space and latency of
its disk, locked memory, open files, ports, and the other nodes. It says what to do
about each finding, and changes nothing.

Run it as the user that the server runs as, with the same limits, before the server
is started. It exits with 1 if a finding would keep the node from starting or from
serving. Warnings do not. It takes 15 seconds at most.`,
		Example: `  conclave diagnose --node-id node-1 --data data --tls-cert tls/node-1.pem --tls-key tls/node-1-key.pem --tls-ca tls/ca.pem
  conclave diagnose --env-file /etc/conclave/conclave.env -o json`,
	}
	a.OutputFlag(cmd)
	env.addFlag(cmd.Flags())
	values := addServerFlags(cmd.Flags(), serverSettings)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := a.Format(); err != nil {
			return err
		}
		getenv, err := env.getenv()
		if err != nil {
			return err
		}
		cfg, faults := values.parse(getenv)
		faults = append(faults, split(cfg.Validate())...)
		found := diagnose.Run(cmd.Context(), cfg, faults)
		err = a.Print(found, func(w io.Writer) {
			for _, f := range found {
				cli.Line(w, f.State, f.Check, f.Found)
				if f.Next != "" {
					cli.Line(w, "", "", "do: "+f.Next)
				}
			}
		})
		if err == nil && diagnose.Worst(found) == diagnose.Problem {
			return &cli.CodedError{Code: cli.ExitError}
		}
		return err
	}
	return cmd
}

// split returns the errors that were joined into one.
func split(err error) []error {
	if all, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err); ok {
		return all.Unwrap()
	}
	if err != nil {
		return []error{err}
	}
	return nil
}
