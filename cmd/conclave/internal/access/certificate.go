package access

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func certificateCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "certificate", Short: "Say whose client certificates are by their URIs, such as SPIFFE IDs",
		Long: `Certificate manages the certificate mappings of the cluster. A mapping says which user or
role the clients over gRPC are whose certificates have a URI. The certificates are from
the CA that the nodes trust, so the mappings are of the account that the cluster was
initialised with. Who changes them needs conclave:CreateCertificateMapping,
conclave:ListCertificateMappings or conclave:DeleteCertificateMapping there.`,
		Example: `  conclave iam certificate map 'spiffe://example.org/ns/jobs/*' user/alice
  conclave iam certificate list`,
	}
	cmd.AddCommand(certificateMapCommand(a), certificateListCommand(a), certificateDeleteCommand(a))
	return cmd
}

func certificateMapCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "map URI PRINCIPAL", Short: "Map certificates to a user or a role",
		Long: `Map maps the certificates with a URI, or with the URIs that begin with what is before
"/*", to a user or a role. Of several mappings, that with the longest URI counts. The
trust policy of a role has to allow it: it names the ARN that map prints as a Federated
principal, and allows sts:AssumeRole and sts:SetSourceIdentity.`,
		Example: `  conclave iam certificate map spiffe://example.org/ns/shop/sa/web role/app
  conclave iam certificate map 'spiffe://example.org/ns/batch/*' user/alice`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.With(cmd.Context(), "mapping certificates", func(ctx context.Context, c *cli.Connection) error {
				principal, err := principalARN(ctx, c, args[1])
				if err != nil {
					return err
				}
				res, err := c.CertificateMappings().Create(ctx, &kmspb.CreateCertificateMappingRequest{Pattern: args[0], Principal: principal})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) { cli.Line(w, "certificate mapping", res.GetArn()) })
			})
		},
	}
}

func certificateListCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the certificate mappings",
		Example: `  conclave iam certificate list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "listing certificate mappings", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.CertificateMappings().List(ctx, &kmspb.ListCertificateMappingsRequest{})
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					cli.Line(w, "URI", "PRINCIPAL", "CREATED")
					for _, m := range res.GetMappings() {
						cli.Line(w, m.GetPattern(), m.GetPrincipal(), cli.When(m.GetCreated()))
					}
				})
			})
		},
	}
}

func certificateDeleteCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "delete URI", Short: "Delete a certificate mapping",
		Long: `Delete deletes a certificate mapping, whose URI is as list prints it. When it returns, no
node answers a request that it receives afterwards because of that mapping.`,
		Example: `  conclave iam certificate delete spiffe://example.org/ns/shop/sa/web`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.With(cmd.Context(), "deleting a certificate mapping", func(ctx context.Context, c *cli.Connection) error {
				_, err := c.CertificateMappings().Delete(ctx, &kmspb.DeleteCertificateMappingRequest{Pattern: args[0]})
				return err
			})
		},
	}
}
