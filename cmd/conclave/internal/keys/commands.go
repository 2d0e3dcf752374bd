// Package keys has the commands for keys: those that manage them and those that use
// them. Each makes a call of one operation of the service and is a row of a table (call),
// from which its flags, its request and what it shows are made.
package keys

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// Manage are the commands that manage keys, aliases, grants and custom key
// stores.
func Manage(a *cli.App) []*cobra.Command {
	return []*cobra.Command{keyCommand(a), aliasCommand(a), grantCommand(a), keystoreCommand(a)}
}

// Use are the commands that encrypt, sign and do what else keys are for.
func Use(a *cli.App) []*cobra.Command {
	return slices.Concat(cryptCommands(a), datakeyCommands(a), signCommands(a), macCommands(a), agreeCommands(a))
}
