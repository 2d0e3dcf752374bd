// Package access has the commands for who may do what: the users, groups, roles and policies of
// an account, temporary credentials, and what policies mean.
//
// Most commands call one operation and are a row (row) of which the flags, the request and
// the output are made. The others put several calls together.
package access

import (
	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// Commands returns the commands of this package.
func Commands(a *cli.App) []*cobra.Command {
	return []*cobra.Command{iamCommand(a), stsCommand(a), policyCommand(a), accessCommand(a)}
}

func iamCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "iam", Short: "Manage users, groups, roles and policies",
		Long: `Iam manages the users, groups, roles and policies of the caller's account, as "aws iam"
does, which works too.

A POLICY is the ARN of a managed policy, or its name if it has no path: that of AWS's
policy if there is one, such as AdministratorAccess, else that of the account's own.`,
		Example: `  conclave iam user create alice --policy use-key --key payments --secret-file alice.env
  conclave iam user list`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(userCommand(a), groupCommand(a), roleCommand(a), managedCommand(a), accessKeyCommand(a), providerCommand(a), certificateCommand(a), accountAliasCommand(a))
	cmd.AddCommand(newCommand(a, row{
		use: "summary", short: "Print how many of everything the account has, and may have", op: "GetAccountSummary", doing: "summing up the account",
		example: `  conclave iam summary`,
		table:   summaryTable,
	}))
	return cmd
}
