package iam

import (
	"context"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/policy"
)

// AuthenticateCertificate returns the identity of a client certificate, by its URI. The
// transport has verified the certificate. It is a credential of its own, such as that of the
// root user which the cluster was initialised with, or a certificate mapping says whose it is.
// Whether the trust policy of a role allows the mapping is decided by each evaluation. Errors:
// ErrUnrecognizedClient, ErrUnavailable.
func (a *Authenticator) AuthenticateCertificate(ctx context.Context, cert Certificate) (Identity, error) {
	o, err := a.cfg.Vault.Current()
	if err != nil {
		return Identity{}, err
	}
	uri := cert.URI
	if uri == "" || len(uri) > vault.MaxCredentialID {
		return Identity{}, ErrUnrecognized
	}
	_, id, err := onFresh(ctx, a, func(s *fsm.State) (*fsmpb.Credential, Identity, error) {
		for account := range fsm.Accounts(s) {
			c, _ := s.Credential(account, uri)
			if !good(c, fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE) {
				continue
			}
			known, err := a.Identify(o, c)
			if err != nil {
				return nil, Identity{}, err
			}
			id, err := a.identity(s, c, known)
			return c, id, err
		}
		who, _, err := MappedBy(s, &cert, func(fsmpb.Kind, []byte, fsm.Version) {})
		return nil, Identity{principal: who.Principal, account: who.Account, credential: uri, mapped: &cert}, err
	})
	return id, err
}

// MappedBy returns the user that a state maps a certificate to, or a session of the role, with
// the identity as which the certificate may assume that role. It calls note with all that this
// depends on: the mapping, the absence of mappings with longer patterns, and the user or role.
// It returns ErrUnrecognized if the certificate is not mapped, or to nobody who exists.
//
// All mappings are of the account that administers the cluster: the certificates are from the
// cluster's own CA, so no other account may say whose they are.
func MappedBy(s *fsm.State, cert *Certificate, note func(fsmpb.Kind, []byte, fsm.Version)) (who, bearer Entity, err error) {
	m := mappingOf(s, cert.URI, note)
	if m == nil {
		return Entity{}, Entity{}, ErrUnrecognized
	}
	// A mapping is no older than whom it names, as with credentials of users: see entityOf.
	partition, account := partitionOf(s), fsm.Account(m.PrincipalAccount)
	if u := fsm.UserByID(s, account, m.Principal); u != nil && m.Created >= u.Created {
		who, err = userEntity(s, u)
	} else if r := fsm.RoleByID(s, account, m.Principal); r == nil || m.Created < r.Created {
		return Entity{}, Entity{}, ErrUnrecognized
	} else {
		who, err = roleEntity(s, &iampb.Session{
			Account: m.PrincipalAccount, Role: m.Principal, Name: sessionName(cert), SourceIdentity: cert.URI, Expires: cert.Expires(),
		})
	}
	if err != nil {
		return Entity{}, Entity{}, err
	}
	who.CertificateURI = cert.URI
	who.Reads(note)
	if who.Role == nil {
		return who, Entity{}, nil
	}
	arn := MappingARN(partition, fsm.Account(m.Account), m.Pattern)
	p, err := policy.ParseProvider(arn)
	return who, Entity{Principal: p, Account: fsm.Account(m.Account), ID: arn, Subject: cert.URI, CertificateURI: cert.URI}, err
}

// mappingOf returns the mapping with the longest pattern that matches a URI, or nil.
func mappingOf(s *fsm.State, uri string, note func(fsmpb.Kind, []byte, fsm.Version)) *fsmpb.CertificateMapping {
	for _, pattern := range form.PatternsOf(uri) {
		id := fsm.CertificateMappingID(fsm.AccountOf(s), pattern)
		m, v := fsm.Object[*fsmpb.CertificateMapping](s, id)
		note(fsmpb.Kind_KIND_CERTIFICATE_MAPPING, id, v)
		if m != nil {
			return m
		}
	}
	return nil
}

// sessionName returns the name of a role's session for a certificate: the last part of the
// URI's path, or the serial number if that cannot be the name of a session.
func sessionName(cert *Certificate) string {
	name := cert.URI[strings.LastIndexByte(cert.URI, '/')+1:]
	if len(name) < 2 || len(name) > 64 {
		return cert.Serial
	}
	return name
}

const mappingForm = ":certificate-mapping/"

// MappingARN returns the ARN of a certificate mapping, as trust policies name it: it ends with
// the pattern, without an asterisk.
func MappingARN(partition string, account fsm.Account, pattern string) string {
	return "arn:" + partition + ":iam::" + account.String() + mappingForm + strings.TrimSuffix(pattern, "*")
}

// MappingPattern returns the pattern in the ARN of a certificate mapping.
func MappingPattern(arn string) (pattern string, ok bool) {
	_, pattern, ok = strings.Cut(arn, mappingForm)
	if strings.HasSuffix(pattern, "/") {
		pattern += "*"
	}
	return pattern, ok && form.IsPattern(pattern)
}
