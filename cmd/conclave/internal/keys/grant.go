package keys

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func grantCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "grant", Short: "Let principals use a key, without changing its policy",
		Long: `Grant lets a principal use a key for some operations, optionally only with certain
encryption contexts, until the grant is retired or revoked.

` + keyHelp,
		Example: `  conclave grant create payments --grantee arn:aws:iam::000000000000:root --operations Encrypt,Decrypt
  conclave grant list payments`,
	}
	a.ClientFlags(cmd)
	grantTable := func(w io.Writer, grants []*kmspb.GrantListEntry) {
		cli.Line(w, "GRANT", "NAME", "GRANTEE", "OPERATIONS", "CONSTRAINTS", "CREATED")
		for _, g := range grants {
			cli.Line(w, g.GetGrantId(), cli.OrDash(g.GetName()), cli.OrDash(g.GetGranteePrincipal()+g.GetGranteeServicePrincipal()), strings.Join(g.GetOperations(), ","), constraintsText(g.GetConstraints()), cli.When(g.GetCreationDate()))
		}
	}
	cmd.AddCommand(calls(a,
		call{
			use: "create KEY", short: "Create a grant", op: "CreateGrant", doing: "creating a grant for key",
			example: `  conclave grant create payments --grantee arn:aws:iam::000000000000:root --operations Encrypt,Decrypt \
    --context-subset app=shop --name shop
  conclave grant create payments --grantee arn:aws:iam::000000000000:root --operations Decrypt --dry-run`,
			takes: []input{
				keyArg(1),
				textFlag("grantee_principal", "grantee", "ARN of the principal that may use the key"),
				textFlag("grantee_service_principal", "grantee-service", "service that may use the key instead, such as logs.us-east-1.amazonaws.com"),
				listFlag("operations", "operations", "operations that the grant allows, such as Encrypt,Decrypt").needed(),
				textFlag("retiring_principal", "retiring", "ARN of a principal that may retire the grant"),
				textFlag("retiring_service_principal", "retiring-service", "service that may retire the grant"),
				textFlag("name", "name", "name; a second call with the same name and content creates no second grant"),
				constraintFlag("encryption_context_subset", "context-subset", "NAME=VALUE that the encryption context must contain; may be repeated"),
				constraintFlag("encryption_context_equals", "context-equals", "NAME=VALUE of the only encryption context that is allowed; may be repeated"),
				sourceARNFlag(), grantTokens(), dryRun(),
			},
			shows: tableOf(func(w io.Writer, r *kmspb.CreateGrantResponse) {
				cli.Line(w, "grant", r.GetGrantId())
				cli.Line(w, "token", r.GetGrantToken())
			}),
		},
		call{
			use: "list KEY", short: "List the grants of a key", op: "ListGrants", doing: "listing the grants of key", pages: 100,
			example: `  conclave grant list payments
  conclave grant list payments --limit 10 -o json`,
			takes: []input{
				keyArg(1),
				textFlag("grant_id", "grant", "only the grant with this id"),
				textFlag("grantee_principal", "grantee", "only grants of this principal"),
				textFlag("grantee_service_principal", "grantee-service", "only grants of this service"),
			},
			shows: tableOf(func(w io.Writer, r *kmspb.ListGrantsResponse) { grantTable(w, r.GetGrants()) }),
		},
		call{
			use: "list-retirable --retiring ARN", short: "List the grants that a principal may retire", op: "ListRetirableGrants", doing: "listing retirable grants", pages: 100,
			example: `  conclave grant list-retirable --retiring arn:aws:iam::000000000000:root`,
			takes: []input{
				textFlag("retiring_principal", "retiring", "ARN of the principal"),
				textFlag("retiring_service_principal", "retiring-service", "name of the service, instead of --retiring"),
			},
			shows: tableOf(func(w io.Writer, r *kmspb.ListRetirableGrantsResponse) { grantTable(w, r.GetGrants()) }),
		},
		call{
			use: "retire", short: "Give up a grant, as its grantee or retiring principal", op: "RetireGrant", doing: "retiring grant",
			long: `Retire gives up a grant, which is given by its token, or by its key and id. AWS
requires the ARN of the key here; a name is looked up.`,
			example: `  conclave grant retire --key payments --grant "$GRANT"`,
			takes: []input{
				keyFlag("the grant's key"),
				textFlag("grant_id", "grant", "id of the grant"),
				textFlag("grant_token", "token", "token of the grant, instead of --key and --grant"),
				dryRun(),
			},
			run: retireGrant,
		},
		call{
			use: "revoke KEY GRANT", short: "Revoke a grant", op: "RevokeGrant", doing: "revoking a grant of key",
			example: `  conclave grant revoke payments "$REVOKED"`,
			takes:   []input{keyArg(1), textArg("grant_id", 2), dryRun()},
		},
	)...)
	return cmd
}

// constraintFlag is a flag for a member of a grant's constraints.
func constraintFlag(member, flag, usage string) input {
	return input{
		member: "constraints", flag: flag, usage: usage,
		bind: func(b *bound, in input) { b.cmd.Flags().StringArray(in.flag, nil, in.usage) },
		fill: func(b *bound, in input) error {
			given, err := b.cmd.Flags().GetStringArray(in.flag)
			if err != nil || len(given) == 0 {
				return err
			}
			ec, err := pairs(in.flag, given)
			if err != nil {
				return err
			}
			c := b.req.Mutable(b.field(in.member)).Message()
			m := c.Mutable(c.Descriptor().Fields().ByName(protoreflect.Name(member))).Map()
			for k, v := range ec {
				m.Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOfString(v))
			}
			return nil
		},
	}
}

// sourceARNFlag is the flag that restricts a grant to requests for one
// resource.
func sourceARNFlag() input {
	return input{
		member: "constraints", flag: "source-arn", usage: "ARN of the only resource for which the key may be used",
		bind: func(b *bound, in input) { b.cmd.Flags().String(in.flag, "", in.usage) },
		fill: func(b *bound, in input) error {
			arn, err := b.cmd.Flags().GetString(in.flag)
			if err != nil || !b.cmd.Flags().Changed(in.flag) {
				return err
			}
			c := b.req.Mutable(b.field(in.member)).Message()
			c.Set(c.Descriptor().Fields().ByName("source_arn"), protoreflect.ValueOfString(arn))
			return nil
		},
	}
}

func constraintsText(c *kmspb.GrantConstraints) string {
	var parts []string
	for _, x := range []struct {
		what string
		ec   map[string]string
	}{{"has", c.GetEncryptionContextSubset()}, {"is", c.GetEncryptionContextEquals()}} {
		if len(x.ec) > 0 {
			parts = append(parts, x.what+" "+contextText(x.ec))
		}
	}
	if c.GetSourceArn() != "" {
		parts = append(parts, "for "+c.GetSourceArn())
	}
	return cli.OrDash(strings.Join(parts, "; "))
}

// contextText formats an encryption context, in the order of its names.
func contextText(ec map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(ec)) {
		parts = append(parts, k+"="+ec[k])
	}
	return strings.Join(parts, ",")
}

// retireGrant replaces the key by its ARN, which RetireGrant requires.
func retireGrant(ctx context.Context, c *cli.Connection, b *bound, m proto.Message) error {
	req := m.(*kmspb.RetireGrantRequest)
	if req.KeyId != nil && !strings.HasPrefix(req.GetKeyId(), "arn:") {
		res, err := c.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: req.KeyId})
		if err != nil {
			return fmt.Errorf("looking up %s: %w", req.GetKeyId(), err)
		}
		req.KeyId = res.GetKeyMetadata().Arn
	}
	return oneCall(ctx, c, b, req)
}
