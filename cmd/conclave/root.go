package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/access"
	"github.com/conclavekms/conclave/cmd/conclave/internal/audit"
	"github.com/conclavekms/conclave/cmd/conclave/internal/backups"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/keys"
	"github.com/conclavekms/conclave/cmd/conclave/internal/operator"
	"github.com/conclavekms/conclave/cmd/conclave/internal/report"
	"github.com/conclavekms/conclave/cmd/conclave/internal/usage"
)

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &cli.App{Stdin: stdin, Stdout: stdout, Stderr: stderr}
	root := rootCommand(a)
	root.SetArgs(args)
	return a.Report(root.ExecuteContext(ctx))
}

// Groups of the help page.
const (
	groupServe   = "serve"
	groupOperate = "operate"
	groupKeys    = "keys"
	groupAccess  = "access"
	groupCrypto  = "crypto"
	groupTry     = "try"
)

func rootCommand(a *cli.App) *cobra.Command {
	root := &cobra.Command{
		Use:   "conclave",
		Short: "A key management service that only a quorum can unseal",
		Long: `Conclave is a key management service with the API of AWS KMS, for your own machines:
a cluster that keeps keys and a verifiable audit log, and that only a quorum of
custodians can unseal.

To try it: conclave dev. In another shell: eval "$(conclave env)".`,
		Version:       cli.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetVersionTemplate("conclave {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cli.Usage(err) })
	root.AddGroup(
		&cobra.Group{ID: groupTry, Title: "Trying it:"},
		&cobra.Group{ID: groupServe, Title: "Serving:"},
		&cobra.Group{ID: groupOperate, Title: "Operating a cluster:"},
		&cobra.Group{ID: groupKeys, Title: "Managing keys:"},
		&cobra.Group{ID: groupCrypto, Title: "Using keys:"},
		&cobra.Group{ID: groupAccess, Title: "Who may do what:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupTry, devCommand(a), envCommand(a), demoCommand(a), benchCommand(a))
	add(groupServe, serverCommand(a), certCommand(a), healthCommand(a), diagnoseCommand(a))
	add(groupOperate, operator.Commands(a)...)
	add(groupOperate, backups.Commands(a)...)
	attach(root, "cluster", backups.RecoverQuorumCommand(a))
	add(groupOperate, audit.Command(a), report.Command(a), usage.Command(a), debugCommand(a))
	add(groupKeys, keys.Manage(a)...)
	add(groupCrypto, keys.Use(a)...)
	add(groupAccess, access.Commands(a)...)
	root.AddCommand(benchEchoCommand(), manCommand())
	strict(root)
	return root
}

// attach adds a command below another one that is there.
func attach(root *cobra.Command, parent string, cmd *cobra.Command) {
	for _, c := range root.Commands() {
		if c.Name() == parent {
			c.AddCommand(cmd)
			return
		}
	}
	panic("there is no command " + parent)
}

// strict makes wrong arguments of all commands usage errors, and an unknown
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
			return cli.Usagef("there is no command %q; see %s --help", c.CommandPath()+" "+args[0], c.CommandPath())
		}
		return
	}
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return cli.Usagef("%v; see %s --help", err, c.CommandPath())
		}
		return nil
	}
}
