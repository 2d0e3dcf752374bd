// Package operator has the commands of those who run a cluster: they found it, unseal
// it, look at its nodes, give these revocation lists, and make credentials.
package operator

import (
	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// Commands are the commands that found, open, close and look at a cluster, and
// those for the credentials of its users.
func Commands(a *cli.App) []*cobra.Command {
	return []*cobra.Command{operatorCommand(a), clusterCommand(a), credentialCommand(a)}
}
