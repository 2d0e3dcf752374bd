package keys

import (
	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

func agreeCommands(a *cli.App) []*cobra.Command {
	return clientCalls(a,
		call{
			use: "derive --key KEY --public-key FILE", short: "Derive a secret shared with the owner of another key pair (ECDH)", op: "DeriveSharedSecret", doing: "deriving a shared secret with key",
			long: `Derive derives the secret that a key pair of usage KEY_AGREEMENT shares with another
one, whose public key is given as DER or PEM. It writes the raw secret to standard
output. Put it through a key derivation function before using it as a key.

` + keyHelp,
			example: `  conclave derive --key meeting --public-key peer.pem > secret.bin`,
			takes: []input{
				keyFlag("the key of usage KEY_AGREEMENT").needed(),
				textFlag("key_agreement_algorithm", "algorithm", "key agreement algorithm").or("ECDH"),
				fileFlag("public_key", "public-key", "file with the other party's public key, DER or PEM", blob{limit: 16 << 10, what: "the public key", pem: true}).needed(),
				grantTokens(), recipient(), dryRun(),
			},
			shows: show{raw: "shared_secret"},
		},
		call{
			use: "encapsulate --key KEY --ciphertext-file FILE", short: "Make a shared secret and its encapsulation (ML-KEM)", op: "Encapsulate", doing: "encapsulating with key",
			long: `Encapsulate makes a secret that only the holder of the key pair can get from the
encapsulated form. It writes the raw secret to standard output, and the encapsulated
one to FILE, which "conclave decapsulate" reads.

` + keyHelp,
			example: `  conclave encapsulate --key transport --ciphertext-file secret.kem > secret.bin`,
			takes: []input{
				keyFlag("the ML-KEM key").needed(),
				textFlag("encapsulation_algorithm", "algorithm", "ML_KEM").or("ML_KEM"),
				grantTokens(), dryRun(),
			},
			shows: show{raw: "shared_secret"},
			files: []outFile{{"shared_secret_ciphertext_blob", "ciphertext-file", "write the encapsulated secret to this file"}},
			before: func(b *bound) error {
				if !b.cmd.Flags().Changed("ciphertext-file") && !b.cmd.Flags().Changed("dry-run") && b.app.Output == "" {
					return cli.Usagef("--ciphertext-file is required: the secret is useless without its encapsulated form")
				}
				return nil
			},
		},
		call{
			use: "decapsulate --key KEY [FILE|-]", short: "Get the shared secret from its encapsulation (ML-KEM)", op: "Decapsulate", doing: "decapsulating with key",
			long: `Decapsulate reads the output of encapsulate, and writes the raw secret to standard
output. As ML-KEM is defined, input that was not made for the key gives another
secret, not an error.

` + keyHelp,
			example: `  conclave decapsulate --key transport secret.kem > secret.bin`,
			takes: []input{
				keyFlag("the ML-KEM key").needed(),
				textFlag("encapsulation_algorithm", "algorithm", "ML_KEM").or("ML_KEM"),
				file("shared_secret_ciphertext_blob", 1, blob{limit: 2 * maxCiphertext, what: "the encapsulated secret", may64: true}),
				grantTokens(), dryRun(),
			},
			shows: show{raw: "shared_secret"},
		},
	)
}
