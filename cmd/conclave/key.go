package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// A KEY is what AWS takes: key id, key ARN, alias name (alias/…) or alias ARN.
const keyHelp = `KEY is a key id, a key ARN, an alias name such as alias/payments, or an alias ARN,
as the operation allows.`

// maxPolicyFile is more than any key policy may have.
const maxPolicyFile = 1 << 20

func (a *app) keyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Create and manage keys", Long: "Key creates and manages keys.\n\n" + keyHelp}
	a.clientFlags(cmd)
	cmd.AddCommand(a.keyCreateCommand(), a.keyDescribeCommand(), a.keyListCommand())
	cmd.AddCommand(
		simple(a, "enable KEY", "Enable a key", "enabling", func(ctx context.Context, c kmspb.KMSClient, key string) (*kmspb.EnableKeyResponse, error) {
			return c.EnableKey(ctx, &kmspb.EnableKeyRequest{KeyId: &key})
		}),
		simple(a, "disable KEY", "Disable a key: no node uses it once this returns", "disabling", func(ctx context.Context, c kmspb.KMSClient, key string) (*kmspb.DisableKeyResponse, error) {
			return c.DisableKey(ctx, &kmspb.DisableKeyRequest{KeyId: &key})
		}),
		simple(a, "cancel-deletion KEY", "Cancel a key's deletion; it is disabled then", "cancelling the deletion of", func(ctx context.Context, c kmspb.KMSClient, key string) (*kmspb.CancelKeyDeletionResponse, error) {
			return c.CancelKeyDeletion(ctx, &kmspb.CancelKeyDeletionRequest{KeyId: &key})
		}),
		a.scheduleCommand(), a.describeCommand(), a.policyCommand(), a.tagCommand(), a.untagCommand(), a.tagsCommand(),
	)
	return cmd
}

// simple is a command with a key and no more.
func simple[R proto.Message](a *app, use, short, doing string, call func(context.Context, kmspb.KMSClient, string) (R, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), doing+" key "+args[0], func(ctx context.Context, c *connection) error {
				res, err := call(ctx, c.KMS(), args[0])
				if err != nil {
					return err
				}
				return a.print(res, func(io.Writer) {}) // there is nothing to tell
			})
		},
	}
}

func (a *app) keyCreateCommand() *cobra.Command {
	req := new(kmspb.CreateKeyRequest)
	var description, policyFile, alias, spec, use string
	var tags []string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a key",
		Example: `  conclave key create --description payments --alias payments --tag team=billing
  KEY=$(conclave key create --quiet)`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := cmd.Flags()
			req.BypassPolicyLockoutSafetyCheck = changedBool(cmd, "bypass-policy-lockout-safety-check")
			if f.Changed("description") {
				req.Description = &description
			}
			if f.Changed("spec") {
				req.KeySpec = &spec
			}
			if f.Changed("usage") {
				req.KeyUsage = &use
			}
			for _, t := range tags {
				k, v, ok := strings.Cut(t, "=")
				if !ok {
					return usagef("--tag %q is not KEY=VALUE", t)
				}
				req.Tags = append(req.Tags, &kmspb.Tag{TagKey: &k, TagValue: &v})
			}
			if policyFile != "" {
				raw, err := a.readInput(policyFile, maxPolicyFile)
				if err != nil {
					return err
				}
				req.Policy = proto.String(string(raw))
			}
			return a.with(cmd.Context(), "creating a key", func(ctx context.Context, c *connection) error {
				res, err := c.KMS().CreateKey(ctx, req)
				if err != nil {
					return err
				}
				id := res.GetKeyMetadata().GetKeyId()
				if alias != "" {
					name := aliasName(alias)
					_, err := c.KMS().CreateAlias(ctx, &kmspb.CreateAliasRequest{AliasName: &name, TargetKeyId: &id})
					if err := explain("the key "+id+" was created, but giving it "+name, c.address, err); err != nil {
						return err
					}
				}
				if quiet {
					_, err := fmt.Fprintln(a.stdout, id)
					return err
				}
				return a.print(res, func(w io.Writer) { keyTable(w, res.GetKeyMetadata()) })
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&description, "description", "", "what the key is for")
	f.StringVar(&spec, "spec", "", "key spec (default SYMMETRIC_DEFAULT)")
	f.StringVar(&use, "usage", "", "key usage (default ENCRYPT_DECRYPT)")
	f.StringVar(&policyFile, "policy", "", "file with the key policy, - for standard input (default: the account decides)")
	f.Bool("bypass-policy-lockout-safety-check", false, "take a policy that locks you out")
	f.StringArrayVar(&tags, "tag", nil, "KEY=VALUE; may be repeated")
	f.StringVar(&alias, "alias", "", "give the key this alias too")
	f.BoolVarP(&quiet, "quiet", "q", false, "print the key id only")
	return cmd
}

// changedBool is the value of a flag that was given, else nil.
func changedBool(cmd *cobra.Command, flag string) *bool {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	v, err := cmd.Flags().GetBool(flag)
	if err != nil {
		return nil
	}
	return &v
}

func keyTable(w io.Writer, k *kmspb.KeyMetadata) {
	line(w, "key id", k.GetKeyId())
	line(w, "arn", k.GetArn())
	if k.GetDescription() != "" {
		line(w, "description", k.GetDescription())
	}
	line(w, "state", k.GetKeyState())
	line(w, "spec", k.GetKeySpec())
	line(w, "usage", k.GetKeyUsage())
	line(w, "origin", k.GetOrigin())
	line(w, "created", when(k.GetCreationDate()))
	if k.GetDeletionDate() != nil {
		line(w, "deletion", when(k.GetDeletionDate()))
	}
}

func (a *app) keyDescribeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "describe KEY", Short: "Show a key", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), "describing key "+args[0], func(ctx context.Context, c *connection) error {
				res, err := c.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: &args[0]})
				if err != nil {
					return err
				}
				return a.print(res, func(w io.Writer) { keyTable(w, res.GetKeyMetadata()) })
			})
		},
	}
}

// pages gets all pages of a list. get fetches one and returns the marker of the
// next, "" after the last.
func pages(get func(marker *string) (next string, err error)) error {
	var marker *string
	for {
		next, err := get(marker)
		if err != nil || next == "" {
			return err
		}
		marker = &next
	}
}

// page is one page of a list.
type page interface {
	GetNextMarker() string
	GetTruncated() bool
}

// nextOf is where a list goes on.
func nextOf(p page, err error) (string, error) {
	if err != nil || !p.GetTruncated() {
		return "", err
	}
	return p.GetNextMarker(), nil
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all keys",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), "listing keys", func(ctx context.Context, c *connection) error {
				all := new(kmspb.ListKeysResponse)
				err := pages(func(marker *string) (string, error) {
					res, err := c.KMS().ListKeys(ctx, &kmspb.ListKeysRequest{Limit: proto.Int32(1000), Marker: marker})
					all.Keys = append(all.Keys, res.GetKeys()...)
					return nextOf(res, err)
				})
				if err != nil {
					return err
				}
				return a.print(all, func(w io.Writer) {
					line(w, "KEY ID", "ARN")
					for _, k := range all.Keys {
						line(w, k.GetKeyId(), k.GetKeyArn())
					}
				})
			})
		},
	}
}

func (a *app) scheduleCommand() *cobra.Command {
	var days int32
	cmd := &cobra.Command{
		Use: "schedule-deletion KEY", Short: "Delete a key after a waiting period, for ever", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &kmspb.ScheduleKeyDeletionRequest{KeyId: &args[0]}
			if cmd.Flags().Changed("days") {
				req.PendingWindowInDays = &days
			}
			return a.with(cmd.Context(), "scheduling the deletion of key "+args[0], func(ctx context.Context, c *connection) error {
				res, err := c.KMS().ScheduleKeyDeletion(ctx, req)
				if err != nil {
					return err
				}
				return a.print(res, func(w io.Writer) {
					line(w, "key id", res.GetKeyId())
					line(w, "state", res.GetKeyState())
					line(w, "deletion", when(res.GetDeletionDate()))
				})
			})
		},
	}
	cmd.Flags().Int32Var(&days, "days", 30, "waiting period in days, 7 to 30")
	return cmd
}

func (a *app) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "update-description KEY TEXT", Short: "Change a key's description", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), "describing key "+args[0], func(ctx context.Context, c *connection) error {
				res, err := c.KMS().UpdateKeyDescription(ctx, &kmspb.UpdateKeyDescriptionRequest{KeyId: &args[0], Description: &args[1]})
				if err != nil {
					return err
				}
				return a.print(res, func(io.Writer) {})
			})
		},
	}
}

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Read and replace a key's policy"}
	put := &cobra.Command{
		Use: "put KEY [FILE|-]", Short: "Replace the policy with that of a file or standard input", Args: cobra.RangeArgs(1, 2),
	}
	put.Flags().Bool("bypass-policy-lockout-safety-check", false, "take a policy that locks you out")
	put.RunE = func(cmd *cobra.Command, args []string) error {
		raw, err := a.readInput(at(args, 1), maxPolicyFile)
		if err != nil {
			return err
		}
		return a.with(cmd.Context(), "putting the policy of key "+args[0], func(ctx context.Context, c *connection) error {
			res, err := c.KMS().PutKeyPolicy(ctx, &kmspb.PutKeyPolicyRequest{
				KeyId: &args[0], Policy: proto.String(string(raw)),
				BypassPolicyLockoutSafetyCheck: changedBool(cmd, "bypass-policy-lockout-safety-check"),
			})
			if err != nil {
				return err
			}
			return a.print(res, func(io.Writer) {})
		})
	}
	cmd.AddCommand(put, &cobra.Command{
		Use: "get KEY", Short: "Print the policy", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), "getting the policy of key "+args[0], func(ctx context.Context, c *connection) error {
				res, err := c.KMS().GetKeyPolicy(ctx, &kmspb.GetKeyPolicyRequest{KeyId: &args[0]})
				if err != nil {
					return err
				}
				return a.print(res, func(w io.Writer) { fmt.Fprintln(w, res.GetPolicy()) })
			})
		},
	})
	return cmd
}

// at is an argument that may not be there.
func at(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tag KEY TAG=VALUE…", Short: "Set tags of a key", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &kmspb.TagResourceRequest{KeyId: &args[0]}
			for _, t := range args[1:] {
				k, v, ok := strings.Cut(t, "=")
				if !ok {
					return usagef("%q is not TAG=VALUE", t)
				}
				req.Tags = append(req.Tags, &kmspb.Tag{TagKey: &k, TagValue: &v})
			}
			return a.with(cmd.Context(), "tagging key "+args[0], func(ctx context.Context, c *connection) error {
				res, err := c.KMS().TagResource(ctx, req)
				if err != nil {
					return err
				}
				return a.print(res, func(io.Writer) {})
			})
		},
	}
}

func (a *app) untagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "untag KEY TAG…", Short: "Remove tags of a key", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), "untagging key "+args[0], func(ctx context.Context, c *connection) error {
				res, err := c.KMS().UntagResource(ctx, &kmspb.UntagResourceRequest{KeyId: &args[0], TagKeys: args[1:]})
				if err != nil {
					return err
				}
				return a.print(res, func(io.Writer) {})
			})
		},
	}
}

func (a *app) tagsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tags KEY", Short: "List the tags of a key", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), "listing the tags of key "+args[0], func(ctx context.Context, c *connection) error {
				all := new(kmspb.ListResourceTagsResponse)
				err := pages(func(marker *string) (string, error) {
					res, err := c.KMS().ListResourceTags(ctx, &kmspb.ListResourceTagsRequest{KeyId: &args[0], Marker: marker})
					all.Tags = append(all.Tags, res.GetTags()...)
					return nextOf(res, err)
				})
				if err != nil {
					return err
				}
				slices.SortFunc(all.Tags, func(x, y *kmspb.Tag) int { return strings.Compare(x.GetTagKey(), y.GetTagKey()) })
				return a.print(all, func(w io.Writer) {
					line(w, "TAG", "VALUE")
					for _, t := range all.Tags {
						line(w, t.GetTagKey(), t.GetTagValue())
					}
				})
			})
		},
	}
}
