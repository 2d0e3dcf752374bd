package permissions

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// Record has the members of an audit record that are looked at here and by those who explain it.
type Record struct {
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
	Resources         []Resource     `json:"resources"`
	RequestParameters map[string]any `json:"requestParameters,omitempty"`
	Additional        struct {
		// Authorization has the decisions that the request depended on, each as an action,
		// what was decided and by what.
		Authorization []string `json:"authorization,omitempty"`
	} `json:"additionalEventData,omitzero"`
}

type Resource struct {
	Type string `json:"type"`
	ARN  string `json:"ARN"`
}

// by reports whether a request was made by a principal or, if that is a role, by one of its
// sessions.
func (r *Record) by(principal string) bool {
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
func (r *Record) needs() []permission {
	service, ok := strings.CutSuffix(r.EventSource, ".amazonaws.com")
	action := service + ":" + r.EventName
	switch {
	case r.EventSource == "conclave" && (r.EventName == "ReadAudit" || r.EventName == "SearchAudit" || r.EventName == "GetRecordReceipt" || r.EventName == "ReadAuditLeaves"):
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
func (r *Record) has(parameter string) bool {
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
func (r *Record) arns(service string, aliases bool) []string {
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

// Use is what a principal did with success. The zero Use is that of one that did nothing.
type Use struct {
	// Requests is the number of requests that needed permissions; Refused is that of those
	// that had no success.
	Requests, Refused int
	// Earliest and Latest are the times of the first and the last of Requests, as records have
	// them.
	Earliest, Latest string

	allowed map[permission]bool
}

// Add adds a record of the log, if it is about a principal, given by its ARN, since a time. A
// role does what its sessions do.
func (u *Use) Add(raw, principal string, since time.Time) {
	var r Record
	if json.Unmarshal([]byte(raw), &r) != nil || !r.by(principal) {
		return
	}
	if at, err := time.Parse(time.RFC3339, r.EventTime); err != nil || at.Before(since) {
		return
	}
	if r.ErrorCode != "" {
		u.Refused++
		return
	}
	needs := r.needs()
	if len(needs) == 0 {
		return
	}
	u.Requests++
	if u.Earliest == "" {
		u.Earliest = r.EventTime
	}
	u.Latest = r.EventTime
	if u.allowed == nil {
		u.allowed = make(map[permission]bool)
	}
	for _, p := range needs {
		u.allowed[p] = true
	}
}

// Policy returns the smallest policy that allows it: one statement for all actions that have
// the same resources.
func (u *Use) Policy() (string, error) {
	on := make(map[string][]string) // resources by action
	for p := range u.allowed {
		on[p.action] = append(on[p.action], p.resource)
	}
	actionsOn := make(map[string][]string)
	for _, action := range slices.Sorted(maps.Keys(on)) {
		slices.Sort(on[action])
		resources := strings.Join(on[action], "\n")
		actionsOn[resources] = append(actionsOn[resources], action)
	}
	var statements []Statement
	for _, resources := range slices.SortedFunc(maps.Keys(actionsOn), func(a, b string) int { return slices.Compare(actionsOn[a], actionsOn[b]) }) {
		statements = append(statements, Statement{Effect: "Allow", Action: actionsOn[resources], Resource: strings.Split(resources, "\n")})
	}
	return Document(statements...)
}
