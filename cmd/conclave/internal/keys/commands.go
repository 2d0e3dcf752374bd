// Package keys has the commands that manage keys and those that use them. Each calls one
// operation of the service and is a row of a table (call), from which its flags, its
// request and its output are derived.
package keys

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// Manage returns the commands that manage keys, aliases, grants and custom key
// stores.
func Manage(a *cli.App) []*cobra.Command {
	return []*cobra.Command{keyCommand(a), aliasCommand(a), grantCommand(a), keystoreCommand(a)}
}

// Use returns the commands that use keys, such as to encrypt and sign.
func Use(a *cli.App) []*cobra.Command {
	return slices.Concat(cryptCommands(a), datakeyCommands(a), signCommands(a), macCommands(a), agreeCommands(a))
}
