package stsops

import (
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// getCallerIdentity needs no permission, and no policy can deny it.
func getCallerIdentity(ev *request.Evaluation, _ *iamapi.GetCallerIdentityInput) (*iamapi.GetCallerIdentityOutput, error) {
	who := ev.Who()
	return &iamapi.GetCallerIdentityOutput{UserId: &who.ID, Account: new(request.AccountOf(ev).String()), Arn: new(who.Principal.String())}, nil
}

// getAccessKeyInfo tells whose an access key is from its id alone. It does not say whether
// there is such an access key.
func getAccessKeyInfo(ev *request.Evaluation, in *iamapi.GetAccessKeyInfoInput) (*iamapi.GetAccessKeyInfoOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	_, account, ok := accesskey.Parse(*in.AccessKeyId)
	if !ok {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "The access key ID %s is not one that tells its account.", *in.AccessKeyId)
	}
	return &iamapi.GetAccessKeyInfoOutput{Account: new(account.String())}, nil
}
