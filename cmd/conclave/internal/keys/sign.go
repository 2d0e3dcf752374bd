package keys

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // for digests of messages that are too long to be sent
	_ "crypto/sha512"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	maxMessage   = 4096
	maxSignature = 16 << 10
)

func signCommands(a *cli.App) []*cobra.Command {
	algorithm := textFlag("signing_algorithm", "algorithm", "such as ECDSA_SHA_256, RSASSA_PSS_SHA_256, ED25519_SHA_512 or ML_DSA_SHAKE_256").needed()
	messageType := textFlag("message_type", "message-type", "RAW, DIGEST if FILE has a digest, or EXTERNAL_MU (default RAW)")
	return clientCalls(a,
		call{
			use: "sign --key KEY --algorithm ALG [FILE|-]", short: "Sign a file", op: "Sign", doing: "signing with key",
			long: `Sign signs a file or standard input and writes the signature to standard output as
raw bytes. For more than 4096 bytes, the digest is computed on this machine with the
algorithm's hash function, and sent instead, which gives the same signature. Not all
algorithms allow that.

` + keyHelp,
			example: `  conclave sign --key releases --algorithm ECDSA_SHA_256 document.txt > document.sig`,
			takes:   []input{keyFlag("the key that signs").needed(), algorithm, messageType, message(1), grantTokens(), dryRun()},
			shows:   show{raw: "signature"},
		},
		call{
			use: "verify --key KEY --algorithm ALG --signature FILE [FILE|-]", short: "Verify a signature", op: "Verify", doing: "verifying with key",
			long: `Verify checks the signature of a file or of standard input. It exits with 0 if the
signature is valid, and with 1 if it is not.

` + keyHelp,
			example: `  conclave verify --key releases --algorithm ECDSA_SHA_256 --signature document.sig document.txt`,
			takes: []input{
				keyFlag("the key that signed").needed(), algorithm, messageType,
				fileFlag("signature", "signature", "file with the signature", blob{limit: maxSignature, what: "the signature"}).needed(),
				message(1), grantTokens(), dryRun(),
			},
			shows: tableOf(func(w io.Writer, r *kmspb.VerifyResponse) {
				cli.Line(w, "valid", fmt.Sprint(r.GetSignatureValid()))
				cli.Line(w, "key", r.GetKeyId())
			}),
		},
	)
}

// publicKeyCall is the command that gets the public key of a key pair.
func publicKeyCall() call {
	return call{
		use: "public-key KEY", short: "Write the public key of a key pair, as DER or PEM", op: "GetPublicKey", doing: "getting the public key of key",
		example: `  conclave key public-key releases --pem > releases.pem
  conclave key public-key releases -o json`,
		takes: []input{keyArg(1), grantTokens()},
		shows: show{raw: "public_key", pem: "PUBLIC KEY"},
	}
}

// message is the message to sign or verify. One that is longer than the API
// accepts is replaced by its digest, if the algorithm begins by computing a
// digest anyway.
func message(n int) input {
	return input{
		member: "message", arg: n, optional: true,
		given: func(*bound) string { return "" },
		fill: func(b *bound, in input) error {
			r, what, err := b.app.Open(b.argument(n))
			if err != nil {
				return err
			}
			defer r.Close()
			head, err := io.ReadAll(io.LimitReader(r, maxMessage+1))
			if err != nil {
				return fmt.Errorf("reading %s: %w", what, err)
			}
			if len(head) == 0 {
				return fmt.Errorf("%s is empty", what)
			}
			if len(head) > maxMessage {
				if b.cmd.Flags().Changed("message-type") {
					return fmt.Errorf("%s is longer than %d bytes; leave out --message-type to sign its digest", what, maxMessage)
				}
				algorithm, _ := b.cmd.Flags().GetString("algorithm")
				if head, err = digest(algorithm, io.MultiReader(bytes.NewReader(head), r)); err != nil {
					return fmt.Errorf("%s is longer than %d bytes: %w", what, maxMessage, err)
				}
				b.set("message_type", protoreflect.ValueOfString("DIGEST"))
			}
			b.set(in.member, protoreflect.ValueOfBytes(head))
			return nil
		},
	}
}

// digest returns the digest of a message that an algorithm signs.
func digest(algorithm string, r io.Reader) ([]byte, error) {
	var h crypto.Hash
	switch {
	case strings.HasPrefix(algorithm, "ED25519") || strings.HasPrefix(algorithm, "ML_DSA"):
		return nil, fmt.Errorf("%s signs messages as they are", algorithm)
	case strings.HasSuffix(algorithm, "SHA_256"):
		h = crypto.SHA256
	case strings.HasSuffix(algorithm, "SHA_384"):
		h = crypto.SHA384
	case strings.HasSuffix(algorithm, "SHA_512"):
		h = crypto.SHA512
	default:
		return nil, fmt.Errorf("--algorithm %q has no known digest", algorithm)
	}
	sum := h.New()
	if _, err := io.Copy(sum, r); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}
