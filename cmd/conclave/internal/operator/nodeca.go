package operator

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func caCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Give the cluster the CA of its nodes' certificates, for join tokens",
		Long: `Ca has the commands for the CA that signs the certificates of nodes. A cluster that has it
makes join tokens ("conclave cluster join-token"), with which new machines join without
files that somebody made for them. Its key is encrypted by the cluster's keyring.

A cluster needs no CA: "conclave cert issue" makes the certificates of nodes without it.`,
	}
	cmd.AddCommand(importCACommand(a), showCACommand(a), removeCACommand(a))
	return cmd
}

func importCACommand(a *cli.App) *cobra.Command {
	var certFile, keyFile string
	cmd := &cobra.Command{
		Use:   "import --ca-cert FILE --ca-key FILE",
		Short: "Give the cluster a CA, or replace it",
		Long: `Import gives the cluster the certificate and the key of the CA of its nodes. The nodes must
already trust it (conclave server --tls-ca). The key is encrypted to the node that receives
it, and then by the keyring. Keep the files: a backup has the key, but only the custodians
open a backup. It needs feature level 2.`,
		Example: `  conclave cluster ca import --ca-cert tls/ca.pem --ca-key tls/ca-key.pem`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if certFile == "" || keyFile == "" {
				return cli.Usagef("--ca-cert and --ca-key are required")
			}
			cert, err := files.Read(certFile, certs.MaxFile)
			if err != nil {
				return err
			}
			key, err := files.Read(keyFile, certs.MaxFile)
			defer clear(key)
			if err != nil {
				return err
			}
			ca, err := pki.LoadCA(cert, key)
			if err != nil {
				return fmt.Errorf("%s and %s: %w", certFile, keyFile, err)
			}
			certDER, keyDER, err := ca.DER()
			defer clear(keyDER)
			if err != nil {
				return err
			}
			return a.With(cmd.Context(), "importing the CA", func(ctx context.Context, c *cli.Connection) error {
				if err := client.ImportNodeCA(ctx, c.Cluster(), certDER, keyDER); err != nil {
					return err
				}
				a.Note("the cluster has the CA %s", fingerprintOf(certDER))
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&certFile, "ca-cert", "", "PEM file of the CA's certificate")
	cmd.Flags().StringVar(&keyFile, "ca-key", "", "PEM file of the CA's key")
	return cmd
}

func fingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// shownCA is the CA that a cluster has.
type shownCA struct {
	Fingerprint string     `json:"sha256,omitempty"`
	Subject     string     `json:"subject,omitempty"`
	Expires     *time.Time `json:"expires,omitempty"`
	Imported    *time.Time `json:"imported,omitempty"`
}

func showCACommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show the CA that the cluster has",
		Example: `  conclave cluster ca show`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), "asking for the CA", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Cluster().GetNodeCA(ctx, &kmspb.GetNodeCARequest{})
				if err != nil {
					return err
				}
				var ca shownCA
				if der := res.GetCertificate(); len(der) > 0 {
					cert, err := x509.ParseCertificate(der)
					if err != nil {
						return fmt.Errorf("the CA's certificate: %w", err)
					}
					imported := res.GetImported().AsTime()
					ca = shownCA{fingerprintOf(der), cert.Subject.String(), &cert.NotAfter, &imported}
				}
				return a.Print(ca, func(w io.Writer) {
					if ca.Fingerprint == "" {
						fmt.Fprintln(w, "the cluster has no CA")
						return
					}
					cli.Line(w, "SHA-256", ca.Fingerprint)
					cli.Line(w, "SUBJECT", ca.Subject)
					cli.Line(w, "EXPIRES", ca.Expires.UTC().Format(time.RFC3339))
					cli.Line(w, "IMPORTED", ca.Imported.UTC().Format(time.RFC3339))
				})
			})
		},
	}
}

func removeCACommand(a *cli.App) *cobra.Command {
	var sure bool
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "Take the CA away from the cluster",
		Long: `Remove removes the CA's key from the cluster. No join token is good any more. Certificates
that the CA has signed stay valid. Backups from before still have the key: if a backup and
the shares were stolen, replace the CA.

Remove asks for confirmation; --yes answers it.`,
		Example: `  conclave cluster ca remove --yes`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sure {
				if err := a.Confirm("The cluster will not have the CA's key any more.\nremove?"); err != nil {
					return err
				}
			}
			return a.With(cmd.Context(), "removing the CA", func(ctx context.Context, c *cli.Connection) error {
				if _, err := c.Cluster().RemoveNodeCA(ctx, &kmspb.RemoveNodeCARequest{}); err != nil {
					return err
				}
				a.Note("the cluster has no CA any more")
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&sure, "yes", false, "do not ask for confirmation")
	return cmd
}
