package stsops

import (
	"encoding/json"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// A message in AWS's form, with more members at the end.
type (
	items[T any] struct {
		Items []T `json:"items"`
	}

	decodedMessage struct {
		Allowed           bool                    `json:"allowed"`
		ExplicitDeny      bool                    `json:"explicitDeny"`
		MatchedStatements items[matchedStatement] `json:"matchedStatements"`
		Failures          items[struct{}]         `json:"failures"`
		Context           decodedContext          `json:"context"`
		// Reason is the kind of policy that denied the request, or in which an Allow was
		// needed.
		Reason    string `json:"reason"`
		RequestID string `json:"requestId"`
	}

	matchedStatement struct {
		StatementID string `json:"statementId"`
		Effect      string `json:"effect"`
		// Policy is the policy with the statement, if it is one of the caller's, and Statement
		// its position from 1.
		Policy    string `json:"policy,omitempty"`
		Statement int32  `json:"statement"`
	}

	decodedContext struct {
		Principal  decodedPrincipal        `json:"principal"`
		Action     string                  `json:"action"`
		Resource   string                  `json:"resource"`
		Conditions items[decodedCondition] `json:"conditions"`
	}

	decodedPrincipal struct {
		ID   string `json:"id"`
		Name string `json:"name"`
		ARN  string `json:"arn"`
	}

	decodedCondition struct {
		Key    string              `json:"key"`
		Values items[decodedValue] `json:"values"`
	}

	decodedValue struct {
		Value string `json:"value"`
	}
)

// decodeAuthorizationMessage explains a denial to those who may know. A message about the
// principal or the resource of another account is not for them.
func decodeAuthorizationMessage(ev *request.Evaluation, in *iamapi.DecodeAuthorizationMessageInput) (*iamapi.DecodeAuthorizationMessageOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	o, err := ev.Vault.Current()
	if err != nil {
		return nil, err
	}
	contents, err := o.OpenMessage(*in.EncodedMessage)
	if errors.Is(err, vault.ErrToken) {
		return nil, iamapi.ErrInvalidAuthorizationMessage
	}
	if err != nil {
		return nil, err
	}
	d := new(iampb.Denial)
	own := request.AccountOf(ev)
	if proto.Unmarshal(contents, d) != nil || len(d.RequestId) != 16 || fsm.Account(d.Account) != own && fsm.Account(d.ResourceAccount) != own {
		return nil, iamapi.ErrInvalidAuthorizationMessage
	}
	text, err := json.Marshal(decoded(d))
	return &iamapi.DecodeAuthorizationMessageOutput{DecodedMessage: new(string(text))}, err
}

func decoded(d *iampb.Denial) *decodedMessage {
	m := &decodedMessage{
		ExplicitDeny: d.Explicit, Reason: d.Reason, RequestID: record.UUID([16]byte(d.RequestId)),
		MatchedStatements: items[matchedStatement]{[]matchedStatement{}}, Failures: items[struct{}]{[]struct{}{}},
		Context: decodedContext{
			Principal: decodedPrincipal{d.PrincipalId, d.PrincipalName, d.Principal}, Action: d.Action, Resource: d.Resource,
			Conditions: items[decodedCondition]{[]decodedCondition{
				{"aws:CurrentTime", items[decodedValue]{[]decodedValue{{time.Unix(0, d.Time).UTC().Format(time.RFC3339)}}}},
			}},
		},
	}
	if d.SourceIp != "" {
		m.Context.Conditions.Items = append(m.Context.Conditions.Items, decodedCondition{"aws:SourceIp", items[decodedValue]{[]decodedValue{{d.SourceIp}}}})
	}
	if d.Statement > 0 {
		m.MatchedStatements.Items = append(m.MatchedStatements.Items, matchedStatement{d.Sid, "DENY", d.Policy, d.Statement})
	}
	return m
}
