package keys

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// AliasName returns the full name of an alias.
func AliasName(name string) string {
	if strings.HasPrefix(name, "alias/") {
		return name
	}
	return "alias/" + name
}

func aliasCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "alias", Short: "Give keys names",
		Long: "Alias gives keys names: alias/NAME, or NAME for short.\n\n" + keyHelp,
		Example: `  conclave alias create shop payments
  conclave alias list`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(calls(a,
		call{
			use: "create NAME KEY", short: "Give a key a name", op: "CreateAlias", doing: "creating alias",
			example: `  conclave alias create shop payments`,
			takes:   []input{aliasArg(1), keyArg(2).as("target_key_id")},
		},
		call{
			use: "update NAME KEY", short: "Point a name at another key", op: "UpdateAlias", doing: "updating alias",
			example: `  conclave alias update shop orders`,
			takes:   []input{aliasArg(1), keyArg(2).as("target_key_id")},
		},
		call{
			use: "delete NAME", short: "Delete a name; the key stays", op: "DeleteAlias", doing: "deleting alias",
			example: `  conclave alias delete shop`,
			takes:   []input{aliasArg(1)},
		},
		call{
			use: "list", short: "List all aliases, or those of a key", op: "ListAliases", doing: "listing aliases", pages: 100,
			example: `  conclave alias list
  conclave alias list --key payments -o yaml`,
			takes: []input{keyFlag("only the aliases of this key")},
			shows: tableOf(func(w io.Writer, r *kmspb.ListAliasesResponse) {
				cli.Line(w, "ALIAS", "KEY ID", "UPDATED")
				for _, x := range r.GetAliases() {
					cli.Line(w, x.GetAliasName(), cli.OrDash(x.GetTargetKeyId()), cli.When(x.GetLastUpdatedDate()))
				}
			}),
		},
	)...)
	return cmd
}
