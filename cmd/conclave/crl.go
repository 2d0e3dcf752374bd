package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// crlFile is the name of the certificate revocation list, in the directory of
// the CA's certificate.
const crlFile = "crl.pem"

func certRevokeCommand(a *cli.App) *cobra.Command {
	var p certs.Plan
	var reason string
	var serials []string
	cmd := &cobra.Command{
		Use:   "revoke [CERTIFICATE…] --dir DIR",
		Short: "Revoke certificates with the CA in DIR",
		Long: `Revoke puts certificates on the CA's certificate revocation list, crl.pem in DIR,
and signs it. The certificates are given as PEM files or, with --serial, by their
serial numbers in hex. A certificate stays on the list for good.

Nodes do not know the list until "conclave operator crl" delivers it. Keep crl.pem
with the CA's key: nodes accept no list with a lower number, and none that leaves
out a revoked certificate. If it is lost, copy it from the data directory of a node,
where it has the same name.

To give a node or an operator another certificate, revoke the old one first: "conclave
cert issue --force" replaces its file.`,
		Example: `  conclave cert revoke tls/node-3.pem --dir tls --reason key-compromise`,
		Args:    cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if p.Dir == "" || len(args)+len(serials) == 0 {
				return cli.Usagef("--dir and a certificate's file, or --serial, are required")
			}
			if _, ok := pki.Reason(reason); !ok {
				return cli.Usagef("--reason %q is not one of %s", reason, strings.Join(pki.ReasonNames(), ", "))
			}
			ca, err := p.LoadCA()
			if err != nil {
				return err
			}
			if ca == nil {
				return fmt.Errorf("there is no %s in %s", certs.CAFile, p.Dir)
			}
			now := time.Now().UTC().Truncate(time.Second)
			var more []pki.Revocation
			for _, s := range serials {
				n, err := pki.ParseSerial(s)
				if err != nil {
					return cli.Usage(err)
				}
				more = append(more, pki.Revocation{Serial: n, At: now, Reason: reason})
			}
			for _, name := range args {
				cert, err := certs.Read(name)
				if err != nil {
					return err
				}
				if err := ca.Issued(cert); err != nil {
					return fmt.Errorf("%s was not issued by the CA in %s: %w", name, p.Dir, err)
				}
				more = append(more, pki.Revocation{Serial: cert.SerialNumber, At: now, Reason: reason})
			}
			file := filepath.Join(p.Dir, crlFile)
			before, err := readOwnCRL(ca, file)
			if err != nil {
				return err
			}
			next, err := ca.Revoke(before, now, more...)
			if err != nil {
				return err
			}
			if err := files.WritePublic(file, next.PEM()); err != nil {
				return err
			}
			a.Note("made list %d with %d certificates, %s; `conclave operator crl %s` delivers it to the nodes", next.Number(), len(next.Entries()), file, file)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.Dir, "dir", "", "directory with ca.pem, ca-key.pem and, if there is one already, crl.pem")
	f.StringSliceVar(&serials, "serial", nil, "serial numbers, in hex")
	f.StringVar(&reason, "reason", "unspecified", strings.Join(pki.ReasonNames(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("reason", cobra.FixedCompletions(pki.ReasonNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// readOwnCRL reads a CA's list; nil if there is none yet.
func readOwnCRL(ca *pki.CA, file string) (*pki.CRL, error) {
	lists, err := certs.ReadCRLs(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(lists) != 1 {
		return nil, fmt.Errorf("%s has %d lists, but a CA has only one", file, len(lists))
	}
	c, err := ca.CRL(lists[0].DER())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// crlView is a list in the form in which it is printed.
type crlView struct {
	Issuer  string    `json:"issuer"`
	Number  uint64    `json:"number"`
	Issued  time.Time `json:"issued"`
	Revoked []crlItem `json:"revoked"`
}

type crlItem struct {
	Serial string    `json:"serial"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

func certCRLCommand(a *cli.App) *cobra.Command {
	return a.OutputFlag(&cobra.Command{
		Use:   "crl FILE",
		Short: "Show a certificate revocation list",
		Long: `Crl shows the certificate revocation lists in a PEM file: the CA and the number of
each, and the revoked certificates with serial number, time and reason. It does not
verify the CA's signature; nodes do.`,
		Args:    cobra.ExactArgs(1),
		Example: `  conclave cert crl tls/crl.pem`,
		RunE: func(_ *cobra.Command, args []string) error {
			lists, err := certs.ReadCRLs(args[0])
			if err != nil {
				return err
			}
			var views []crlView
			for _, c := range lists {
				v := crlView{Issuer: c.Issuer(), Number: c.Number(), Issued: c.Issued(), Revoked: []crlItem{}}
				for _, e := range c.Entries() {
					v.Revoked = append(v.Revoked, crlItem{fmt.Sprintf("%x", e.Serial), e.At, e.Reason})
				}
				views = append(views, v)
			}
			return a.Print(views, func(w io.Writer) {
				for _, v := range views {
					cli.Line(w, "issuer", v.Issuer)
					cli.Line(w, "number", v.Number)
					cli.Line(w, "issued", v.Issued.Format(time.RFC3339))
					for _, e := range v.Revoked {
						cli.Line(w, "revoked", e.Serial, e.At.Format(time.RFC3339), e.Reason)
					}
				}
			})
		},
	})
}
