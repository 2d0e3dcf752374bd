package keys

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func keystoreCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "keystore", Short: "Connect custom key stores: HSMs and external key managers",
		Long: `Keystore manages custom key stores: PKCS #11 tokens, which AWS's API calls
AWS_CLOUDHSM, and external key managers behind a proxy, EXTERNAL_KEY_STORE.
STORE is the id of a key store. Passwords and credentials come from files.`,
		Example: `  conclave keystore create vault --type EXTERNAL_KEY_STORE --endpoint https://xks.example.com --path /kms/xks/v1 \
    --connectivity PUBLIC_ENDPOINT --credential-file credential.json
  conclave keystore list`,
	}
	a.ClientFlags(cmd)
	xks := func() []input {
		return []input{
			textFlag("xks_proxy_uri_endpoint", "endpoint", "https address of an external key store's proxy"),
			textFlag("xks_proxy_uri_path", "path", "path of the proxy's API, such as /kms/xks/v1"),
			textFlag("xks_proxy_connectivity", "connectivity", "PUBLIC_ENDPOINT or VPC_ENDPOINT_SERVICE"),
			textFlag("xks_proxy_vpc_endpoint_service_name", "vpc-service", "name of the VPC endpoint service"),
			textFlag("xks_proxy_vpc_endpoint_service_owner", "vpc-service-owner", "account of the owner of the VPC endpoint service"),
			credentialFlag(),
			textFlag("cloud_hsm_cluster_id", "cluster", "cluster id of a PKCS #11 token, as in the server's --pkcs11-tokens"),
			fileFlag("key_store_password", "password-file", "file with the password (PIN) of the PKCS #11 token", blob{limit: 256, what: "the password", line: true}),
		}
	}
	cmd.AddCommand(calls(a,
		call{
			use: "create NAME", short: "Create a key store, which is not connected yet", op: "CreateCustomKeyStore", doing: "creating key store",
			example: `  conclave keystore create vault-2 --type EXTERNAL_KEY_STORE --endpoint https://xks.example.com --path /kms/xks/v1 \
    --connectivity PUBLIC_ENDPOINT --credential-file credential.json`,
			takes: append([]input{
				textArg("custom_key_store_name", 1),
				textFlag("custom_key_store_type", "type", "AWS_CLOUDHSM or EXTERNAL_KEY_STORE (default AWS_CLOUDHSM)"),
				fileFlag("trust_anchor_certificate", "trust-anchor", "PEM file of the certificate of the HSM cluster", blob{limit: 16 << 10, what: "the certificate"}),
			}, xks()...),
			shows: tableOf(func(w io.Writer, r *kmspb.CreateCustomKeyStoreResponse) {
				cli.Line(w, "key store", r.GetCustomKeyStoreId())
			}),
		},
		call{
			use: "list", short: "List key stores and whether they are connected", op: "DescribeCustomKeyStores", doing: "listing key stores", pages: 1000,
			example: `  conclave keystore list
  conclave keystore list -o json`,
			takes: []input{
				textFlag("custom_key_store_id", "store", "only the key store with this id"),
				textFlag("custom_key_store_name", "name", "only the key store with this name"),
			},
			shows: tableOf(func(w io.Writer, r *kmspb.DescribeCustomKeyStoresResponse) {
				cli.Line(w, "KEY STORE", "NAME", "TYPE", "STATE", "ERROR", "WHERE", "CREATED")
				for _, s := range r.GetCustomKeyStores() {
					where := s.GetCloudHsmClusterId()
					if x := s.GetXksProxyConfiguration(); x != nil {
						where = x.GetUriEndpoint() + x.GetUriPath()
					}
					cli.Line(w, s.GetCustomKeyStoreId(), s.GetCustomKeyStoreName(), s.GetCustomKeyStoreType(), s.GetConnectionState(),
						cli.OrDash(s.GetConnectionErrorCode()), cli.OrDash(where), cli.When(s.GetCreationDate()))
				}
			}),
		},
		call{
			use: "update STORE", short: "Change a key store, which must be disconnected for most changes", op: "UpdateCustomKeyStore", doing: "changing key store",
			example: `  conclave keystore update "$STORE" --name vault-3`,
			takes: append([]input{
				textArg("custom_key_store_id", 1),
				textFlag("new_custom_key_store_name", "name", "new name"),
			}, xks()...),
		},
		call{
			use: "connect STORE", short: "Connect a key store", op: "ConnectCustomKeyStore", doing: "connecting key store",
			example: `  conclave keystore connect "$STORE"`,
			takes:   []input{textArg("custom_key_store_id", 1)},
		},
		call{
			use: "disconnect STORE", short: "Disconnect a key store: its keys cannot be used until it is connected again", op: "DisconnectCustomKeyStore", doing: "disconnecting key store",
			example: `  conclave keystore disconnect "$STORE"`,
			takes:   []input{textArg("custom_key_store_id", 1)},
		},
		call{
			use: "delete STORE", short: "Delete a key store that has no keys", op: "DeleteCustomKeyStore", doing: "deleting key store",
			example: `  conclave keystore delete "$STORE"`,
			takes:   []input{textArg("custom_key_store_id", 1)},
		},
	)...)
	return cmd
}

// credentialFlag is the flag for the credential that the proxy of an external key
// store requires from its clients: JSON, as for the AWS CLI.
func credentialFlag() input {
	return input{
		member: "xks_proxy_authentication_credential", flag: "credential-file",
		usage: `file with the proxy's credential: {"AccessKeyId": …, "RawSecretAccessKey": …}`,
		bind:  func(b *bound, in input) { b.cmd.Flags().String(in.flag, "", in.usage) },
		fill: func(b *bound, in input) error {
			name, err := b.cmd.Flags().GetString(in.flag)
			if err != nil || name == "" {
				return err
			}
			raw, err := b.app.ReadInput(name, 4096)
			if err != nil {
				return err
			}
			defer clear(raw)
			var c struct{ AccessKeyId, RawSecretAccessKey string }
			if err := json.Unmarshal(raw, &c); err != nil || c.AccessKeyId == "" || c.RawSecretAccessKey == "" {
				return fmt.Errorf("%s is not JSON with AccessKeyId and RawSecretAccessKey", name)
			}
			cred := &kmspb.XksProxyAuthenticationCredential{AccessKeyId: &c.AccessKeyId, RawSecretAccessKey: &c.RawSecretAccessKey}
			b.set(in.member, protoreflect.ValueOfMessage(cred.ProtoReflect()))
			return nil
		},
	}
}
