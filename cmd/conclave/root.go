package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// app is what the commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	output string
	remote remoteFlags
}

// run carries out one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.rootCommand()
	root.SetArgs(args)
	return a.report(root.ExecuteContext(ctx))
}

// Groups of the help page.
const (
	groupServe   = "serve"
	groupOperate = "operate"
	groupKeys    = "keys"
	groupTry     = "try"
)

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "conclave",
		Short: "A key management service that only a quorum can open",
		Long: `Conclave is a key management service with the API of AWS KMS, for your own
machines: a cluster that keeps keys and a verifiable audit log, opened by a
quorum of custodians.

To try it: conclave dev. In another shell: eval "$(conclave env)".`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("conclave {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddGroup(
		&cobra.Group{ID: groupTry, Title: "Trying it:"},
		&cobra.Group{ID: groupServe, Title: "Serving:"},
		&cobra.Group{ID: groupOperate, Title: "Operating a cluster:"},
		&cobra.Group{ID: groupKeys, Title: "Using keys:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupTry, a.devCommand(), a.envCommand(), a.demoCommand(), a.benchCommand())
	add(groupServe, a.serverCommand(), a.certCommand(), a.healthCommand())
	add(groupOperate, a.operatorCommand(), a.clusterCommand(), a.auditCommand())
	add(groupKeys, a.keyCommand(), a.aliasCommand(), a.encryptCommand(), a.decryptCommand(),
		a.reencryptCommand(), a.datakeyCommand(), a.randomCommand())
	root.AddCommand(a.benchEchoCommand())
	strict(root)
	return root
}

// strict makes wrong arguments errors of usage, everywhere, and an unknown
// subcommand an error instead of a help page.
func strict(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return usagef("there is no command %q; see %s --help", c.CommandPath()+" "+args[0], c.CommandPath())
		}
		return
	}
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usagef("%v; see %s --help", err, c.CommandPath())
		}
		return nil
	}
}

// clientFlags adds the flags of the commands that talk to a server.
func (a *app) clientFlags(cmd *cobra.Command) *cobra.Command {
	f := cmd.PersistentFlags()
	f.StringVar(&a.remote.address, "address", "", "gRPC address of a node: host:port, or http://host:port without TLS on loopback (CONCLAVE_ADDRESS; default 127.0.0.1:7601)")
	f.StringVar(&a.remote.ca, "ca", "", "PEM file of the cluster's CA (CONCLAVE_CA)")
	f.StringVar(&a.remote.cert, "cert", "", "PEM file of your client certificate (CONCLAVE_CERT)")
	f.StringVar(&a.remote.key, "key-file", "", "PEM file of its key (CONCLAVE_KEY)")
	f.StringVar(&a.remote.region, "region", "", "region that requests are for (CONCLAVE_REGION; default the cluster's own)")
	f.DurationVar(&a.remote.timeout, "timeout", 30*time.Second, "how long to wait for an answer")
	return a.outputFlag(cmd)
}

func (a *app) outputFlag(cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVarP(&a.output, "output", "o", "", "table, json or yaml (CONCLAVE_OUTPUT; default table)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// first returns the first value that is not empty: a flag's, then the
// environment's.
func first(flag string, envs ...string) string {
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
