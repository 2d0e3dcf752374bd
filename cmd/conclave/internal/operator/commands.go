// Package operator has the commands for operators of a cluster, who initialise and
// unseal it, inspect its nodes, deliver revocation lists to them, and manage
// credentials.
package operator

import (
	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// Commands returns the commands that initialise, unseal, seal and inspect a
// cluster, and those for the credentials of its users.
func Commands(a *cli.App) []*cobra.Command {
	return []*cobra.Command{operatorCommand(a), clusterCommand(a), credentialCommand(a), accountCommand(a)}
}
