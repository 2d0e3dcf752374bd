package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/keys"
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
						cli.Line(w, x.Principal, brief(x.Actions), x.By, cli.OrDash(x.If))
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the KEY")
	cmd.Flags().StringArrayVar(&only, "action", nil, "only this action, such as kms:Decrypt; may be repeated")
	return cmd
}

// brief writes actions of KMS for a table, with those that have a long name in common as one.
func brief(actions []string) string {
	text := strings.ReplaceAll(strings.Join(actions, ","), "kms:", "")
	for _, name := range []string{"ReEncrypt", "GenerateDataKey"} {
		var all []string
		for _, action := range uses["ENCRYPT_DECRYPT"] {
			if strings.HasPrefix(action, "kms:"+name) {
				all = append(all, strings.TrimPrefix(action, "kms:"))
			}
		}
		text = strings.Replace(text, strings.Join(all, ","), name+"*", 1)
	}
	return text
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
		k.Values = map[string][]string{
			"kms:keyspec": {m.GetKeySpec()}, "kms:keyusage": {m.GetKeyUsage()}, "kms:keyorigin": {m.GetOrigin()},
			"kms:multiregion": {strconv.FormatBool(m.GetMultiRegion())},
		}
		res, err := c.KMS().GetKeyPolicy(ctx, &kmspb.GetKeyPolicyRequest{KeyId: m.Arn})
		k.Policy = res.GetPolicy()
		return err
	})
	if err != nil {
		return nil, err
	}
	id := k.ARN.String()
	if err := addNames(ctx, a, c, k); err != nil {
		return nil, err
	}
	return k, eachPage(ctx, a, func(ctx context.Context, marker *string) (*kmspb.ListGrantsResponse, error) {
		return c.KMS().ListGrants(ctx, &kmspb.ListGrantsRequest{KeyId: &id, Marker: marker})
	}, func(res *kmspb.ListGrantsResponse) { k.Grants = append(k.Grants, res.GetGrants()...) })
}

// eachPage calls use with all pages of a list of KMS. Each may take the time of one answer.
func eachPage[R interface {
	GetTruncated() bool
	GetNextMarker() string
}](ctx context.Context, a *cli.App, get func(ctx context.Context, marker *string) (R, error), use func(R)) error {
	for marker := (*string)(nil); ; {
		var res R
		err := a.Timed(ctx, func(ctx context.Context) (err error) {
			res, err = get(ctx, marker)
			return err
		})
		if err != nil {
			return err
		}
		use(res)
		next := res.GetNextMarker()
		switch {
		case !res.GetTruncated():
			return nil
		case next == "":
			return errors.New("the server cut the list short without saying where it continues")
		}
		marker = &next
	}
}

// addNames adds the aliases and the tags of a key, which policies may ask for, unless the caller
// may not see them.
func addNames(ctx context.Context, a *cli.App, c *cli.Connection, k *permissions.Key) error {
	id := k.ARN.String()
	aliases := []string{}
	err := eachPage(ctx, a, func(ctx context.Context, marker *string) (*kmspb.ListAliasesResponse, error) {
		return c.KMS().ListAliases(ctx, &kmspb.ListAliasesRequest{KeyId: &id, Marker: marker})
	}, func(res *kmspb.ListAliasesResponse) {
		for _, x := range res.GetAliases() {
			aliases = append(aliases, x.GetAliasName())
		}
	})
	switch {
	case err == nil:
		k.Values["kms:resourcealiases"] = aliases
	case !keys.Denied(err):
		return err
	}
	tags := make(map[string][]string)
	err = eachPage(ctx, a, func(ctx context.Context, marker *string) (*kmspb.ListResourceTagsResponse, error) {
		return c.KMS().ListResourceTags(ctx, &kmspb.ListResourceTagsRequest{KeyId: &id, Marker: marker})
	}, func(res *kmspb.ListResourceTagsResponse) {
		for _, t := range res.GetTags() {
			tags["aws:resourcetag/"+strings.ToLower(t.GetTagKey())] = []string{t.GetTagValue()}
		}
	})
	switch {
	case err == nil:
		maps.Copy(k.Values, tags)
		k.Tagged = true
	case !keys.Denied(err):
		return err
	}
	return nil
}
