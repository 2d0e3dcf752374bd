package keys

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// emit writes raw bytes, or a line of base64.
func emit(a *cli.App, b []byte, asBase64, isText bool) error {
	if asBase64 {
		_, err := fmt.Fprintln(a.Stdout, base64.StdEncoding.EncodeToString(b))
		return err
	}
	if out, ok := a.Stdout.(*os.File); ok && !isText && term.IsTerminal(int(out.Fd())) {
		return errors.New("not writing bytes to a terminal; redirect standard output, or use --base64")
	}
	_, err := a.Stdout.Write(b)
	return err
}

// emitPEM writes DER as PEM.
func emitPEM(a *cli.App, der []byte, typ string) error {
	return pem.Encode(a.Stdout, &pem.Block{Type: typ, Bytes: der})
}

// clientCalls returns the commands for rows that are not in a group, each with
// the flags of a client.
func clientCalls(a *cli.App, rows ...call) []*cobra.Command {
	cmds := calls(a, rows...)
	for _, cmd := range cmds {
		a.ClientFlags(cmd)
	}
	return cmds
}

func cryptCommands(a *cli.App) []*cobra.Command {
	algorithm := func(member, flag string) input {
		return textFlag(member, flag, "SYMMETRIC_DEFAULT, RSAES_OAEP_SHA_1 or RSAES_OAEP_SHA_256, for RSA keys (default SYMMETRIC_DEFAULT)")
	}
	modifiers := listFlag("dry_run_modifiers", "dry-run-modifiers", "IGNORE_CIPHERTEXT: make a dry run without a ciphertext")
	return clientCalls(a,
		call{
			use: "encrypt --key KEY [FILE|-]", short: "Encrypt up to 4096 bytes", op: "Encrypt", doing: "encrypting with key",
			long: `Encrypt reads a file or standard input and writes the ciphertext, which names its
key, to standard output. Both are raw bytes. Encrypt more than 4096 bytes with a
data key; see "conclave datakey".

` + keyHelp,
			example: `  conclave encrypt --key payments --context app=shop secret.txt > secret.enc
  conclave encrypt --key payments --dry-run secret.txt`,
			takes: []input{
				keyFlag("the key to encrypt with").needed(),
				contextFlag("encryption_context", "context", "encryption context NAME=VALUE, which is needed to decrypt too; may be repeated"),
				algorithm("encryption_algorithm", "algorithm"),
				file("plaintext", 1, blob{limit: maxPlaintext, what: "the plaintext", tooLong: "encrypt it with a data key, see `conclave datakey --help`"}),
				grantTokens(), dryRun(),
			},
			shows: show{raw: "ciphertext_blob"},
		},
		call{
			use: "decrypt [FILE|-]", short: "Decrypt the output of encrypt", op: "Decrypt", doing: "decrypting",
			long: `Decrypt reads a ciphertext from a file or standard input and writes the plaintext to
standard output. Both are raw bytes. The ciphertext names its key, unless it was
made with an RSA key.

` + keyHelp,
			example: `  conclave decrypt --context app=shop secret.enc`,
			takes: []input{
				textFlag("key_id", "key", "refuse a ciphertext of any other key").keyed(),
				contextFlag("encryption_context", "context", "encryption context NAME=VALUE with which it was encrypted"),
				algorithm("encryption_algorithm", "algorithm"),
				ciphertextFile(1), recipient(), grantTokens(), dryRun(), modifiers,
			},
			shows: show{raw: "plaintext", text: true},
		},
		call{
			use: "reencrypt --key KEY [FILE|-]", short: "Encrypt a ciphertext with another key, without showing the plaintext", op: "ReEncrypt", doing: "encrypting again with key",
			example: `  conclave reencrypt --key orders --source-context app=shop --context app=shop secret.enc > moved.enc`,
			takes: []input{
				textFlag("destination_key_id", "key", "the new key").keyed().needed().naming(),
				textFlag("source_key_id", "source-key", "refuse a ciphertext of any other key").keyed(),
				contextFlag("destination_encryption_context", "context", "new encryption context NAME=VALUE"),
				contextFlag("source_encryption_context", "source-context", "encryption context NAME=VALUE with which it was encrypted"),
				algorithm("destination_encryption_algorithm", "algorithm"),
				algorithm("source_encryption_algorithm", "source-algorithm"),
				ciphertextFile(1), grantTokens(), dryRun(), modifiers,
			},
			shows: show{raw: "ciphertext_blob"},
		},
	)
}
