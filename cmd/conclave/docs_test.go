package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

const docsMark = "<!-- From here on written by `go test ./cmd/conclave -run TestDocs -update`. -->\n"

// TestDocs compares docs/cli.md with the commands.
func TestDocs(t *testing.T) {
	const name = "../../docs/cli.md"
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	intro, got, ok := strings.Cut(string(raw), docsMark)
	if !ok {
		t.Fatalf("%s has lost the line %q", name, docsMark)
	}
	var b strings.Builder
	describe(&b, rootCommand(new(cli.App)))
	if *update {
		if err := os.WriteFile(name, []byte(intro+docsMark+b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(b.String(), got); diff != "" {
		t.Errorf("docs/cli.md is behind the commands (-want +got); run with -update:\n%s", diff)
	}
}

// describe writes the reference of a command and its subcommands.
func describe(b *strings.Builder, cmd *cobra.Command) {
	// The flags of all clients are documented in one place.
	client := new(cli.App).ClientFlags(new(cobra.Command)).PersistentFlags()
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() || c.Name() == "completion" || c.Name() == "help" {
			continue
		}
		fmt.Fprintf(b, "\n### `%s`\n\n", c.CommandPath())
		if c.Long != "" {
			b.WriteString(c.Long + "\n")
		} else {
			b.WriteString(c.Short + ".\n")
		}
		if c.Runnable() && !c.HasSubCommands() {
			fmt.Fprintf(b, "\n```\n%s\n```\n", c.UseLine())
		}
		if c.Example != "" {
			fmt.Fprintf(b, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
		}
		flags := false
		c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if of := client.Lookup(f.Name); f.Hidden || f.Name == "help" || of != nil && of.Usage == f.Usage {
				return
			}
			if !flags {
				b.WriteString("\n| Flag | |\n| --- | --- |\n")
				flags = true
			}
			def := ""
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0s" && f.DefValue != "0" {
				def = fmt.Sprintf(" (default `%s`)", strings.Trim(f.DefValue, "[]"))
			}
			short := ""
			if f.Shorthand != "" {
				short = ", `-" + f.Shorthand + "`"
			}
			fmt.Fprintf(b, "| `--%s`%s | %s%s |\n", f.Name, short, f.Usage, def)
		})
		describe(b, c)
	}
}

// eachCommand calls visit with all commands that a user may call.
func eachCommand(cmd *cobra.Command, visit func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "completion" && c.Name() != "help" {
			visit(c)
			eachCommand(c, visit)
		}
	}
}
