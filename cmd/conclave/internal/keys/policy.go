package keys

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func policyCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Read and replace a key's policy",
		Long: "Policy reads and replaces key policies, which are JSON as in AWS KMS.\n\n" + keyHelp,
		Example: `  conclave key policy get payments > policy.json
  conclave key policy put payments policy.json`,
	}
	cmd.AddCommand(calls(a,
		call{
			use: "get KEY", short: "Print the policy", op: "GetKeyPolicy", doing: "getting the policy of key",
			example: `  conclave key policy get payments > policy.json`,
			takes:   []input{keyArg(1), textFlag("policy_name", "name", "name of the policy, which can only be default")},
			shows:   tableOf(func(w io.Writer, r *kmspb.GetKeyPolicyResponse) { fmt.Fprintln(w, cli.Visible(r.GetPolicy())) }),
		},
		call{
			use: "put KEY [FILE|-]", short: "Replace the policy with that of a file or standard input", op: "PutKeyPolicy", doing: "putting the policy of key",
			example: `  conclave key policy put payments policy.json
  conclave key policy get payments | sed s/example/example/ | conclave key policy put payments`,
			takes: []input{
				keyArg(1), file("policy", 2, blob{limit: maxPolicyFile, what: "the policy"}), lockout(),
				textFlag("policy_name", "name", "name of the policy, which can only be default"),
			},
		},
		call{
			use: "list KEY", short: "List the names of a key's policies", op: "ListKeyPolicies", doing: "listing the policies of key",
			example: `  conclave key policy list payments`,
			takes:   []input{keyArg(1)}, pages: 1000,
			shows: tableOf(func(w io.Writer, r *kmspb.ListKeyPoliciesResponse) {
				cli.Line(w, "POLICY")
				for _, n := range r.GetPolicyNames() {
					cli.Line(w, n)
				}
			}),
		},
	)...)
	return cmd
}
