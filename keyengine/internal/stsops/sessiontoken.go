package stsops

import (
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// How long sessions of users and root users last, in seconds.
const (
	defaultTokenLife = 43_200
	maxRootTokenLife = 3600
)

// errNoMFA is the answer to requests with the code of a device, of which there are none.
var errNoMFA = kmsapi.Errorf(kmsapi.ErrAccessDenied, "MultiFactorAuthentication failed with invalid MFA one time pass code. ")

// getSessionToken needs no permission, as its credentials give nobody more than it has
// already: they stand for the long-term credential that the request was made with.
func getSessionToken(ev *request.Evaluation, in *iamapi.GetSessionTokenInput) (*iamapi.GetSessionTokenOutput, error) {
	who := ev.Who()
	if who.Session != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrAccessDenied, "Cannot call GetSessionToken with session credentials")
	}
	if who.Kind != policy.KindUser && who.Kind != policy.KindRoot {
		return nil, kmsapi.Errorf(kmsapi.ErrAccessDenied, "%s is neither a user nor a root user", who.Principal)
	}
	if ev.Caller.Identity.Mapped() != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrAccessDenied, "Cannot call GetSessionToken with a certificate that is mapped to %s", who.Principal)
	}
	if in.SerialNumber != nil || in.TokenCode != nil {
		return nil, errNoMFA
	}
	life := int32(defaultTokenLife)
	if in.DurationSeconds != nil {
		life = *in.DurationSeconds
	}
	if who.Kind == policy.KindRoot {
		life = min(life, maxRootTokenLife)
	}
	o, err := ev.Vault.Current()
	if err != nil {
		return nil, err
	}
	parent := ev.Credential(request.AccountOf(ev), ev.Caller.Identity.Credential())
	if parent == nil {
		return nil, iam.ErrUnrecognized // not expected: Admit has found it
	}
	known, err := ev.Authenticator.Identify(o, parent)
	if err != nil {
		return nil, err
	}
	s := &iampb.Session{Account: parent.Account, Parent: parent.Id, ParentProof: known.Sessions[:]}
	begin(ev, s, time.Duration(life)*time.Second, nil, nil)
	c, err := credentials(ev, s)
	if err != nil {
		return nil, err
	}
	return &iamapi.GetSessionTokenOutput{Credentials: c}, nil
}

func recordGetSessionToken(out *iamapi.GetSessionTokenOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return []*auditpb.Field{recordCredentials(out.Credentials)}
}
