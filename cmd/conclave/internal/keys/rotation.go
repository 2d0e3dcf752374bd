package keys

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func rotationCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rotation", Short: "Give a key new material, now or regularly",
		Long: `Rotation gives a key new material. What was encrypted with the earlier material can
still be decrypted.

` + keyHelp,
		Example: `  conclave key rotation enable payments --period-days 180
  conclave key rotation list payments`,
	}
	cmd.AddCommand(calls(a,
		call{
			use: "enable KEY", short: "Rotate a key regularly", op: "EnableKeyRotation", doing: "enabling the rotation of key",
			example: `  conclave key rotation enable payments --period-days 180`,
			takes:   []input{keyArg(1), numberFlag("rotation_period_in_days", "period-days", "days between rotations, 90 to 2560 (default 365)")},
		},
		call{
			use: "disable KEY", short: "Stop rotating a key regularly", op: "DisableKeyRotation", doing: "disabling the rotation of key",
			example: `  conclave key rotation disable payments`,
			takes:   []input{keyArg(1)},
		},
		call{
			use: "status KEY", short: "Show whether a key is rotated regularly, and when next", op: "GetKeyRotationStatus", doing: "getting the rotation of key",
			example: `  conclave key rotation status payments`,
			takes:   []input{keyArg(1)},
			shows: tableOf(func(w io.Writer, r *kmspb.GetKeyRotationStatusResponse) {
				cli.Line(w, "rotated", fmt.Sprint(r.GetKeyRotationEnabled()))
				if r.RotationPeriodInDays != nil {
					cli.Line(w, "every", fmt.Sprintf("%d days", r.GetRotationPeriodInDays()))
				}
				cli.Line(w, "next", cli.When(r.GetNextRotationDate()))
				if r.GetOnDemandRotationStartDate() != nil {
					cli.Line(w, "under way since", cli.When(r.GetOnDemandRotationStartDate()))
				}
			}),
		},
		call{
			use: "now KEY", short: "Rotate a key immediately", op: "RotateKeyOnDemand", doing: "rotating key",
			long: `Now rotates a key immediately. A key with imported material is rotated to the new
material that was imported for it with "conclave key import --import-type
NEW_KEY_MATERIAL".`,
			example: `  conclave key rotation now payments`,
			takes:   []input{keyArg(1)},
			shows:   tableOf(func(w io.Writer, r *kmspb.RotateKeyOnDemandResponse) { cli.Line(w, "key id", r.GetKeyId()) }),
		},
		call{
			use: "list KEY", short: "List the rotations of a key and its materials", op: "ListKeyRotations", doing: "listing the rotations of key",
			example: `  conclave key rotation list payments --include-key-material ALL_KEY_MATERIAL`,
			takes: []input{
				keyArg(1),
				textFlag("include_key_material", "include-key-material", "ROTATIONS_ONLY or ALL_KEY_MATERIAL, which adds the first material and material that is pending"),
			},
			pages: 1000,
			shows: tableOf(func(w io.Writer, r *kmspb.ListKeyRotationsResponse) {
				cli.Line(w, "ROTATED", "TYPE", "MATERIAL", "STATE", "IMPORTED", "EXPIRES", "DESCRIPTION")
				for _, x := range r.GetRotations() {
					cli.Line(w, cli.When(x.GetRotationDate()), cli.OrDash(x.GetRotationType()), cli.OrDash(x.GetKeyMaterialId()), cli.OrDash(x.GetKeyMaterialState()),
						cli.OrDash(x.GetImportState()), cli.When(x.GetValidTo()), cli.OrDash(x.GetKeyMaterialDescription()))
				}
			}),
		},
	)...)
	return cmd
}
