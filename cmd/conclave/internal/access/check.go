package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/policy/lint"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
	"github.com/conclavekms/conclave/transport/trailpb"
)

func policyCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Check, explain and write policies",
		Long: `Policy checks, explains and writes policies. "lint" and "fmt" need no server. The policies
themselves are managed by "conclave iam policy" and "conclave key policy".`,
		Example: `  conclave policy lint policy.json
  conclave policy fmt policy.json`,
	}
	cmd.AddCommand(lintCommand(a), fmtCommand(a), simulateCommand(a), canICommand(a), whyCommand(a), generateCommand(a))
	return cmd
}

// kinds are the kinds of policies, as --kind names them.
var kinds = map[string]policy.Kind{"key": policy.KeyPolicy, "identity": policy.IdentityPolicy, "trust": policy.TrustPolicy, "session": policy.SessionPolicy}

// kindOf guesses the kind of a document: one without principals is of an identity, one that is
// only about sts is of a role, and all others are of keys.
func kindOf(doc []byte) policy.Kind {
	var d struct{ Statement json.RawMessage }
	if json.Unmarshal(doc, &d) != nil {
		return policy.IdentityPolicy
	}
	type element struct {
		Principal, NotPrincipal, Action, NotAction json.RawMessage
	}
	var all []element
	if json.Unmarshal(d.Statement, &all) != nil {
		all = make([]element, 1)
		if json.Unmarshal(d.Statement, &all[0]) != nil {
			return policy.IdentityPolicy
		}
	}
	principals, sts := false, true
	for _, s := range all {
		principals = principals || s.Principal != nil || s.NotPrincipal != nil
		sts = sts && s.Action != nil && onlySTS(s.Action)
	}
	switch {
	case !principals:
		return policy.IdentityPolicy
	case sts:
		return policy.TrustPolicy
	}
	return policy.KeyPolicy
}

// onlySTS reports whether an Action element has actions of sts only.
func onlySTS(raw json.RawMessage) bool {
	var actions []string
	if json.Unmarshal(raw, &actions) != nil {
		actions = make([]string, 1)
		if json.Unmarshal(raw, &actions[0]) != nil {
			return false
		}
	}
	return !slices.ContainsFunc(actions, func(a string) bool { return !strings.HasPrefix(strings.ToLower(a), "sts:") })
}

// actions are all actions that policies can be about.
func actions() []string {
	all := []string{"kms:ReEncryptFrom", "kms:ReEncryptTo", "conclave:ReadAudit", "conclave:ForgetAuditSink", "conclave:ReadUsage", "conclave:CreateAccount", "conclave:ListAccounts",
		"conclave:CreateCertificateMapping", "conclave:ListCertificateMappings", "conclave:DeleteCertificateMapping", "sts:TagSession", "sts:SetSourceIdentity"}
	for _, s := range append(slices.Clone(services), kmspb.File_transport_kmspb_kms_proto.Services().ByName("KMS"), trailpb.File_transport_trailpb_cloudtrail_proto.Services().ByName("CloudTrail")) {
		for i := range s.Methods().Len() {
			all = append(all, strings.ToLower(string(s.Name()))+":"+string(s.Methods().Get(i).Name()))
		}
	}
	return all
}

// conditionKeys are the condition keys that there are in a document: those of the identity
// providers that it names have keys of their own.
func conditionKeys(kind policy.Kind, doc []byte) []lint.Key {
	all := lint.ConditionKeys()
	d, err := policy.Parse(kind, doc)
	if err != nil {
		return all // Lint finds the same
	}
	for _, p := range d.Providers() {
		if _, issuer, ok := strings.Cut(p.ARN, ":oidc-provider/"); ok {
			all = append(all, lint.Key{Name: issuer + ":", Type: lint.TypeString})
		}
	}
	return all
}

type finding struct {
	Severity  string `json:"severity"`
	Code      string `json:"code"`
	Statement *int   `json:"statement,omitempty"`
	Sid       string `json:"sid,omitempty"`
	Element   string `json:"element,omitempty"`
	Message   string `json:"message"`
}

func lintCommand(a *cli.App) *cobra.Command {
	var kind, account string
	var strict bool
	cmd := &cobra.Command{
		Use: "lint [FILE|-]", Short: "Find what is wrong with a policy, or probably not meant",
		Long: `Lint reads a policy and finds what is wrong with it, or probably not meant: principals that
are too broad, statements without effect, conditions that never match, policies that lock
their owners out. The kind of the policy is guessed, unless --kind says it.

The exit code is 1 if the policy would be refused or is open to everybody, with --strict
also if there is a warning.`,
		Example: `  conclave policy lint policy.json
  conclave policy lint trust.json --kind trust -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := a.Format(); err != nil {
				return err
			}
			doc, err := a.ReadInput(first(args), maxDocument)
			if err != nil {
				return err
			}
			k, ok := kinds[kind]
			switch {
			case kind == "":
				k = kindOf(doc)
			case !ok:
				return cli.Usagef("--kind %q is not one of %s", kind, strings.Join(sortedKeys(kinds), ", "))
			}
			found := lint.Lint(k, doc, lint.Known{Account: account, Actions: actions(), Keys: conditionKeys(k, doc)})
			bad := 0
			out := make([]finding, len(found))
			for i, f := range found {
				out[i] = finding{Severity: f.Severity.String(), Code: f.Code, Sid: f.Sid, Element: f.Element, Message: f.Message}
				if f.Statement != policy.NoStatement {
					out[i].Statement = &f.Statement
				}
				if f.Severity == lint.Error || strict && f.Severity == lint.Warning {
					bad++
				}
			}
			err = a.Print(out, func(w io.Writer) {
				for _, f := range found {
					cli.Line(w, f.String())
				}
			})
			if err == nil && bad > 0 {
				what := "errors"
				if strict {
					what = "errors and warnings"
				}
				err = fmt.Errorf("%s in the %s: %d", what, k, bad)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "key, identity, trust (of a role) or session (default what it looks like)")
	f.StringVar(&account, "account", "", "the account that the policy is for, which principals elsewhere are compared with")
	f.BoolVar(&strict, "strict", false, "fail on warnings too")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(sortedKeys(kinds), cobra.ShellCompDirectiveNoFileComp))
	return a.OutputFlag(cmd)
}

// first returns the first argument, or "".
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func fmtCommand(a *cli.App) *cobra.Command {
	var write bool
	cmd := &cobra.Command{
		Use: "fmt [FILE|-]", Short: "Lay a policy out as the consoles of AWS do",
		Long: `Fmt lays a policy out with one member on each line. It changes only white space. The result
is printed or, with -w, written to the file.`,
		Example: `  conclave policy fmt policy.json
  conclave policy fmt -w policy.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			name := first(args)
			if write && (name == "" || name == "-") {
				return cli.Usagef("-w needs a file")
			}
			doc, err := a.ReadInput(name, maxDocument)
			if err != nil {
				return err
			}
			out, err := policy.Format(doc)
			switch {
			case err != nil:
				return err
			case !write:
				_, err := io.WriteString(a.Stdout, cli.Visible(string(out)))
				return err
			case string(out) == string(doc):
				return nil
			}
			return rewrite(name, out)
		},
	}
	cmd.Flags().BoolVarP(&write, "write", "w", false, "write the file")
	return cmd
}

// rewrite replaces a file, which keeps being as readable for others as it was.
func rewrite(name string, data []byte) error {
	fi, err := os.Stat(name)
	if err != nil {
		return err
	}
	if fi.Mode().Perm()&0o044 != 0 {
		return files.WritePublic(name, data)
	}
	return files.Write(name, data)
}

// simulation is a simulated request.
type simulation struct {
	principal          string
	actions, resources []string
	context            []string
	resourcePolicy     string
}

// contextEntries parses --context. A key that is given several times has several values.
func contextEntries(given []string) ([]*iampb.ContextEntry, error) {
	var entries []*iampb.ContextEntry
	for _, kv := range given {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return nil, cli.Usagef("--context %q is not KEY=VALUE", kv)
		}
		i := slices.IndexFunc(entries, func(e *iampb.ContextEntry) bool { return strings.EqualFold(e.GetContextKeyName(), key) })
		if i < 0 {
			entries = append(entries, &iampb.ContextEntry{ContextKeyName: &key, ContextKeyType: proto.String("string")})
			i = len(entries) - 1
		}
		entries[i].ContextKeyValues = append(entries[i].ContextKeyValues, value)
		if len(entries[i].ContextKeyValues) > 1 {
			entries[i].ContextKeyType = proto.String("stringList")
		}
	}
	return entries, nil
}

// run simulates requests of a principal.
func (s *simulation) run(ctx context.Context, a *cli.App, c *cli.Connection) (*iampb.SimulatePrincipalPolicyResponse, error) {
	if err := a.Timed(ctx, func(ctx context.Context) error { return s.resolve(ctx, a, c) }); err != nil {
		return nil, err
	}
	entries, err := contextEntries(s.context)
	if err != nil {
		return nil, err
	}
	p, err := policy.ParsePrincipal(s.principal)
	if err != nil {
		return nil, cli.Usage(err)
	}
	if p.Kind == policy.KindRoot {
		// The root user has no policies to be simulated, and is allowed what an administrator is.
		doc, _ := policy.AWSManaged("arn:aws:iam::aws:policy/AdministratorAccess")
		req := &iampb.SimulateCustomPolicyRequest{
			PolicyInputList: []string{doc}, ActionNames: s.actions, ResourceArns: s.resources, ContextEntries: entries, ResourceOwner: &p.ARN,
		}
		if s.resourcePolicy != "" {
			// As in AWS, no policy of a resource can be simulated for the root user.
			a.Note("the policy of the resource takes no part, as the principal is the root user")
		}
		all, err := everything[*iampb.SimulateCustomPolicyResponse](ctx, a, c, "SimulateCustomPolicy", req)
		return &iampb.SimulatePrincipalPolicyResponse{EvaluationResults: all.GetEvaluationResults()}, err
	}
	source := p.ARN
	if p.Kind == policy.KindAssumedRole {
		source = p.Role
	}
	req := &iampb.SimulatePrincipalPolicyRequest{PolicySourceArn: &source, ActionNames: s.actions, ResourceArns: s.resources, ContextEntries: entries}
	if s.resourcePolicy != "" {
		req.ResourcePolicy = &s.resourcePolicy
		if source != p.ARN || p.Kind != policy.KindUser {
			req.CallerArn = &p.ARN
		}
	}
	return everything[*iampb.SimulatePrincipalPolicyResponse](ctx, a, c, "SimulatePrincipalPolicy", req)
}

// resolve replaces the names of the principal and of the resources by ARNs, and gets the policy
// of the key if there is one resource, a key.
func (s *simulation) resolve(ctx context.Context, a *cli.App, c *cli.Connection) error {
	var err error
	if s.principal == "" {
		var who policy.Principal
		if who, err = caller(ctx, c); err != nil {
			return err
		}
		s.principal = who.ARN
	} else if s.principal, err = principalARN(ctx, c, s.principal); err != nil {
		return err
	}
	for i, r := range s.resources {
		if r == "*" || strings.HasPrefix(r, "arn:") && !strings.Contains(r, ":alias/") {
			continue
		}
		if s.resources[i], err = keyARN(ctx, c, r); err != nil {
			return err
		}
	}
	if len(s.resources) != 1 || s.resourcePolicy != "" || !strings.Contains(s.resources[0], ":key/") {
		return nil
	}
	res, err := c.KMS().GetKeyPolicy(ctx, &kmspb.GetKeyPolicyRequest{KeyId: &s.resources[0]})
	if err != nil {
		a.Note("the policy of the key was not read, and the answer rests on the other policies only: %v", cli.Explain("getting the policy of the key", c.Address, err))
		return nil
	}
	s.resourcePolicy = res.GetPolicy()
	return nil
}

var simulationOps = []string{"GetCallerIdentity", "SimulatePrincipalPolicy", "SimulateCustomPolicy"}

func simulateCommand(a *cli.App) *cobra.Command {
	var s simulation
	var file string
	cmd := &cobra.Command{
		Use: "simulate --action ACTION", Short: "Say how requests of a principal would be decided, and why",
		Long: `Simulate says how requests would be decided, by the evaluator that also decides requests. A
principal is an ARN, or user/NAME, group/NAME or role/NAME; without one it is the caller. A
resource is an ARN, a KEY, or *.

If the only resource is a key, its policy takes part, unless the caller may not read it.
Grants do not: "conclave access list" shows them.`,
		Example: `  conclave policy simulate --principal user/alice --action kms:Encrypt --action kms:Decrypt --resource payments
  conclave policy simulate --principal user/alice --action kms:ListKeys --context aws:SourceIp=192.0.2.7`,
		Annotations: calls(simulationOps...),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(s.actions) == 0 {
				return cli.Usagef("--action is required: an action such as kms:Encrypt")
			}
			if file != "" {
				raw, err := a.ReadInput(file, maxDocument)
				if err != nil {
					return err
				}
				s.resourcePolicy = string(raw)
			}
			return a.WithEach(cmd.Context(), "simulating", func(ctx context.Context, c *cli.Connection) error {
				res, err := s.run(ctx, a, c)
				if err != nil {
					return err
				}
				return a.Print(res, func(w io.Writer) {
					cli.Line(w, "ACTION", "RESOURCE", "DECISION", "BY", "MISSING CONTEXT")
					for _, r := range res.GetEvaluationResults() {
						cli.Line(w, r.GetEvalActionName(), r.GetEvalResourceName(), r.GetEvalDecision(), cli.OrDash(statementsText(r)), cli.OrDash(strings.Join(r.GetMissingContextValues(), ",")))
					}
				})
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.principal, "principal", "", "who makes the requests (default the caller)")
	f.StringArrayVar(&s.actions, "action", nil, "action such as kms:Encrypt; may be repeated")
	f.StringArrayVar(&s.resources, "resource", nil, "what the requests are about; may be repeated (default *)")
	f.StringArrayVar(&s.context, "context", nil, "KEY=VALUE of a condition key, such as aws:SourceIp=192.0.2.7; may be repeated")
	f.StringVar(&file, "resource-policy", "", "file with a policy that the resource would have")
	return a.ClientFlags(cmd)
}

// statementsText names the statements that a decision rests on.
func statementsText(r *iampb.EvaluationResult) string {
	var names []string
	for _, s := range r.GetMatchedStatements() {
		name := s.GetSourcePolicyId()
		if p := s.GetStartPosition(); p != nil {
			name += fmt.Sprintf(" line %d", p.GetLine())
		}
		names = append(names, name)
	}
	if d := r.GetPermissionsBoundaryDecisionDetail(); d != nil && !d.GetAllowedByPermissionsBoundary() {
		names = append(names, "outside of the permissions boundary")
	}
	return strings.Join(names, ", ")
}

func canICommand(a *cli.App) *cobra.Command {
	var s simulation
	cmd := &cobra.Command{
		Use: "can-i ACTION [RESOURCE]", Short: "Say whether the caller may do something",
		Long: `Can-i prints yes or no, and the exit code is 0 or 1. A resource is an ARN, a KEY, or *.

The caller needs the permission to simulate its own policies. Grants do not take part.`,
		Example: `  conclave policy can-i kms:Encrypt payments
  conclave policy can-i kms:CreateKey`,
		Annotations: calls(simulationOps...),
		Args:        cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.actions, s.resources = args[:1], args[1:]
			return a.WithEach(cmd.Context(), "simulating", func(ctx context.Context, c *cli.Connection) error {
				res, err := s.run(ctx, a, c)
				if err != nil {
					return err
				}
				if len(res.GetEvaluationResults()) != 1 {
					return fmt.Errorf("the server answered with %d decisions instead of one", len(res.GetEvaluationResults()))
				}
				r := res.GetEvaluationResults()[0]
				allowed := r.GetEvalDecision() == "allowed"
				err = a.Print(r, func(w io.Writer) {
					answer := yes(allowed)
					if !allowed {
						answer += ": " + r.GetEvalDecision()
						if by := statementsText(r); by != "" {
							answer += " by " + by
						}
					}
					cli.Line(w, answer)
				})
				if err == nil && !allowed {
					err = &cli.CodedError{Code: cli.ExitError}
				}
				return err
			})
		},
	}
	cmd.Flags().StringArrayVar(&s.context, "context", nil, "KEY=VALUE of a condition key; may be repeated")
	return a.ClientFlags(cmd)
}

func whyCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "why MESSAGE|REQUEST-ID", Short: "Explain why a request was denied",
		Long: `Why explains a denial: who asked for what, and which statement, or which absence of one,
decided.

The id of the request, which every denial shows, is looked up in the audit log, for
those who may read it (conclave:ReadAudit). The encoded message of a denial, which
AWS's tools show, and this one with -o json or yaml, has the condition keys of the
request too. It is decoded for those who may call sts:DecodeAuthorizationMessage.`,
		Example:     `  conclave policy why "$DENIED"`,
		Annotations: calls("DecodeAuthorizationMessage"),
		Args:        cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			msg := strings.TrimSpace(strings.TrimPrefix(args[0], cli.EncodedMessage))
			if requestID.MatchString(msg) {
				return whyRequest(cmd.Context(), a, msg)
			}
			return a.With(cmd.Context(), "decoding the message", func(ctx context.Context, c *cli.Connection) error { return explain(ctx, a, c, msg) })
		},
	}
	return a.ClientFlags(cmd)
}

// explain prints what an encoded message says.
func explain(ctx context.Context, a *cli.App, c *cli.Connection, msg string) error {
	res, err := c.STS().DecodeAuthorizationMessage(ctx, &iampb.DecodeAuthorizationMessageRequest{EncodedMessage: &msg})
	if err != nil {
		return err
	}
	raw := json.RawMessage(res.GetDecodedMessage())
	if !json.Valid(raw) {
		return errors.New("the server's answer is not JSON")
	}
	return a.Print(raw, func(w io.Writer) { explanation(w, raw) })
}
