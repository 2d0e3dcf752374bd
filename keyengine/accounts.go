package keyengine

import (
	"context"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/iamops"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// AccountInfo describes an account of the cluster.
type AccountInfo struct {
	// Number has twelve digits.
	Number string
	// Name is what the operators call the account, and Alias is its alias in IAM; each may be
	// empty.
	Name, Alias string
	Created     time.Time
}

// CreateAccount creates an account with an access key for its root user. The caller needs
// conclave:CreateAccount in the account that the cluster was initialised with. The secret is
// returned encrypted to answerKey, as by CreateAccessKey. Errors: ErrValidation,
// EntityAlreadyExists, LimitExceeded, ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) CreateAccount(ctx context.Context, c *iam.Caller, number, name string, answerKey []byte) (id string, sealed []byte, err error) {
	ask := record.Event{Parameters: []*auditpb.Field{auditfield.Text("account", number), auditfield.Text("name", name)}}
	return e.newAccessKey(answerKey, func(handOver handOver) error {
		return e.requested(ctx, c, "CreateAccount", ask, func(ev *request.Evaluation, done *record.Event) error {
			if err := mustAdminister(ev, "conclave:CreateAccount"); err != nil {
				return err
			}
			if err := mustNotBeSession(ev, "create accounts"); err != nil {
				return err
			}
			return iamops.NewAccount(ev, number, name, handOver(done))
		})
	})
}

// Accounts returns the accounts of the cluster, the one that it was initialised with first.
// The caller needs conclave:ListAccounts in that account. Errors: ErrAccessDenied,
// ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) Accounts(ctx context.Context, c *iam.Caller) ([]AccountInfo, error) {
	err := e.requested(ctx, c, "ListAccounts", record.Event{ReadOnly: true}, func(ev *request.Evaluation, _ *record.Event) error {
		return mustAdminister(ev, "conclave:ListAccounts")
	})
	if err != nil {
		return nil, err
	}
	// A list would need a read set as long as itself. It is read afterwards instead, from a
	// state that is no older than the record.
	s, err := e.FreshState(ctx)
	if err != nil {
		return nil, err
	}
	var list []AccountInfo
	for a := range fsm.Accounts(s) {
		info := AccountInfo{Number: a.String(), Created: time.Unix(0, e.cluster(s).GetCreated())}
		if m, _ := fsm.Object[*fsmpb.Account](s, fsm.AccountID(a)); m != nil {
			info.Name, info.Alias, info.Created = m.Name, m.Alias, time.Unix(0, m.Created)
		}
		list = append(list, info)
	}
	return list, nil
}
