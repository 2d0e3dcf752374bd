package access

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/permissions"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func accessCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "access", Short: "Find out who may use a key",
		Example: `  conclave access list --key payments`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(accessListCommand(a))
	return cmd
}

// uses are the actions that use keys, by the usage of the key.
var uses = map[string][]string{
	"ENCRYPT_DECRYPT": {
		"kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo",
		"kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:GenerateDataKeyPair", "kms:GenerateDataKeyPairWithoutPlaintext",
	},
	"SIGN_VERIFY":             {"kms:Sign", "kms:Verify", "kms:GetPublicKey"},
	"GENERATE_VERIFY_MAC":     {"kms:GenerateMac", "kms:VerifyMac"},
	"KEY_AGREEMENT":           {"kms:DeriveSharedSecret", "kms:GetPublicKey"},
	"ENCAPSULATE_DECAPSULATE": {"kms:Encapsulate", "kms:Decapsulate", "kms:GetPublicKey"},
}

// control are actions by which a principal can come to use a key, or have it destroyed.
var control = []string{"kms:CreateGrant", "kms:PutKeyPolicy", "kms:DisableKey", "kms:ScheduleKeyDeletion"}

func accessListCommand(a *cli.App) *cobra.Command {
	var key string
	var only []string
	cmd := &cobra.Command{
		Use: "list --key KEY", Short: "List who may use a key, and by which statement or grant",
		Long: `List shows who may use a key, or come to use it or destroy it, and by which statement of
which policy or by which grant. IF is what decides only when a request is made: a
condition, or the constraints of a grant.

It reads the key's policy and grants and all policies of the caller's account, which has
to be that of the key. The policies of other accounts, and those that sessions are
limited with, are not known to it, and the state of the key does not matter.`,
		Example: `  conclave access list --key payments
  conclave access list --key payments --action kms:Decrypt -o json`,
		Annotations: calls("GetAccountAuthorizationDetails"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if key == "" {
				return cli.Usagef("--key is required: a KEY")
			}
			return a.WithEach(cmd.Context(), "listing who may use key "+key, func(ctx context.Context, c *cli.Connection) error {
				k, err := keyOf(ctx, a, c, key)
				if err != nil {
					return err
				}
				if len(only) > 0 {
					k.Actions = only
				}
				details, err := everything[*iampb.GetAccountAuthorizationDetailsResponse](ctx, a, c, "GetAccountAuthorizationDetails", &iampb.GetAccountAuthorizationDetailsRequest{})
				if err != nil {
					return err
				}
				out, err := permissions.Who(k, details)
				if err != nil {
					return err
				}
				return a.Print(out, func(w io.Writer) {
					cli.Line(w, "PRINCIPAL", "MAY", "BY", "IF")
					for _, x := range out {
						may := make([]string, len(x.Actions))
						for i, action := range x.Actions {
							may[i] = strings.TrimPrefix(action, "kms:")
						}
						cli.Line(w, x.Principal, strings.Join(may, ","), x.By, cli.OrDash(x.If))
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the KEY")
	cmd.Flags().StringArrayVar(&only, "action", nil, "only this action, such as kms:Decrypt; may be repeated")
	return cmd
}

// keyOf gets the policy and the grants of a key.
func keyOf(ctx context.Context, a *cli.App, c *cli.Connection, key string) (*permissions.Key, error) {
	k := new(permissions.Key)
	err := a.Timed(ctx, func(ctx context.Context) error {
		m, err := describeKey(ctx, c, key)
		if err != nil {
			return err
		}
		who, err := caller(ctx, c)
		if err != nil {
			return err
		}
		if k.ARN, err = policy.ParseARN(m.GetArn()); err != nil {
			return err
		}
		if who.Account != k.ARN.Account {
			return fmt.Errorf("the key is of account %s, and the caller of account %s, who does not see the policies there", k.ARN.Account, who.Account)
		}
		k.Actions = slices.Concat(uses[m.GetKeyUsage()], control)
		res, err := c.KMS().GetKeyPolicy(ctx, &kmspb.GetKeyPolicyRequest{KeyId: m.Arn})
		k.Policy = res.GetPolicy()
		return err
	})
	if err != nil {
		return nil, err
	}
	id := k.ARN.String()
	for marker := (*string)(nil); ; {
		var res *kmspb.ListGrantsResponse
		err := a.Timed(ctx, func(ctx context.Context) (err error) {
			res, err = c.KMS().ListGrants(ctx, &kmspb.ListGrantsRequest{KeyId: &id, Marker: marker})
			return err
		})
		if err != nil {
			return nil, err
		}
		k.Grants = append(k.Grants, res.GetGrants()...)
		if !res.GetTruncated() || res.GetNextMarker() == "" {
			return k, nil
		}
		marker = res.NextMarker
	}
}
