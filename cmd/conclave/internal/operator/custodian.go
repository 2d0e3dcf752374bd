package operator

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func custodianKeyCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "custodian-key FILE",
		Short: "Make a key pair to which a custodian's share can be encrypted",
		Long: `Custodian-key makes a key pair for a custodian who has none for age or OpenPGP, and for
clusters in FIPS mode. The private key is written to a new file of mode 0600, which the
custodian keeps. The public key is printed, for "conclave operator init --custodian".
It needs no server.`,
		Args:    cobra.ExactArgs(1),
		Example: `  conclave operator custodian-key alice.key > alice.pub`,
		RunE: func(_ *cobra.Command, args []string) error {
			if exists, err := files.Exists(args[0]); err != nil || exists {
				return fmt.Errorf("%s exists already: shares may be encrypted to the key that it has", args[0])
			}
			key, err := custodian.Generate()
			if err != nil {
				return err
			}
			text, err := key.Marshal()
			if err != nil {
				return err
			}
			defer clear(text)
			if err := files.Write(args[0], text); err != nil {
				return err
			}
			a.Note("the private key is in %s: whoever has it and the encrypted share has the share", args[0])
			_, err = fmt.Fprintln(a.Stdout, key.Public())
			return err
		},
	}
	return cmd
}

func decryptShareCommand(a *cli.App) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "decrypt-share --custodian-key FILE [SHARE|-]",
		Short: "Decrypt a share that is encrypted to a custodian's key",
		Long: `Decrypt-share decrypts a share by the private key that "conclave operator
custodian-key" made, and prints it, for "conclave operator unseal" to read. It needs no
server. A share for age is decrypted by "age --decrypt -i KEY", and one for OpenPGP by
"gpg --decrypt", in the same place.`,
		Args:    cobra.MaximumNArgs(1),
		Example: `  conclave operator decrypt-share --custodian-key alice.key share-1-alice.pem | conclave operator unseal`,
		RunE: func(_ *cobra.Command, args []string) error {
			if file == "" {
				return cli.Usagef("--custodian-key is needed: the file with the private key")
			}
			text, err := files.Read(file, custodian.MaxKey)
			if err != nil {
				return err
			}
			defer clear(text)
			key, err := custodian.ParsePrivate(text)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			encrypted, err := a.ReadInput(name, custodian.MaxEncrypted)
			if err != nil {
				return err
			}
			share, err := key.Decrypt(encrypted)
			if err != nil {
				return err
			}
			defer clear(share)
			if _, err := a.Stdout.Write(share); err != nil {
				return err
			}
			_, err = io.WriteString(a.Stdout, "\n")
			return err
		},
	}
	cmd.Flags().StringVar(&file, "custodian-key", "", "file with the custodian's private key")
	return cmd
}

func nameCustodiansCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "name-custodians NAME[=KEY]…",
		Short: "Say who keeps which share, for the status to say who must still come",
		Long: `Name-custodians says who keeps the shares, in the order of the shares. Afterwards the
status of an unsealing and of a break-glass ceremony shows who must still come. Nothing
else depends on the names. With KEY, as in "conclave operator init --custodian", the
fingerprint of the custodian's key is kept too. The node must be unsealed, and the
cluster must have feature level 2.`,
		Args:    cobra.RangeArgs(1, 16),
		Example: `  conclave operator name-custodians alice bob carol dave erin`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := new(kmspb.NameCustodiansRequest)
			for _, arg := range args {
				c := &kmspb.NamedCustodian{Name: arg}
				if strings.Contains(arg, "=") {
					parsed, _, err := readCustodians([]string{arg})
					if err != nil {
						return err
					}
					c.Name, c.KeyFingerprint = parsed[0].Name, parsed[0].Key.Fingerprint()
				}
				req.Custodians = append(req.Custodians, c)
			}
			return a.With(cmd.Context(), "naming the custodians", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Operator().NameCustodians(ctx, req)
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					if res.GetChanged() {
						cli.Line(w, "the custodians are named")
						return
					}
					cli.Line(w, "the custodians had these names already")
				})
			})
		},
	}
}

// missingNames returns the names of those whose shares a ceremony does not have, if they are
// known.
func missingNames(set *kmspb.ShareSet, have []uint32) (names []string) {
	for i, c := range set.GetCustodians() {
		if !slices.Contains(have, uint32(i+1)) {
			names = append(names, c.GetName())
		}
	}
	return names
}

func missing(set *kmspb.ShareSet, have []uint32) string {
	return cli.Printable(strings.Join(missingNames(set, have), ", "))
}
