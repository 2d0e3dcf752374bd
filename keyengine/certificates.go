package keyengine

import (
	"context"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
	"github.com/conclavekms/conclave/keyengine/internal/iamops"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// CertificateMapping says who the clients are whose certificates have a URI.
type CertificateMapping struct {
	// Pattern is a URI, or the beginning of URIs followed by "/*". ARN is what the trust
	// policies of roles name.
	Pattern, ARN string
	// Principal is the ARN of the user or role, or its unique id if it does not exist any more.
	Principal string
	Created   time.Time
}

// mappings are the operations of an engine on certificate mappings.
type mappings struct{ engine *Engine }

// CreateCertificateMapping maps certificates to a user of the account that the cluster was
// initialised with, or to a role of any account, and returns the mapping's ARN. The caller
// needs conclave:CreateCertificateMapping in that account. Errors: ErrValidation,
// EntityAlreadyExists, NoSuchEntity, ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (m mappings) CreateCertificateMapping(ctx context.Context, c *iam.Caller, pattern, principal string) (arn string, err error) {
	ask := record.Event{Parameters: []*auditpb.Field{auditfield.Text("pattern", pattern), auditfield.Text("principal", principal)}}
	err = m.engine.requested(ctx, c, "CreateCertificateMapping", ask, func(ev *request.Evaluation, _ *record.Event) error {
		if err := mustAdminister(ev, "conclave:CreateCertificateMapping"); err != nil {
			return err
		}
		// A mapping is a credential that lasts.
		if err := mustNotBeSession(ev, "map certificates"); err != nil {
			return err
		}
		arn, err = iamops.NewCertificateMapping(ev, pattern, principal)
		return err
	})
	return arn, err
}

// DeleteCertificateMapping ends a mapping on all nodes. The caller needs
// conclave:DeleteCertificateMapping in the account that the cluster was initialised with.
// Errors: NoSuchEntity, ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (m mappings) DeleteCertificateMapping(ctx context.Context, c *iam.Caller, pattern string) error {
	ask := record.Event{Parameters: []*auditpb.Field{auditfield.Text("pattern", pattern)}}
	return m.engine.requested(ctx, c, "DeleteCertificateMapping", ask, func(ev *request.Evaluation, _ *record.Event) error {
		if err := mustAdminister(ev, "conclave:DeleteCertificateMapping"); err != nil {
			return err
		}
		return iamops.DeleteCertificateMapping(ev, pattern)
	})
}

// CertificateMappings returns the certificate mappings, ordered by their patterns. The caller
// needs conclave:ListCertificateMappings in the account that the cluster was initialised with.
// Errors: ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (m mappings) CertificateMappings(ctx context.Context, c *iam.Caller) (list []CertificateMapping, err error) {
	err = m.engine.requested(ctx, c, "ListCertificateMappings", record.Event{ReadOnly: true}, func(ev *request.Evaluation, _ *record.Event) error {
		return mustAdminister(ev, "conclave:ListCertificateMappings")
	})
	if err != nil {
		return nil, err
	}
	// As for Accounts, the list is read afterwards.
	s, err := m.engine.FreshState(ctx)
	if err != nil {
		return nil, err
	}
	account, partition := fsm.AccountOf(s), m.engine.cluster(s).GetPartition()
	for o := range fsm.Objects[*fsmpb.CertificateMapping](s, fsm.AccountID(account), "") {
		list = append(list, CertificateMapping{
			Pattern: o.Pattern, ARN: iam.MappingARN(partition, account, o.Pattern),
			Principal: binding.Name(s, fsm.Account(o.PrincipalAccount), o.Principal, nil), Created: time.Unix(0, o.Created),
		})
	}
	return list, nil
}
