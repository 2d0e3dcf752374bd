// Package cli has what all commands of the command line share: flags of clients,
// the connection to a server, output formats, errors and exit codes.
//
// Text from a server or its users never reaches a terminal unchanged: tables and
// errors show control characters in escaped form.
package cli

import (
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// App is shared by all commands.
type App struct {
	Stdin          io.Reader
	stdinRead      bool // it cannot be read again
	Stdout, Stderr io.Writer

	Output string // the value of --output; "" if it is not given
	// Formats are the output formats of the command that runs, beside table, json and yaml.
	Formats []string
	Remote  RemoteFlags
}

// ClientFlags adds the flags of the commands that talk to a server.
func (a *App) ClientFlags(cmd *cobra.Command) *cobra.Command {
	f := cmd.PersistentFlags()
	f.StringVar(&a.Remote.address, "address", "", "gRPC addresses of nodes, of which the first that answers is used: host:port,…, or http://host:port without TLS on loopback (CONCLAVE_ADDRESS; default 127.0.0.1:7601)")
	f.StringVar(&a.Remote.ca, "ca", "", "PEM file of the cluster's CA (CONCLAVE_CA)")
	f.StringVar(&a.Remote.cert, "cert", "", "PEM file of your client certificate (CONCLAVE_CERT)")
	f.StringVar(&a.Remote.key, "key-file", "", "PEM file of its key (CONCLAVE_KEY)")
	f.StringVar(&a.Remote.crl, "crl", "", "PEM file of the CA's certificate revocation list: nodes on it are refused (CONCLAVE_CRL)")
	f.StringVar(&a.Remote.profile, "profile", "", "profile of ~/.aws/credentials and ~/.aws/config with the access key (AWS_PROFILE)")
	f.StringVar(&a.Remote.region, "region", "", "region that requests are for (CONCLAVE_REGION; default the cluster's own)")
	f.DurationVar(&a.Remote.Timeout, "timeout", 30*time.Second, "how long to wait for an answer")
	return a.OutputFlag(cmd)
}

// OutputFlag adds the flag for the output format.
func (a *App) OutputFlag(cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVarP(&a.Output, "output", "o", "", "table, json or yaml (CONCLAVE_OUTPUT; default table)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// First returns the flag's value or, if that is empty, the first environment
// variable that is not empty.
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

// None, as an address, means no listener.
const None = "none"
