package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/permissions"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func generateCommand(a *cli.App) *cobra.Command {
	var principal, since string
	cmd := &cobra.Command{
		Use: "generate --principal PRINCIPAL", Short: "Write the smallest policy for what a principal did",
		Long: `Generate reads the audit log and writes the smallest policy that allows a principal what it
did with success: for each resource the actions that were used, and no others. A
principal is an ARN, or user/NAME or role/NAME; a role did what its sessions did.

What it does rarely, such as once a year, is covered only if --since goes back so far.
Requests that a grant or the key's own policy allowed are covered too. Reading the audit
log needs the permission conclave:ReadAudit.`,
		Example:     `  conclave policy generate --principal user/alice --since 2160h > least.json`,
		Annotations: calls("GetCallerIdentity"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if principal == "" {
				return cli.Usagef("--principal is required: an ARN, user/NAME or role/NAME")
			}
			var from time.Time
			if since != "" {
				var err error
				if from, err = pastTime("since", since); err != nil {
					return err
				}
			}
			var u permissions.Use
			unopenable := 0
			err := a.WithEach(cmd.Context(), "reading the audit log", func(ctx context.Context, c *cli.Connection) error {
				err := a.Timed(ctx, func(ctx context.Context) (err error) {
					principal, err = principalARN(ctx, c, principal)
					return err
				})
				if err != nil {
					return err
				}
				return c.ReadAudit(ctx, 0, false, func(r *kmspb.ReadAuditResponse) error {
					if r.GetUnopenable() {
						unopenable++
					} else {
						u.Add(r.GetJson(), principal, from)
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
			if unopenable > 0 {
				a.Note("%d records cannot be decrypted, and are not covered", unopenable)
			}
			if u.Requests == 0 {
				return errors.New("the audit log has no successful request of " + cli.Printable(principal) + " that needs a permission")
			}
			doc, err := u.Policy()
			if err != nil {
				return err
			}
			// What is written has to be a policy, whatever the log says.
			if _, err := policy.Parse(policy.IdentityPolicy, []byte(doc)); err != nil {
				return fmt.Errorf("what the audit log shows does not make a policy: %w", err)
			}
			a.Note("%d requests from %s to %s are covered, and %d that were refused are not", u.Requests, u.Earliest, u.Latest, u.Refused)
			_, err = io.WriteString(a.Stdout, cli.Visible(doc)+"\n")
			return err
		},
	}
	cmd.Flags().StringVar(&principal, "principal", "", "ARN of a user or role, or user/NAME or role/NAME")
	cmd.Flags().StringVar(&since, "since", "", "only what was done since then: "+pastTimes+" (default the whole log)")
	return a.ClientFlags(cmd)
}
