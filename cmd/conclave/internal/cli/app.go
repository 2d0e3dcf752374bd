// Package cli is what all commands of the command line share: flags of clients, the
// connection to a server, output in its forms, errors and exit codes.
//
// Nothing that a server or its users wrote reaches a terminal as it is: tables and
// errors show control characters instead of having the terminal obey them.
package cli

import (
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// App is what the commands share.
type App struct {
	Stdin          io.Reader
	stdinRead      bool // there is nothing left of it
	Stdout, Stderr io.Writer

	Output string // what --output says; "" if it is not given
	Remote RemoteFlags
}

// ClientFlags adds the flags of the commands that talk to a server.
func (a *App) ClientFlags(cmd *cobra.Command) *cobra.Command {
	f := cmd.PersistentFlags()
	f.StringVar(&a.Remote.address, "address", "", "gRPC addresses of nodes, of which the first that answers is used: host:port,…, or http://host:port without TLS on loopback (CONCLAVE_ADDRESS; default 127.0.0.1:7601)")
	f.StringVar(&a.Remote.ca, "ca", "", "PEM file of the cluster's CA (CONCLAVE_CA)")
	f.StringVar(&a.Remote.cert, "cert", "", "PEM file of your client certificate (CONCLAVE_CERT)")
	f.StringVar(&a.Remote.key, "key-file", "", "PEM file of its key (CONCLAVE_KEY)")
	f.StringVar(&a.Remote.crl, "crl", "", "PEM file of the CA's certificate revocation list: nodes on it are not talked to (CONCLAVE_CRL)")
	f.StringVar(&a.Remote.profile, "profile", "", "profile of ~/.aws/credentials and ~/.aws/config with the access key (AWS_PROFILE)")
	f.StringVar(&a.Remote.region, "region", "", "region that requests are for (CONCLAVE_REGION; default the cluster's own)")
	f.DurationVar(&a.Remote.Timeout, "timeout", 30*time.Second, "how long to wait for an answer")
	return a.OutputFlag(cmd)
}

// OutputFlag adds the flag for the form of the output.
func (a *App) OutputFlag(cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVarP(&a.Output, "output", "o", "", "table, json or yaml (CONCLAVE_OUTPUT; default table)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// First returns the first value that is not empty: a flag's, then the
// environment's.
func First(flag string, envs ...string) string {
	if flag != "" {
		return flag
	}
	for _, name := range envs {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

// None, for an address, goes without the listener.
const None = "none"
