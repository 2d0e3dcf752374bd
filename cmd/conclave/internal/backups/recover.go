package backups

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/keyengine/backup"
)

// maxCiphertext is longer than any ciphertext.
const maxCiphertext = 64 << 10

func recoverCommand(a *cli.App) *cobra.Command {
	var o opening
	var from, out, key, algorithm string
	var ciphertexts, pairs []string
	cmd := &cobra.Command{
		Use:   "recover --backup FILE --ciphertext FILE",
		Short: "Decrypt ciphertexts with a backup and the shares, without a cluster",
		Long: `Recover is the last resort: it decrypts ciphertexts with nothing but a backup and as
many shares as unseal the cluster. It needs no server, asks no policy, and records
nothing: whoever has the shares may do anything, so do it with the custodians present.

It decrypts what Encrypt, ReEncrypt and GenerateDataKey made with symmetric keys whose
material is in the backup, in their binary form. Keys that are disabled or pending
deletion work too.

Ciphertexts of asymmetric keys do not name their key: give --key and --algorithm for
what Encrypt made with an RSA key (RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1) or Encapsulate
with an ML-KEM key (ML_KEM), whose shared secret is then the plaintext. Ciphertexts of
keys in custom key stores need that store and a cluster, and so do signatures, MACs and
key agreement: restore one.

With one ciphertext, the plaintext goes to standard output; with --out, each goes to a
file in that directory, mode 0600, with the name of the ciphertext's file.`,
		Example: `  conclave recover --backup conclave.backup --ciphertext secret.enc --context app=shop > secret.txt
  conclave recover --backup conclave.backup --ciphertext a.enc --ciphertext b.enc --out plain`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case from == "" || len(ciphertexts) == 0:
				return cli.Usagef("--backup and --ciphertext are required")
			case (key == "") != (algorithm == ""):
				return cli.Usagef("--key and --algorithm need each other")
			case key != "" && len(pairs) > 0:
				return cli.Usagef("--context is for symmetric keys, and --key for others")
			case out == "" && len(ciphertexts) > 1:
				return cli.Usagef("several ciphertexts need --out")
			}
			context := make(map[string]string)
			for _, p := range pairs {
				name, value, ok := strings.Cut(p, "=")
				if !ok {
					return cli.Usagef("--context: %q is not KEY=VALUE", p)
				}
				context[name] = value
			}
			return o.open(cmd.Context(), a, from, func(_ *backup.Header, k *backup.Keys, rest io.Reader) error {
				content, err := k.Read(rest, nil, nil)
				if err != nil {
					return err
				}
				var failed []error
				for _, name := range ciphertexts {
					if err := recoverOne(a, name, out, func(blob []byte) (string, []byte, error) {
						if key != "" {
							return k.DecryptBy(content.State, key, algorithm, blob)
						}
						return k.Decrypt(content.State, blob, context)
					}); err != nil {
						failed = append(failed, fmt.Errorf("%s: %w", name, err))
					}
				}
				return errors.Join(failed...)
			})
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&from, "backup", "", "the backup")
	f.StringArrayVar(&ciphertexts, "ciphertext", nil, "file with a ciphertext; may be repeated")
	f.StringArrayVar(&pairs, "context", nil, "KEY=VALUE of the encryption context of all of them; may be repeated")
	f.StringVar(&key, "key", "", "ARN or id of the asymmetric key that all of them are of")
	f.StringVar(&algorithm, "algorithm", "", "their algorithm")
	f.StringVar(&out, "out", "", "directory for the plaintexts, which must exist")
	return cmd
}

func recoverOne(a *cli.App, name, out string, decrypt func(blob []byte) (string, []byte, error)) error {
	blob, err := files.Read(name, maxCiphertext)
	if err != nil {
		return err
	}
	key, plaintext, err := decrypt(blob)
	defer clear(plaintext)
	if err != nil {
		return err
	}
	a.Note("%s: decrypted with %s", name, key)
	if out == "" {
		_, err = a.Stdout.Write(plaintext)
		return err
	}
	return files.Write(filepath.Join(out, filepath.Base(name)), plaintext)
}
