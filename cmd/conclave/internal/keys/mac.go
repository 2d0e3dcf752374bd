package keys

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func macCommands(a *cli.App) []*cobra.Command {
	algorithm := textFlag("mac_algorithm", "algorithm", "HMAC_SHA_224, HMAC_SHA_256, HMAC_SHA_384 or HMAC_SHA_512").needed()
	message := file("message", 1, blob{limit: maxMessage, what: "the message"})
	return clientCalls(a,
		call{
			use: "mac --key KEY --algorithm ALG [FILE|-]", short: "Compute a message authentication code (HMAC)", op: "GenerateMac", doing: "computing a MAC with key",
			long: `Mac computes the HMAC of a file or standard input of up to 4096 bytes, and writes it
to standard output as raw bytes.

` + keyHelp,
			example: `  conclave mac --key tokens --algorithm HMAC_SHA_256 document.txt > document.mac`,
			takes:   []input{keyFlag("the HMAC key").needed(), algorithm, message, grantTokens(), dryRun()},
			shows:   show{raw: "mac"},
		},
		call{
			use: "verify-mac --key KEY --algorithm ALG --mac FILE [FILE|-]", short: "Verify a message authentication code", op: "VerifyMac", doing: "verifying a MAC with key",
			long: `Verify-mac checks an HMAC of a file or of standard input. It exits with 0 if the MAC
is valid, and with 1 if it is not.

` + keyHelp,
			example: `  conclave verify-mac --key tokens --algorithm HMAC_SHA_256 --mac document.mac document.txt`,
			takes: []input{
				keyFlag("the HMAC key").needed(), algorithm,
				fileFlag("mac", "mac", "file with the MAC", blob{limit: 256, what: "the MAC"}).needed(),
				message, grantTokens(), dryRun(),
			},
			shows: tableOf(func(w io.Writer, r *kmspb.VerifyMacResponse) {
				cli.Line(w, "valid", fmt.Sprint(r.GetMacValid()))
				cli.Line(w, "key", r.GetKeyId())
			}),
		},
	)
}
