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
		cmd.Flags().Bool("without-plaintext", false, "get only the encrypted key")
	}
	return clientCalls(a,
		call{
			use: "datakey --key KEY", short: "Make a data key, in the clear and encrypted",
			op: "GenerateDataKey", also: []string{"GenerateDataKeyWithoutPlaintext"}, doing: "making a data key with key",
			long: `Datakey makes a key with which you encrypt data yourself, and the same key encrypted
with KEY. Keep the encrypted key with the data, and decrypt it with "conclave
decrypt" to read the data. Both are shown in base64, or written raw to files of mode
0600.

` + keyHelp,
			example: `  conclave datakey --key payments --plaintext-file data.key --ciphertext-file data.key.enc
  conclave datakey --key payments --bytes 64 --without-plaintext -o json`,
			takes: []input{
				keyFlag("the key that encrypts the data key").needed(),
				textFlag("key_spec", "spec", "AES_256 or AES_128 (default AES_256)"),
				numberFlag("number_of_bytes", "bytes", "length, 1 to 1024, instead of --spec"),
				contextFlag("encryption_context", "context", "encryption context NAME=VALUE"),
				recipient(), grantTokens(), dryRun(),
			},
			flags: without,
			shows: show{table: dataKeyTable},
			files: []outFile{
				{"ciphertext_blob", "ciphertext-file", "write the encrypted key to this file"}, // first, as the other is useless without it
				{"plaintext", "plaintext-file", "write the data key to this file"},
			},
			before: func(b *bound) error {
				f := b.cmd.Flags()
				if f.Changed("bytes") && f.Changed("spec") {
					return cli.Usagef("give either --bytes or --spec")
				}
				if !f.Changed("bytes") && !f.Changed("spec") {
					b.set("key_spec", protoreflect.ValueOfString("AES_256"))
				}
				return b.contradiction("plaintext-file")
			},
			run: withoutPlaintext,
		},
		call{
			use: "keypair --key KEY --spec SPEC", short: "Make a key pair, with the private key in the clear and encrypted",
			op: "GenerateDataKeyPair", also: []string{"GenerateDataKeyPairWithoutPlaintext"}, doing: "making a key pair with key",
			long: `Keypair makes a key pair that you use yourself, and its private key encrypted with
KEY. All are shown in base64, or written raw (DER) to files of mode 0600.

` + keyHelp,
			example: `  conclave keypair --key payments --spec ECC_NIST_P256 --public-key-file pair.pub --ciphertext-file pair.enc --private-key-file pair.key
  conclave keypair --key payments --spec RSA_2048 --without-plaintext -o json`,
			takes: []input{
				keyFlag("the key that encrypts the private key").needed(),
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
				numberFlag("number_of_bytes", "bytes", "number of bytes, 1 to 1024 (default 32)").or("32"),
				textFlag("custom_key_store_id", "key-store", "id of the custom key store that generates them"),
				recipient(),
			},
			shows: show{raw: "plaintext"},
		},
	)
}

// contradiction returns the error for a file that needs what
// --without-plaintext leaves out.
func (b *bound) contradiction(file string) error {
	without, err := b.cmd.Flags().GetBool("without-plaintext")
	if err == nil && without && b.cmd.Flags().Changed(file) {
		return cli.Usagef("--without-plaintext and --%s contradict each other", file)
	}
	return err
}

// withoutPlaintext calls the operation whose answer has no plaintext, if the user
// wants none. The two requests have the same members except for the recipient.
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

// dataKeyTable shows the parts of a data key or a key pair that the answer has.
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
