package iamops

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// NewCertificateMapping adds a new certificate mapping of the caller's account to the record,
// and returns its ARN. The principal is a user of the account, or a role of any account, whose
// trust policy decides too.
func NewCertificateMapping(ev *request.Evaluation, pattern, principal string) (arn string, err error) {
	if !form.IsPattern(pattern) {
		return "", kmsapi.Errorf(kmsapi.ErrValidation, "A certificate mapping is for a URI such as spiffe://example.org/ns/shop/sa/web, or for the beginning "+
			"of URIs with /* after it, of at most %d bytes: the trust domain is in lower case, and no part of the path is empty, dots or escaped. Of the cluster's own URIs, it can be that of an operator.", form.MaxPattern)
	}
	p, err := policy.ParsePrincipal(principal)
	if err != nil || p.Kind != policy.KindUser && p.Kind != policy.KindRole {
		return "", kmsapi.Errorf(kmsapi.ErrValidation, "A certificate is mapped to the ARN of a user or of a role.")
	}
	own := request.AccountOf(ev)
	of, ok := fsm.ParseAccount(p.Account)
	if p.Kind == policy.KindUser && of != own {
		return "", kmsapi.Errorf(kmsapi.ErrValidation, "A certificate is mapped to a user of the account %s, or to a role: its trust policy says that its account agrees.", own)
	}
	id, found := binding.Find(ev.State, p, ev.Note)
	if !ok || !found {
		return "", noSuch("%s cannot be found.", principal)
	}
	if request.Read[*fsmpb.CertificateMapping](ev, fsm.CertificateMappingID(own, pattern)) != nil {
		return "", exists("There is a certificate mapping for %s already.", pattern)
	}
	if c := ev.Credential(own, pattern); c != nil && c.Active {
		return "", exists("The certificate %s is that of %s.", pattern, c.Principal)
	}
	m := &fsmpb.CertificateMapping{Account: uint64(own), Pattern: pattern, Principal: id, PrincipalAccount: uint64(of), Created: ev.Now().UnixNano()}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCertificateMapping{PutCertificateMapping: m}})
	return iam.MappingARN(partition(ev), own, pattern), nil
}

// DeleteCertificateMapping adds the deletion of a certificate mapping of the caller's account
// to the record. Once it is committed, no node answers a request that it was needed for.
func DeleteCertificateMapping(ev *request.Evaluation, pattern string) error {
	own := request.AccountOf(ev)
	if !form.IsPattern(pattern) || request.Read[*fsmpb.CertificateMapping](ev, fsm.CertificateMappingID(own, pattern)) == nil {
		return noSuch("There is no certificate mapping for %.512q.", pattern)
	}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteCertificateMapping{DeleteCertificateMapping: &fsmpb.CertificateMappingID{Account: uint64(own), Pattern: pattern}}})
	return nil
}
