package iam

import (
	"errors"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/policy"
)

// Entity is the principal of an identity as a state has it.
type Entity struct {
	policy.Principal
	Account fsm.Account
	// ID is the unique id, as in the condition key aws:userid: that of a user, that of a role
	// with the name of the session, or the account of its root user.
	ID string
	// User and Role are the objects that decide what the principal may do; both are nil for
	// root users and services.
	User *fsmpb.User
	Role *fsmpb.Role
	// Session is set for temporary credentials.
	Session *iampb.Session
	// Provider is set for a web identity and for a session that one has opened: the
	// identity provider that vouches for it.
	Provider *fsmpb.OidcProvider
	// BreakGlassUntil is when the access key of a break-glass ceremony ends, in Unix
	// nanoseconds of cluster time, and 0 for all other credentials. Such a caller may only
	// recover access to its account; see package request.
	BreakGlassUntil int64
	// Subject is what the provider calls a web identity that has no session yet.
	Subject string
	// CertificateURI is the URI of the client certificate that proved who a mapped caller is.
	CertificateURI string
}

// EntityARN returns the ARN of a user, group, role or managed policy; kind is "user",
// "group", "role" or "policy".
func EntityARN(partition string, account uint64, kind, path, name string) string {
	return "arn:" + partition + ":iam::" + fsm.Account(account).String() + ":" + kind + path + name
}

// UserARN returns the ARN of a user.
func UserARN(partition string, u *fsmpb.User) string {
	return EntityARN(partition, u.Account, "user", u.Path, u.Name)
}

// RoleARN returns the ARN of a role.
func RoleARN(partition string, r *fsmpb.Role) string {
	return EntityARN(partition, r.Account, "role", r.Path, r.Name)
}

// GroupARN returns the ARN of a group.
func GroupARN(partition string, g *fsmpb.Group) string {
	return EntityARN(partition, g.Account, "group", g.Path, g.Name)
}

// PolicyARN returns the ARN of a managed policy.
func PolicyARN(partition string, p *fsmpb.Policy) string {
	return EntityARN(partition, p.Account, "policy", p.Path, p.Name)
}

// SessionARN returns the ARN of a session of a role.
func SessionARN(partition string, r *fsmpb.Role, session string) string {
	return "arn:" + partition + ":sts::" + fsm.Account(r.Account).String() + ":assumed-role/" + r.Name + "/" + session
}

// entityOf returns the principal of a credential. It returns ErrUnrecognized if the state
// does not have the user, or if the user is newer than the credential. An honest node makes
// no user with the unique id of a deleted one, but the state does not rule it out, and the
// credentials of the deleted one could be put back with it.
func entityOf(s *fsm.State, account fsm.Account, c *fsmpb.Credential, known *vault.Known) (Entity, error) {
	e := Entity{Principal: known.Principal, Account: account, ID: known.Principal.Account}
	if known.User == "" {
		// A credential is only as good as the account that it was stored in.
		if e.Kind != policy.KindService && e.Principal.Account != account.String() {
			return Entity{}, ErrUnrecognized
		}
		return e, nil
	}
	n := known.Named.Load()
	if n == nil || n.Objects != s.Objects() {
		u := fsm.UserByID(s, account, known.User)
		if u == nil || c.Created < u.Created {
			return Entity{}, ErrUnrecognized
		}
		was := n
		n = &vault.Named{Objects: s.Objects(), User: u}
		if was != nil && was.User == u {
			n.Principal = was.Principal
		} else {
			e, err := userEntity(s, u)
			if err != nil {
				return Entity{}, err
			}
			n.Principal = e.Principal
		}
		known.Named.Store(n)
	}
	return Entity{Principal: n.Principal, Account: account, ID: n.User.Id, User: n.User}, nil
}

func userEntity(s *fsm.State, u *fsmpb.User) (Entity, error) {
	p, err := policy.ParsePrincipal(UserARN(partitionOf(s), u))
	p.ID = u.Id
	return Entity{Principal: p, Account: fsm.Account(u.Account), ID: u.Id, User: u}, err
}

// roleEntity returns the principal of a session of a role.
func roleEntity(s *fsm.State, session *iampb.Session) (Entity, error) {
	account := fsm.Account(session.Account)
	r := fsm.RoleByID(s, account, session.Role)
	if r == nil {
		return Entity{}, ErrUnrecognized
	}
	partition := partitionOf(s)
	p, err := policy.ParsePrincipal(SessionARN(partition, r, session.Name))
	if err == nil {
		p, err = p.WithRole(RoleARN(partition, r))
		p.ID = r.Id
	}
	e := Entity{Principal: p, Account: account, ID: r.Id + ":" + session.Name, Role: r, Session: session}
	if err == nil && session.Issuer != "" {
		e.Provider, _ = fsm.Object[*fsmpb.OidcProvider](s, fsm.OidcProviderID(account, session.Issuer))
		// The provider of the session may have been deleted and registered again by a node whose
		// clock is behind; or this state is behind, which ErrUnrecognized leaves open.
		if e.Provider == nil || session.ProviderThen != nil && e.Provider.Created < session.ProviderThen.Created {
			return Entity{}, ErrUnrecognized
		}
	}
	return e, err
}

// Record sets the fields of a record's identity to those of the entity and the credential that
// it used, as in CloudTrail: a user has its unique id as principalId, and temporary credentials
// have a sessionContext, which names the role of a session.
func (e *Entity) Record(id *auditpb.Identity, credential string) {
	record.FillIdentity(id, e.Principal, credential)
	id.PrincipalId = e.ID
	if e.Kind == policy.KindFederated { // which has no ARN and is of no account
		id.Arn, id.AccountId, id.UserName = "", "", e.Subject
		if e.CertificateURI != "" {
			id.Type = "CertificateUser"
		}
	}
	if e.BreakGlassUntil != 0 {
		id.SessionContext = append(id.SessionContext, auditfield.TextMap("breakGlass", map[string]string{
			"expiration": time.Unix(0, e.BreakGlassUntil).UTC().Format(time.RFC3339),
		}))
	}
	if e.Session == nil {
		return
	}
	if e.Role != nil {
		id.SessionContext = append(id.SessionContext, auditfield.TextMap("sessionIssuer", map[string]string{
			"type": "Role", "principalId": e.Role.Id, "arn": e.Principal.Role, "accountId": e.Principal.Account, "userName": e.Role.Name,
		}))
	}
	if e.Provider != nil {
		id.SessionContext = append(id.SessionContext, auditfield.TextMap("webIdFederationData", map[string]string{
			"federatedProvider": ProviderARN(e.Principal.Partition, e.Provider),
		}))
	}
	attributes := map[string]string{"mfaAuthenticated": "false"}
	if e.Session.Issued != 0 {
		attributes["creationDate"] = time.Unix(0, e.Session.Issued).UTC().Format(time.RFC3339)
	}
	id.SessionContext = append(id.SessionContext, auditfield.TextMap("attributes", attributes))
	if e.Session.SourceIdentity != "" {
		id.SessionContext = append(id.SessionContext, auditfield.Text("sourceIdentity", e.Session.SourceIdentity))
	}
}

func partitionOf(s *fsm.State) string {
	c, _ := s.Cluster()
	return c.GetPartition()
}

// ended reports whether a session of a role has ended at the time of the state, or before its
// time: the sessions of its role, or of the identities of its identity provider, were revoked,
// or the provider was deleted and registered again since. So was the role, if it is newer than
// the session; as with users, only a dishonest node gives it the same unique id.
func ended(s *fsm.State, e *Entity) bool {
	session := e.Session
	return s.Time() >= session.Expires || revoked(session.Issued, session.RoleThen, e.Role) ||
		e.Provider != nil && revoked(session.Issued, session.ProviderThen, e.Provider)
}

// revocable is a role or an identity provider.
type revocable interface {
	GetCreated() int64
	GetRevokedBefore() int64
}

// revoked reports whether a session that began at a time, when it had read then, was revoked
// since. Sessions that do not say what they had read began after that. A state that is behind
// never has an ended session that is still open in a newer one.
func revoked(issued int64, then *iampb.Revocable, now revocable) bool {
	if then == nil {
		return issued < now.GetRevokedBefore() || issued < now.GetCreated()
	}
	return then.Created < now.GetCreated() || then.RevokedBefore < now.GetRevokedBefore() && issued < now.GetRevokedBefore()
}

// ProviderARN returns the ARN of an identity provider.
func ProviderARN(partition string, p *fsmpb.OidcProvider) string {
	return EntityARN(partition, p.Account, "oidc-provider", "/", p.Url)
}

// ProviderURL returns the URL in the ARN of an identity provider.
func ProviderURL(arn string) string {
	_, url, _ := strings.Cut(arn, ":oidc-provider/")
	return url
}

// Reads calls note with the objects that the principal depends on, beside its credential:
// the user, the role of a session, and the identity provider of a session that a web identity
// has opened. The state finds users and roles by their unique ids, which are never used again.
// What can change is the object with the name.
func (e *Entity) Reads(note func(kind fsmpb.Kind, id []byte, v fsm.Version)) {
	if e.User != nil {
		note(fsmpb.Kind_KIND_USER, fsm.EntityID(e.Account, e.User.Name), e.User.Version)
	}
	if e.Role != nil {
		note(fsmpb.Kind_KIND_ROLE, fsm.EntityID(e.Account, e.Role.Name), e.Role.Version)
	}
	if p := e.Provider; p != nil {
		note(fsmpb.Kind_KIND_OIDC_PROVIDER, fsm.OidcProviderID(e.Account, p.Url), p.Version)
	}
}

// openTemporaryOf returns the contents of the session token of an access key, whose account is
// that in its id. It returns ErrUnrecognized if the token is not one of that access key.
func openTemporaryOf(o *vault.Opened, account fsm.Account, accessKey, token string) (*iampb.Session, error) {
	b, err := o.OpenTemporary(accessKey, token)
	if err != nil && !errors.Is(err, vault.ErrToken) {
		return nil, err
	}
	if err == nil {
		var t *iampb.Session
		if t, err = decodeTemporary(b); err == nil && t.AccessKey == accessKey && fsm.Account(t.Account) == account {
			return t, nil
		}
	}
	return nil, ErrUnrecognized
}

func decodeTemporary(b []byte) (*iampb.Session, error) {
	s := new(iampb.Session)
	if err := proto.Unmarshal(b, s); err != nil || !wellFormed(s) {
		return nil, vault.ErrToken
	}
	return s, nil
}

// wellFormed reports whether a session, which may be nil, is one that this version makes.
func wellFormed(s *iampb.Session) bool {
	return s != nil && len(s.ProtoReflect().GetUnknown()) == 0 && (s.Role == "") != (s.Parent == "") && (s.Parent == "" || len(s.ParentProof) == 32) && s.AccessKey != ""
}
