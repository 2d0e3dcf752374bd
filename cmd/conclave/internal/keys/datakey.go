package keys

import (
	"context"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

func datakeyCommands(a *cli.App) []*cobra.Command {
	without := func(cmd *cobra.Command) {
		cmd.Flags().Bool("without-plaintext", false, "only the encrypted one")
	}
	return clientCalls(a,
		call{
			use: "datakey --key KEY", short: "Make a data key: to encrypt with, and itself encrypted",
			op: "GenerateDataKey", also: []string{"GenerateDataKeyWithoutPlaintext"}, doing: "making a data key with key",
			long: `Datakey makes a key for encrypting data yourself, and that key encrypted with
KEY. Keep the encrypted one beside the data, and "conclave decrypt" it when the
data is to be read. It shows both in base64, or writes them raw to files of mode
0600.

` + keyHelp,
			example: `  conclave datakey --key payments --plaintext-file data.key --ciphertext-file data.key.enc
  conclave datakey --key payments --bytes 64 --without-plaintext -o json`,
			takes: []input{
				keyFlag("the key that encrypts it").needed(),
				textFlag("key_spec", "spec", "AES_256 or AES_128 (default AES_256)"),
				numberFlag("number_of_bytes", "bytes", "length, 1 to 1024, instead of --spec"),
				contextFlag("encryption_context", "context", "encryption context NAME=VALUE"),
				recipient(), grantTokens(), dryRun(),
			},
			flags: without,
			shows: show{table: dataKeyTable},
			files: []outFile{
				{"ciphertext_blob", "ciphertext-file", "write the encrypted key to this file"}, // first: without it the other is of no use
				{"plaintext", "plaintext-file", "write the data key to this file"},
			},
			before: func(b *bound) error {
				f := b.cmd.Flags()
				if f.Changed("bytes") && f.Changed("spec") {
					return cli.Usagef("give --bytes or --spec")
				}
				if !f.Changed("bytes") && !f.Changed("spec") {
					b.set("key_spec", protoreflect.ValueOfString("AES_256"))
				}
				return b.contradiction("plaintext-file")
			},
			run: withoutPlaintext,
		},
		call{
			use: "keypair --key KEY --spec SPEC", short: "Make a key pair whose private key is encrypted too",
			op: "GenerateDataKeyPair", also: []string{"GenerateDataKeyPairWithoutPlaintext"}, doing: "making a key pair with key",
			long: `Keypair makes a key pair for use outside, and its private key encrypted with KEY. It
shows all in base64, or writes them raw (DER) to files of mode 0600.

` + keyHelp,
			example: `  conclave keypair --key payments --spec ECC_NIST_P256 --public-key-file pair.pub --ciphertext-file pair.enc --private-key-file pair.key
  conclave keypair --key payments --spec RSA_2048 --without-plaintext -o json`,
			takes: []input{
				keyFlag("the key that encrypts the private one").needed(),
				textFlag("key_pair_spec", "spec", "such as RSA_2048, ECC_NIST_P256 or ECC_NIST_EDWARDS25519").needed(),
				contextFlag("encryption_context", "context", "encryption context NAME=VALUE"),
				recipient(), grantTokens(), dryRun(),
			},
			flags: without,
			shows: show{table: dataKeyTable},
			files: []outFile{
				{"private_key_ciphertext_blob", "ciphertext-file", "write the encrypted private key to this file"},
				{"private_key_plaintext", "private-key-file", "write the private key (PKCS #8) to this file"},
				{"public_key", "public-key-file", "write the public key to this file"},
			},
			before: func(b *bound) error { return b.contradiction("private-key-file") },
			run:    withoutPlaintext,
		},
		call{
			use: "random", short: "Write random bytes", op: "GenerateRandom", doing: "getting random bytes",
			example: `  conclave random --bytes 16 --base64`,
			takes: []input{
				numberFlag("number_of_bytes", "bytes", "how many, 1 to 1024 (default 32)").or("32"),
				textFlag("custom_key_store_id", "key-store", "id of a custom key store that makes them"),
				recipient(),
			},
			shows: show{raw: "plaintext"},
		},
	)
}

// contradiction refuses a file for what --without-plaintext does not get.
func (b *bound) contradiction(file string) error {
	without, err := b.cmd.Flags().GetBool("without-plaintext")
	if err == nil && without && b.cmd.Flags().Changed(file) {
		return cli.Usagef("--without-plaintext and --%s contradict each other", file)
	}
	return err
}

// withoutPlaintext calls the operation that has no plaintext in its answer, if the
// user wants none. The requests of both have the same members but the recipient.
func withoutPlaintext(ctx context.Context, c *cli.Connection, b *bound, req proto.Message) error {
	if without, err := b.cmd.Flags().GetBool("without-plaintext"); err != nil || !without {
		return oneCall(ctx, c, b, req)
	}
	if b.cmd.Flags().Changed("attestation-document") {
		return cli.Usagef("--without-plaintext and --attestation-document contradict each other")
	}
	other := newRequest(b.row.also[0])
	req.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		other.Set(other.Descriptor().Fields().ByName(f.Name()), v)
		return true
	})
	res := newResponse(b.row.also[0])
	if err := invoke(c, ctx, b.row.also[0], other.Interface(), res.Interface()); err != nil {
		return b.dryRun(err)
	}
	return b.show(res)
}

// dataKeyTable shows what there is of a data key or a key pair.
func dataKeyTable(w io.Writer, m proto.Message) {
	r := m.ProtoReflect()
	for _, x := range [][2]string{
		{"key", "key_id"}, {"spec", "key_pair_spec"},
		{"plaintext", "plaintext"}, {"private key", "private_key_plaintext"}, {"public key", "public_key"},
		{"ciphertext", "ciphertext_blob"}, {"encrypted private key", "private_key_ciphertext_blob"},
		{"for the recipient", "ciphertext_for_recipient"},
	} {
		f := r.Descriptor().Fields().ByName(protoreflect.Name(x[1]))
		switch {
		case f == nil || !r.Has(f):
		case f.Kind() == protoreflect.BytesKind:
			cli.Line(w, x[0], base64Of(r.Get(f).Bytes()))
		default:
			cli.Line(w, x[0], r.Get(f).String())
		}
	}
}
