package keys

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// keyHelp explains KEY, which is what AWS accepts, or an alias's short name.
const keyHelp = `KEY is a key id, a key ARN, an alias such as alias/payments or payments for short,
or an alias ARN. Where AWS requires a key id, the alias is looked up first.`

func keyCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "key", Short: "Create and manage keys", Long: "Key creates and manages keys.\n\n" + keyHelp,
		Example: `  conclave key create --description "card numbers" --alias cards
  conclave key list
  conclave key rotation enable payments`,
	}
	a.ClientFlags(cmd)
	cmd.AddCommand(calls(a,
		call{
			use: "create", short: "Create a key", op: "CreateKey", also: []string{"CreateAlias"}, doing: "creating a key",
			long: `Create creates a key: a symmetric one for encryption, unless --spec and --usage
specify another. Specs: SYMMETRIC_DEFAULT, HMAC_224 to HMAC_512, RSA_2048 to
RSA_4096, ECC_NIST_P256 and further curves, ML_DSA_44 to ML_DSA_87, ML_KEM_512 to
ML_KEM_1024. Usages: ENCRYPT_DECRYPT, SIGN_VERIFY, GENERATE_VERIFY_MAC,
KEY_AGREEMENT and ENCAPSULATE_DECAPSULATE.`,
			example: `  conclave key create --description "orders" --alias orders --tag team=billing
  conclave key create --spec ECC_NIST_P256 --usage SIGN_VERIFY --alias releases
  conclave key create --origin EXTERNAL --alias imported     # then: conclave key import
  KEY=$(conclave key create --quiet)`,
			takes: []input{
				textFlag("description", "description", "what the key is for"),
				textFlag("key_spec", "spec", "key spec (default SYMMETRIC_DEFAULT)"),
				textFlag("key_usage", "usage", "key usage (default ENCRYPT_DECRYPT)"),
				textFlag("origin", "origin", "where the material comes from: AWS_KMS, EXTERNAL, AWS_CLOUDHSM or EXTERNAL_KEY_STORE (default AWS_KMS)"),
				boolFlag("multi_region", "multi-region", "create a primary key, which can be replicated to other regions"),
				policyFlag(), lockout(), tagFlags(),
				textFlag("custom_key_store_id", "key-store", "id of the custom key store for the key"),
				textFlag("xks_key_id", "xks-key", "id of the key in an external key store"),
			},
			flags: func(cmd *cobra.Command) {
				cmd.Flags().String("alias", "", "also create this alias for the key")
				cmd.Flags().BoolP("quiet", "q", false, "print only the key id")
			},
			shows: tableOf(func(w io.Writer, r *kmspb.CreateKeyResponse) { keyTable(w, r.GetKeyMetadata()) }),
			run:   createKey,
		},
		call{
			use: "describe KEY", short: "Show a key", op: "DescribeKey", doing: "describing key",
			example: `  conclave key describe payments
  conclave key describe payments -o json`,
			takes: []input{keyArg(1), grantTokens()},
			shows: tableOf(func(w io.Writer, r *kmspb.DescribeKeyResponse) { keyTable(w, r.GetKeyMetadata()) }),
		},
		keyListCall(),
		call{
			use: "enable KEY", short: "Enable a key", op: "EnableKey", doing: "enabling key",
			example: `  conclave key enable payments`,
			takes:   []input{keyArg(1)},
		},
		call{
			use: "disable KEY", short: "Disable a key: no node uses it after this returns", op: "DisableKey", doing: "disabling key",
			example: `  conclave key disable old-payments`,
			takes:   []input{keyArg(1)},
		},
		call{
			use: "schedule-deletion KEY", short: "Delete a key for ever, after a waiting period", op: "ScheduleKeyDeletion", doing: "scheduling the deletion of key",
			example: `  conclave key schedule-deletion old-payments --days 7`,
			takes:   []input{keyArg(1), numberFlag("pending_window_in_days", "days", "waiting period in days, 7 to 30 (default 30)")},
			shows: tableOf(func(w io.Writer, r *kmspb.ScheduleKeyDeletionResponse) {
				cli.Line(w, "key id", r.GetKeyId())
				cli.Line(w, "state", r.GetKeyState())
				cli.Line(w, "deletion", cli.When(r.GetDeletionDate()))
			}),
		},
		call{
			use: "cancel-deletion KEY", short: "Cancel a key's deletion; the key is then disabled", op: "CancelKeyDeletion", doing: "cancelling the deletion of key",
			example: `  conclave key cancel-deletion old-payments`,
			takes:   []input{keyArg(1)},
		},
		call{
			use: "update-description KEY TEXT", short: "Change a key's description", op: "UpdateKeyDescription", doing: "describing key",
			example: `  conclave key update-description payments "card numbers of the shop"`,
			takes:   []input{keyArg(1), textArg("description", 2)},
		},
		call{
			use: "last-usage KEY", short: "Show what a key was last used for, and when", op: "GetKeyLastUsage", doing: "getting the last use of key",
			example: `  conclave key last-usage old-payments`,
			takes:   []input{keyArg(1)},
			shows: tableOf(func(w io.Writer, r *kmspb.GetKeyLastUsageResponse) {
				u := r.GetKeyLastUsage()
				cli.Line(w, "last used", cli.When(u.GetTimestamp()))
				cli.Line(w, "for", cli.OrDash(u.GetOperation()))
				cli.Line(w, "request", cli.OrDash(u.GetKmsRequestId()))
				cli.Line(w, "counted since", cli.When(r.GetTrackingStartDate()))
			}),
		},
		publicKeyCall(),
		call{
			use: "tag KEY TAG=VALUE…", short: "Set tags of a key", op: "TagResource", doing: "tagging key",
			example: `  conclave key tag payments team=billing stage=production`,
			takes:   []input{keyArg(1), tagArgs(2)},
		},
		call{
			use: "untag KEY TAG…", short: "Remove tags of a key", op: "UntagResource", doing: "untagging key",
			example: `  conclave key untag payments stage`,
			takes:   []input{keyArg(1), textArgs("tag_keys", 2)},
		},
		call{
			use: "tags KEY", short: "List the tags of a key", op: "ListResourceTags", doing: "listing the tags of key",
			example: `  conclave key tags payments`,
			takes:   []input{keyArg(1)}, pages: 50,
			shows: tableOf(func(w io.Writer, r *kmspb.ListResourceTagsResponse) {
				cli.Line(w, "TAG", "VALUE")
				for _, t := range r.GetTags() {
					cli.Line(w, t.GetTagKey(), t.GetTagValue())
				}
			}),
		},
	)...)
	cmd.AddCommand(policyCommand(a), rotationCommand(a))
	cmd.AddCommand(calls(a, append(materialCalls(), replicateCall(), primaryRegionCall())...)...)
	return cmd
}

// textArgs is the arguments from the nth on.
func textArgs(member string, n int) input {
	return input{member: member, arg: n, many: true, fill: func(b *bound, in input) error {
		b.appendTexts(in.member, b.args[n-1:])
		return nil
	}}
}

// tagArgs is TAG=VALUE in the arguments from the nth on.
func tagArgs(n int) input {
	return input{member: "tags", arg: n, many: true, fill: func(b *bound, in input) error {
		return b.tags(in.member, "", b.args[n-1:])
	}}
}

// createKey creates the key and its alias.
func createKey(ctx context.Context, c *cli.Connection, b *bound, req proto.Message) error {
	alias, err := b.cmd.Flags().GetString("alias")
	if err != nil {
		return err
	}
	res := new(kmspb.CreateKeyResponse)
	if err := invoke(c, ctx, b.row.op, req, res); err != nil {
		return err
	}
	id := res.GetKeyMetadata().GetKeyId()
	if alias != "" {
		name := AliasName(alias)
		_, err := c.KMS().CreateAlias(ctx, &kmspb.CreateAliasRequest{AliasName: &name, TargetKeyId: &id})
		if err := cli.Explain("the key "+id+" was created, but giving it "+name, c.Address, err); err != nil {
			return err
		}
	}
	if quiet, err := b.cmd.Flags().GetBool("quiet"); err == nil && quiet {
		_, err := fmt.Fprintln(b.app.Stdout, id)
		return err
	}
	return b.show(res.ProtoReflect())
}

func keyTable(w io.Writer, k *kmspb.KeyMetadata) {
	cli.Line(w, "key id", k.GetKeyId())
	cli.Line(w, "arn", k.GetArn())
	if k.GetDescription() != "" {
		cli.Line(w, "description", k.GetDescription())
	}
	cli.Line(w, "state", k.GetKeyState())
	cli.Line(w, "spec", k.GetKeySpec())
	cli.Line(w, "usage", k.GetKeyUsage())
	cli.Line(w, "origin", k.GetOrigin())
	cli.Line(w, "created", cli.When(k.GetCreationDate()))
	if k.GetDeletionDate() != nil {
		cli.Line(w, "deletion", cli.When(k.GetDeletionDate()))
	}
	if k.GetValidTo() != nil {
		cli.Line(w, "material expires", cli.When(k.GetValidTo()))
	}
	if k.GetCustomKeyStoreId() != "" {
		cli.Line(w, "key store", k.GetCustomKeyStoreId())
	}
	if x := k.GetXksKeyConfiguration(); x != nil {
		cli.Line(w, "external key", x.GetId())
	}
	if m := k.GetMultiRegionConfiguration(); m != nil {
		cli.Line(w, "multi-region", m.GetMultiRegionKeyType())
		cli.Line(w, "primary", m.GetPrimaryKey().GetRegion())
		for _, r := range m.GetReplicaKeys() {
			cli.Line(w, "replica", r.GetRegion())
		}
	}
	if algs := algorithmsOf(k.ProtoReflect()); len(algs) > 0 {
		cli.Line(w, "algorithms", strings.Join(algs, ", "))
	}
}

// algorithmsOf returns the algorithms in a message, of all kinds.
func algorithmsOf(m protoreflect.Message) []string {
	var all []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !f.IsList() || !strings.HasSuffix(string(f.Name()), "_algorithms") {
			continue
		}
		for j := range m.Get(f).List().Len() {
			all = append(all, m.Get(f).List().Get(j).String())
		}
	}
	return all
}

// at returns an argument, or "" if there are fewer.
func at(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}
