package operator

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func operatorCRLCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "crl FILE",
		Short: "Deliver a certificate revocation list to the nodes",
		Long: `Crl delivers the CA's certificate revocation list, which "conclave cert revoke"
makes, to the nodes that --address (CONCLAVE_ADDRESS) names, sealed or not. From
then on they refuse the certificates on it, of nodes and of operators, and close
connections that use one. They keep the list across restarts.

"conclave operator status --all" shows the number of the list that each node has.
Deliver the list again to a node that was down, or whose data directory is new.`,
		Example: `  conclave operator crl tls/crl.pem --address node-1:7601,node-2:7601,node-3:7601`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			lists, err := certs.ReadCRLs(args[0])
			if err != nil {
				return err
			}
			return deliver(cmd.Context(), a, "delivering the certificate revocation list", "did not accept the certificate revocation list", func(ctx context.Context, c *client.Client) (*kmspb.NodeStatus, error) {
				var st *kmspb.NodeStatus
				for _, list := range lists {
					res, err := c.Operator().InstallCRL(ctx, &kmspb.InstallCRLRequest{Crl: list.DER()})
					if err != nil {
						return nil, err
					}
					if st = res.GetNode(); st.GetError() != nil {
						break
					}
				}
				return st, nil
			})
		},
	}
}

// crlNumbers formats the numbers of the lists that a node has: "7", or "7, 2"
// if there are several CAs.
func crlNumbers(lists []*kmspb.CRL) string {
	var b []string
	for _, c := range lists {
		b = append(b, fmt.Sprint(c.GetNumber()))
	}
	return cli.OrDash(strings.Join(b, ", "))
}
