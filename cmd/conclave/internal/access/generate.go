package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// record has the members of an audit record that are looked at here.
type record struct {
	EventTime    string `json:"eventTime"`
	EventSource  string `json:"eventSource"`
	EventName    string `json:"eventName"`
	ErrorCode    string `json:"errorCode,omitempty"`
	ErrorMessage string `json:"errorMessage,omitempty"`
	RequestID    string `json:"requestID"`
	UserIdentity struct {
		ARN            string `json:"arn,omitempty"`
		SessionContext struct {
			SessionIssuer struct {
				ARN string `json:"arn,omitempty"`
			} `json:"sessionIssuer,omitzero"`
		} `json:"sessionContext,omitzero"`
	} `json:"userIdentity"`
	Resources         []recordResource `json:"resources"`
	RequestParameters map[string]any   `json:"requestParameters,omitempty"`
}

type recordResource struct {
	Type string `json:"type"`
	ARN  string `json:"ARN"`
}

// by reports whether a request was made by a principal or, if that is a role, by one of its
// sessions.
func (r *record) by(principal string) bool {
	return r.UserIdentity.ARN == principal || r.UserIdentity.SessionContext.SessionIssuer.ARN == principal
}

// everybody are operations that need no permission.
var everybody = map[string]bool{"sts:GetCallerIdentity": true, "sts:GetSessionToken": true, "sts:AssumeRoleWithWebIdentity": true}

// onEverything are actions of KMS that are not on a key, though the record may name one.
var onEverything = map[string]bool{
	"kms:CreateKey": true, "kms:ListKeys": true, "kms:ListAliases": true, "kms:GenerateRandom": true,
	"kms:CreateCustomKeyStore": true, "kms:DescribeCustomKeyStores": true, "kms:UpdateCustomKeyStore": true,
	"kms:ConnectCustomKeyStore": true, "kms:DisconnectCustomKeyStore": true, "kms:DeleteCustomKeyStore": true,
}

// permission is an action on a resource.
type permission struct{ action, resource string }

// needs returns the permissions that a request needed.
func (r *record) needs() []permission {
	service, ok := strings.CutSuffix(r.EventSource, ".amazonaws.com")
	action := service + ":" + r.EventName
	switch {
	case r.EventSource == "conclave" && r.EventName == "ReadAudit":
		return []permission{{"conclave:ReadAudit", "*"}}
	case !ok || everybody[action]:
		return nil
	case onEverything[action]:
		list := []permission{{action, "*"}}
		if action == "kms:CreateKey" && r.has("tags") {
			list = append(list, permission{"kms:TagResource", "*"})
		}
		return list
	}
	arns := r.arns(service, strings.HasSuffix(r.EventName, "Alias"))
	if action == "kms:ReEncrypt" {
		// The first key is the one that the ciphertext was of.
		return []permission{{"kms:ReEncryptFrom", arns[0]}, {"kms:ReEncryptTo", arns[len(arns)-1]}}
	}
	var list []permission
	for _, arn := range arns {
		list = append(list, permission{action, arn})
		if action == "sts:AssumeRole" && r.has("tags") {
			list = append(list, permission{"sts:TagSession", arn})
		}
		if action == "sts:AssumeRole" && r.has("sourceIdentity") {
			list = append(list, permission{"sts:SetSourceIdentity", arn})
		}
	}
	if action == "kms:ReplicateKey" {
		list = append(list, permission{"kms:CreateKey", "*"})
	}
	return list
}

// has reports whether a record has a parameter that is not empty.
func (r *record) has(parameter string) bool {
	switch v := r.RequestParameters[parameter].(type) {
	case nil:
		return false
	case []any:
		return len(v) > 0
	case map[string]any:
		return len(v) > 0
	case string:
		return v != ""
	}
	return true
}

// arns returns the resources on which the caller needed a permission; "*" if the record names
// none. An alias by which a key was named needs none, unless the request is about the alias.
func (r *record) arns(service string, aliases bool) []string {
	var arns []string
	for _, x := range r.Resources {
		if x.ARN != "" && (service != "kms" || aliases || x.Type == "AWS::KMS::Key") {
			arns = append(arns, x.ARN)
		}
	}
	if len(arns) == 0 {
		return []string{"*"}
	}
	return arns
}

// use is what a principal did.
type use struct {
	allowed          map[permission]bool
	requests         int
	refused          int
	unopenable       int
	earliest, latest string
}

// add adds a record of the log.
func (u *use) add(raw, principal string, since time.Time) {
	var r record
	if json.Unmarshal([]byte(raw), &r) != nil || !r.by(principal) {
		return
	}
	if at, err := time.Parse(time.RFC3339, r.EventTime); err != nil || at.Before(since) {
		return
	}
	if r.ErrorCode != "" {
		u.refused++
		return
	}
	needs := r.needs()
	if len(needs) == 0 {
		return
	}
	u.requests++
	if u.earliest == "" {
		u.earliest = r.EventTime
	}
	u.latest = r.EventTime
	for _, p := range needs {
		u.allowed[p] = true
	}
}

// document returns the smallest policy: one statement for all actions that have the same
// resources.
func (u *use) document() (string, error) {
	on := make(map[string][]string) // resources by action
	for p := range u.allowed {
		on[p.action] = append(on[p.action], p.resource)
	}
	actionsOn := make(map[string][]string)
	for _, action := range sortedKeys(on) {
		slices.Sort(on[action])
		resources := strings.Join(on[action], "\n")
		actionsOn[resources] = append(actionsOn[resources], action)
	}
	var statements []statement
	for _, resources := range slices.SortedFunc(maps.Keys(actionsOn), func(a, b string) int { return slices.Compare(actionsOn[a], actionsOn[b]) }) {
		statements = append(statements, statement{Effect: "Allow", Action: actionsOn[resources], Resource: strings.Split(resources, "\n")})
	}
	return documentOf(statements...)
}

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
		Example: `  conclave policy generate --principal user/alice --since 2160h > least.json`,
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
			u := use{allowed: make(map[permission]bool)}
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
						u.unopenable++
					} else {
						u.add(r.GetJson(), principal, from)
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
			if u.unopenable > 0 {
				a.Note("%d records cannot be decrypted, and are not covered", u.unopenable)
			}
			if u.requests == 0 {
				return errors.New("the audit log has no successful request of " + cli.Printable(principal) + " that needs a permission")
			}
			doc, err := u.document()
			if err != nil {
				return err
			}
			// What is written has to be a policy, whatever the log says.
			if _, err := policy.Parse(policy.IdentityPolicy, []byte(doc)); err != nil {
				return fmt.Errorf("what the audit log shows does not make a policy: %w", err)
			}
			a.Note("%d requests from %s to %s are covered, and %d that were refused are not", u.requests, u.earliest, u.latest, u.refused)
			_, err = io.WriteString(a.Stdout, cli.Visible(doc)+"\n")
			return err
		},
	}
	cmd.Flags().StringVar(&principal, "principal", "", "ARN of a user or role, or user/NAME or role/NAME")
	cmd.Flags().StringVar(&since, "since", "", "only what was done since then: "+pastTimes+" (default the whole log)")
	return a.ClientFlags(cmd)
}
