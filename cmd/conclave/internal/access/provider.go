package access

import (
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

func providerCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "oidc-provider", Short: "Manage the issuers of web identities that may assume roles",
		Long: `Oidc-provider manages the issuers whose tokens can be exchanged for temporary
credentials of roles that trust them, such as a Kubernetes cluster.

The keys of an issuer are read from its URL; where nodes cannot reach it, set-keys
gives them to the cluster.`,
		Example: `  conclave iam oidc-provider create https://issuer.example.com --audience sts.amazonaws.com
  conclave iam oidc-provider list`,
	}
	const member, doing = "open_id_connect_provider_arn", "identity provider"
	const what = "arn:aws:iam::000000000000:oidc-provider/issuer.example.com"
	named := func(b *binder) { b.arg(member) }
	client := func(b *binder) {
		b.arg(member)
		b.arg("client_id")
	}
	cmd.AddCommand(newCommands(a,
		row{
			use: "create URL", short: "Register an issuer", op: "CreateOpenIDConnectProvider", doing: "registering issuer",
			example: `  conclave iam oidc-provider create https://other.example.com --audience sts.amazonaws.com`,
			binds: func(b *binder) {
				b.arg("url")
				b.list("client_id_list", "audience", "audience that tokens have to be for")
				b.list("thumbprint_list", "thumbprint", "hex SHA-1 of the certificate that the issuer's server is trusted by")
				b.tagFlag("tags")
			},
			table: tableOf(func(w io.Writer, r *iampb.CreateOpenIDConnectProviderResponse) {
				cli.Line(w, "identity provider", r.GetOpenIdConnectProviderArn())
			}),
		},
		row{
			use: "list", short: "List the issuers", op: "ListOpenIDConnectProviders", doing: "listing issuers",
			example: `  conclave iam oidc-provider list`,
			table: tableOf(func(w io.Writer, r *iampb.ListOpenIDConnectProvidersResponse) {
				cli.Line(w, "ARN")
				for _, p := range r.GetOpenIdConnectProviderList() {
					cli.Line(w, p.GetArn())
				}
			}),
		},
		row{
			use: "show ARN", short: "Describe an issuer", op: "GetOpenIDConnectProvider", doing: "describing " + doing,
			example: `  conclave iam oidc-provider show ` + what,
			binds:   named,
			table: tableOf(func(w io.Writer, r *iampb.GetOpenIDConnectProviderResponse) {
				cli.Line(w, "url", r.GetUrl())
				cli.Line(w, "created", cli.When(r.GetCreateDate()))
				for _, id := range r.GetClientIdList() {
					cli.Line(w, "audience", id)
				}
				for _, t := range r.GetThumbprintList() {
					cli.Line(w, "thumbprint", t)
				}
				tagLines(w, r.GetTags())
			}),
		},
		row{
			use: "add-audience ARN AUDIENCE", short: "Accept tokens for another audience", op: "AddClientIDToOpenIDConnectProvider", doing: "adding an audience to " + doing,
			example: `  conclave iam oidc-provider add-audience ` + what + ` shop`,
			binds:   client,
		},
		row{
			use: "remove-audience ARN AUDIENCE", short: "Accept no tokens for an audience", op: "RemoveClientIDFromOpenIDConnectProvider", doing: "removing an audience from " + doing,
			example: `  conclave iam oidc-provider remove-audience ` + what + ` shop`,
			binds:   client,
		},
		row{
			use: "set-thumbprints ARN THUMBPRINT…", short: "Replace the thumbprints", op: "UpdateOpenIDConnectProviderThumbprint", doing: "setting the thumbprints of " + doing,
			example: `  conclave iam oidc-provider set-thumbprints ` + what + ` 990f4193972f2becf12ddeda5237f9c952f20d9e`,
			binds: func(b *binder) {
				b.arg(member)
				b.texts("thumbprint_list")
			},
		},
		row{
			use: "set-keys ARN [FILE|-]", short: "Set the keys of an issuer from a file or standard input", op: "UpdateOpenIDConnectProviderKeys", doing: "setting the keys of " + doing,
			long: `Set-keys sets the keys of an issuer, a JSON Web Key Set. They are then not read from the
issuer's URL any more, and have to be set again when the issuer replaces them.`,
			example: `  conclave iam oidc-provider set-keys ` + what + ` jwks.json`,
			binds: func(b *binder) {
				b.arg(member)
				b.document("json_web_key_set")
			},
		},
		row{
			use: "fetch-keys ARN", short: "Have the keys of an issuer read from its URL again", op: "UpdateOpenIDConnectProviderKeys", doing: "setting the keys of " + doing,
			example: `  conclave iam oidc-provider fetch-keys ` + what,
			binds: func(b *binder) {
				b.arg(member)
				b.is("json_web_key_set", "")
			},
		},
		row{
			use: "revoke-sessions ARN", short: "End the sessions that were opened with tokens of an issuer", op: "RevokeOpenIDConnectProviderSessions", doing: "revoking the sessions of " + doing,
			example: `  conclave iam oidc-provider revoke-sessions ` + what + ` --older-than 1h`,
			binds: func(b *binder) {
				b.arg(member)
				b.before("older_than", "older-than", "only sessions that were opened before")
			},
		},
		row{
			use: "delete ARN", short: "Remove an issuer, and end the sessions that its tokens have opened", op: "DeleteOpenIDConnectProvider", doing: "removing " + doing,
			example: `  conclave iam oidc-provider delete arn:aws:iam::000000000000:oidc-provider/old.example.com`,
			binds:   named,
		},
	)...)
	cmd.AddCommand(newCommands(a, tagRows("OpenIDConnectProvider", member, doing, "oidc-provider", what, false)...)...)
	return cmd
}

func accountAliasCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "account-alias", Short: "Give the account a name",
		Example: `  conclave iam account-alias create example-shop`,
	}
	cmd.AddCommand(newCommands(a,
		row{
			use: "create NAME", short: "Set the name", op: "CreateAccountAlias", doing: "naming the account",
			example: `  conclave iam account-alias create example`,
			binds:   func(b *binder) { b.arg("account_alias") },
		},
		row{
			use: "list", short: "Print the name", op: "ListAccountAliases", doing: "looking up the account's name", list: true,
			example: `  conclave iam account-alias list`,
			table: tableOf(func(w io.Writer, r *iampb.ListAccountAliasesResponse) {
				for _, n := range r.GetAccountAliases() {
					cli.Line(w, n)
				}
			}),
		},
		row{
			use: "delete NAME", short: "Remove the name", op: "DeleteAccountAlias", doing: "removing the account's name",
			example: `  conclave iam account-alias delete example`,
			binds:   func(b *binder) { b.arg("account_alias") },
		},
	)...)
	return cmd
}

func summaryTable(w io.Writer, res proto.Message) {
	m := res.(*iampb.GetAccountSummaryResponse).GetSummaryMap()
	cli.Line(w, "WHAT", "NUMBER")
	for _, k := range sortedKeys(m) {
		cli.Line(w, k, m[k])
	}
}
