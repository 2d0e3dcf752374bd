package keyengine

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// iamReadCases are the cases of what a decision about a user or a role can depend on. Each
// is there twice: what allows the request is taken away, and what did not allow it is given.
func iamReadCases() []readCase {
	const (
		kindUser   = fsmpb.Kind_KIND_USER
		kindGroup  = fsmpb.Kind_KIND_GROUP
		kindRole   = fsmpb.Kind_KIND_ROLE
		kindPolicy = fsmpb.Kind_KIND_POLICY
		onKey      = "KEY KEY_POLICY"
	)
	all, none := allow("kms:*", "*"), allow("kms:List*", "*")
	encrypt := func(f *readFixture) any { return &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")} }
	ann := func(*readFixture) []byte { return fsm.EntityID(testAccountNumber, "ann") }
	team := func(*readFixture) []byte { return fsm.EntityID(testAccountNumber, "team") }
	app := func(*readFixture) []byte { return fsm.EntityID(testAccountNumber, "app") }
	managed := func(*readFixture) []byte { return fsm.EntityID(testAccountNumber, "managed") }
	inlineOf := func(allowed bool) []*fsmpb.InlinePolicy {
		if allowed {
			return inline(all)
		}
		return inline(none)
	}
	setManaged := func(f *readFixture, allowed bool) {
		if allowed {
			f.putManaged("managed", all)
		} else {
			f.putManaged("managed", none)
		}
	}
	user := func(edit func(f *readFixture, u *fsmpb.User)) func(*readFixture) {
		return func(f *readFixture) { f.alice = f.newIAMUser("ann", func(u *fsmpb.User) { edit(f, u) }) }
	}
	session := func(edit func(f *readFixture, r *fsmpb.Role), more func(*iampb.Session)) func(*readFixture) {
		return func(f *readFixture) {
			f.putRole("app", func(r *fsmpb.Role) { edit(f, r) })
			f.alice = f.newSession("app", more)
		}
	}
	noMore := func(*iampb.Session) {}
	teamID := uniqueID("AGPA", "team")

	// A level is one thing that can allow a request or not.
	type level struct {
		name   string
		who    func(f *readFixture)               // makes the caller
		set    func(f *readFixture, allowed bool) // writes what it depends on, before and after who
		kind   fsmpb.Kind                         // of what set changes
		object func(f *readFixture) []byte        // its id
		reads  string                             // of the caller and its policies, in addition to the key's
		denied string                             // further reads of a denial
		in     func(f *readFixture) (string, any) // default: Encrypt
		noKey  bool                               // no key takes part
	}
	editUser := func(edit func(u *fsmpb.User, allowed bool)) func(*readFixture, bool) {
		return func(f *readFixture, allowed bool) { f.putUser("ann", func(u *fsmpb.User) { edit(u, allowed) }) }
	}
	editRole := func(edit func(r *fsmpb.Role, allowed bool)) func(*readFixture, bool) {
		return func(f *readFixture, allowed bool) { f.putRole("app", func(r *fsmpb.Role) { edit(r, allowed) }) }
	}
	editGroup := func(f *readFixture, allowed bool) {
		f.putGroup("team", func(g *fsmpb.Group) { g.Inline = inlineOf(allowed) })
	}
	tagged := func(key string) string {
		return strings.Replace(all, `"Resource"`, `"Condition":{"StringEquals":{"`+key+`":"red"}},"Resource"`, 1)
	}
	tags := func(allowed bool) []*fsmpb.Tag {
		if allowed {
			return []*fsmpb.Tag{{Key: "team", Value: "red"}}
		}
		return nil
	}
	levels := []level{
		{name: "user's inline policy", who: user(func(*readFixture, *fsmpb.User) {}), kind: kindUser, object: ann, reads: "CREDENTIAL USER",
			set: editUser(func(u *fsmpb.User, allowed bool) { u.Inline = inlineOf(allowed) })},
		{name: "user's attachment", who: user(func(f *readFixture, u *fsmpb.User) {
			f.putManaged("managed", all)
			f.putManaged("other", none)
			u.Inline = inline(none)
		}), kind: kindUser, object: ann, reads: "CREDENTIAL USER POLICY",
			set: editUser(func(u *fsmpb.User, allowed bool) {
				u.Policies = []string{managedARN("other")}
				if allowed {
					u.Policies = []string{managedARN("managed")}
				}
			})},
		{name: "user's managed policy", who: user(func(_ *readFixture, u *fsmpb.User) { u.Policies = []string{managedARN("managed")} }),
			kind: kindPolicy, object: managed, reads: "CREDENTIAL USER POLICY", set: setManaged},
		{name: "deny in a user's managed policy", who: user(func(_ *readFixture, u *fsmpb.User) {
			u.Inline, u.Policies = inline(all), []string{managedARN("managed")}
		}), kind: kindPolicy, object: managed, reads: "CREDENTIAL USER POLICY", denied: "-", set: func(f *readFixture, allowed bool) {
			if allowed {
				f.putManaged("managed", none)
			} else {
				f.putManaged("managed", deny("kms:Encrypt", "*"))
			}
		}},
		{name: "group's inline policy", who: user(func(_ *readFixture, u *fsmpb.User) { u.Groups = []string{teamID} }),
			kind: kindGroup, object: team, reads: "CREDENTIAL USER GROUP", set: editGroup},
		{name: "group's managed policy", who: user(func(f *readFixture, u *fsmpb.User) {
			f.putGroup("team", func(g *fsmpb.Group) { g.Policies = []string{managedARN("managed")} })
			u.Groups = []string{teamID}
		}), kind: kindPolicy, object: managed, reads: "CREDENTIAL USER GROUP POLICY", set: setManaged},
		{name: "membership", who: user(func(f *readFixture, u *fsmpb.User) {
			f.putGroup("team", func(g *fsmpb.Group) { g.Inline = inline(all) })
			f.putGroup("others", func(g *fsmpb.Group) { g.Inline = inline(none) })
		}), kind: kindUser, object: ann, reads: "CREDENTIAL USER GROUP", set: editUser(func(u *fsmpb.User, allowed bool) {
			u.Groups = []string{uniqueID("AGPA", "others")}
			if allowed {
				u.Groups = []string{teamID}
			}
		})},
		{name: "user's boundary", who: user(func(f *readFixture, u *fsmpb.User) {
			f.putManaged("wide", all)
			f.putManaged("narrow", none)
			u.Inline = inline(all)
		}), kind: kindUser, object: ann, reads: "CREDENTIAL USER POLICY", set: editUser(func(u *fsmpb.User, allowed bool) {
			u.Boundary = managedARN("narrow")
			if allowed {
				u.Boundary = managedARN("wide")
			}
		})},
		{name: "policy of a user's boundary", who: user(func(_ *readFixture, u *fsmpb.User) {
			u.Inline, u.Boundary = inline(all), managedARN("managed")
		}), kind: kindPolicy, object: managed, reads: "CREDENTIAL USER POLICY", set: setManaged},
		{name: "role's inline policy", who: session(func(*readFixture, *fsmpb.Role) {}, noMore), kind: kindRole, object: app, reads: "ROLE",
			set: editRole(func(r *fsmpb.Role, allowed bool) { r.Inline = inlineOf(allowed) })},
		{name: "role's managed policy", who: session(func(_ *readFixture, r *fsmpb.Role) { r.Policies = []string{managedARN("managed")} }, noMore),
			kind: kindPolicy, object: managed, reads: "ROLE POLICY", set: setManaged},
		{name: "role's boundary", who: session(func(f *readFixture, r *fsmpb.Role) {
			f.putManaged("wide", all)
			f.putManaged("narrow", none)
			r.Inline = inline(all)
		}, noMore), kind: kindRole, object: app, reads: "ROLE POLICY", set: editRole(func(r *fsmpb.Role, allowed bool) {
			r.Boundary = managedARN("narrow")
			if allowed {
				r.Boundary = managedARN("wide")
			}
		})},
		{name: "role's trust", who: user(func(f *readFixture, u *fsmpb.User) {
			f.putRole("app", func(*fsmpb.Role) {})
			u.Inline = inline(allow("sts:AssumeRole", "*"))
		}), kind: kindRole, object: app, reads: "CREDENTIAL USER ROLE", denied: "-", noKey: true,
			set: editRole(func(r *fsmpb.Role, allowed bool) {
				effect := "Deny"
				if allowed {
					effect = "Allow"
				}
				r.Trust = policyDocument(`{"Effect":"` + effect + `","Principal":{"AWS":"` + testAccount + `"},"Action":"sts:AssumeRole"}`)
			}), in: func(*readFixture) (string, any) {
				return "AssumeRole", &iamapi.AssumeRoleInput{RoleArn: new(arnOf("role/app")), RoleSessionName: new("test")}
			}},
		{name: "policy of a role's boundary", who: session(func(_ *readFixture, r *fsmpb.Role) {
			r.Inline, r.Boundary = inline(all), managedARN("managed")
		}, noMore), kind: kindPolicy, object: managed, reads: "ROLE POLICY", set: setManaged},
		{name: "session's managed policy", who: session(func(_ *readFixture, r *fsmpb.Role) { r.Inline = inline(all) }, func(s *iampb.Session) {
			s.Policies = []string{managedARN("managed")}
		}), kind: kindPolicy, object: managed, reads: "ROLE POLICY", set: setManaged},
		{name: "role's policy with a session policy", who: session(func(*readFixture, *fsmpb.Role) {}, func(s *iampb.Session) { s.Policy = policyDocument(all) }),
			kind: kindRole, object: app, reads: "ROLE", set: editRole(func(r *fsmpb.Role, allowed bool) { r.Inline = inlineOf(allowed) })},
		{name: "user's tags", who: user(func(_ *readFixture, u *fsmpb.User) { u.Inline = inline(tagged("aws:PrincipalTag/Team")) }), kind: kindUser, object: ann, reads: "CREDENTIAL USER",
			set: editUser(func(u *fsmpb.User, allowed bool) { u.Tags = tags(allowed) })},
		{name: "role's tags", who: session(func(_ *readFixture, r *fsmpb.Role) { r.Inline = inline(tagged("aws:PrincipalTag/Team")) }, noMore), kind: kindRole, object: app, reads: "ROLE",
			set: editRole(func(r *fsmpb.Role, allowed bool) { r.Tags = tags(allowed) })},
		{name: "key's tags", who: user(func(_ *readFixture, u *fsmpb.User) { u.Inline = inline(tagged("aws:ResourceTag/Team")) }),
			kind: fsmpb.Kind_KIND_KEY_TAGS, object: func(f *readFixture) []byte { return f.keyBytes(f.id) }, reads: "KEY_TAGS CREDENTIAL USER",
			set: func(f *readFixture, allowed bool) {
				k := f.keyID(f.id)
				f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyTags{PutKeyTags: &fsmpb.KeyTags{Account: uint64(k.Account), Key: k.ID[:], Region: k.Region, Tags: tags(allowed)}}})
			}},
		{name: "key's aliases", who: user(func(_ *readFixture, u *fsmpb.User) {
			u.Inline = inline(strings.Replace(all, `"Resource"`, `"Condition":{"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/app"}},"Resource"`, 1))
		}), kind: fsmpb.Kind_KIND_KEY_ALIASES, object: func(f *readFixture) []byte { return f.keyBytes(f.id) }, reads: "KEY_ALIASES CREDENTIAL USER",
			set: func(f *readFixture, allowed bool) {
				if allowed {
					f.moveAlias(f.id)
				} else {
					f.moveAlias(f.other)
				}
			}},
		{name: "last use", who: user(func(f *readFixture, u *fsmpb.User) {
			u.Inline = inline(strings.Replace(all, `"Resource"`, `"Condition":{"NumericGreaterThanEquals":{"kms:TrailingDaysWithoutKeyUsage":"3"}},"Resource"`, 1))
		}), kind: fsmpb.Kind_KIND_KEY_USE, object: func(f *readFixture) []byte { return f.keyBytes(f.id) }, reads: "CREDENTIAL USER KEY_USE",
			set: func(f *readFixture, allowed bool) {
				if allowed {
					f.Advance(3*24*time.Hour + time.Hour)
				} else {
					f.encrypt(f.id, "x")
				}
			}, in: func(f *readFixture) (string, any) { return "DisableKey", &kmsapi.DisableKeyInput{KeyId: &f.id} }},
	}
	var cases []readCase
	for _, l := range levels {
		op := "Encrypt"
		if l.in != nil {
			op, _ = l.in(&readFixture{})
		}
		in := func(allowed bool) func(*readFixture) any {
			return func(f *readFixture) any {
				if l.kind == kindPolicy || l.kind == kindGroup { // which must exist first
					l.set(f, allowed)
					l.who(f)
				} else {
					l.who(f)
					l.set(f, allowed)
				}
				if l.in != nil {
					_, in := l.in(f)
					return in
				}
				return encrypt(f)
			}
		}
		object := onKey
		if l.noKey {
			object = ""
		}
		reads := sortedKinds(object + " " + l.reads)
		cases = append(cases, readCase{"taken away: " + l.name, op, in(true), l.kind, l.object, func(f *readFixture) { l.set(f, false) }, "ok", "AccessDeniedException", reads, false, false})
		if l.kind == fsmpb.Kind_KIND_KEY_USE {
			continue // that a key was used cannot be undone
		}
		if l.denied == "" { // an implicit denial rests on the absence of grants too
			reads = sortedKinds(onKey + " " + l.reads + " KEY_GRANTS")
		}
		cases = append(cases, readCase{"given: " + l.name, op, in(false), l.kind, l.object, func(f *readFixture) { l.set(f, true) }, "AccessDeniedException", "ok", reads, false, false})
	}
	cases = append(cases, readCase{"re-encrypted under the same key, alias moved", "ReEncrypt", func(f *readFixture) any {
		f.alice = f.newIAMUser("ann", func(u *fsmpb.User) {
			u.Inline = inline(strings.Replace(all, `"Resource"`, `"Condition":{"Bool":{"kms:ReEncryptOnSameKey":"true"}},"Resource"`, 1))
		})
		return &kmsapi.ReEncryptInput{CiphertextBlob: f.blob, DestinationKeyId: new("alias/app")}
	}, fsmpb.Kind_KIND_ALIAS, func(*readFixture) []byte { return fsm.AliasID(testAccountNumber, testRegion, "alias/app") },
		func(f *readFixture) { f.moveAlias(f.other) }, "ok", "AccessDeniedException", "KEY KEY_POLICY ALIAS CREDENTIAL USER", false, false})
	return append(cases, admissionReadCases()...)
}

// sortedKinds sorts the names of kinds by their numbers.
func sortedKinds(names string) string {
	rec := &fsmpb.Record{}
	for name := range strings.FieldsSeq(names) {
		rec.Reads = append(rec.Reads, &fsmpb.Read{Kind: fsmpb.Kind(fsmpb.Kind_value["KIND_"+name])})
	}
	return kindsOf(rec)
}

// admissionReadCases are the cases in which the identity itself ends.
func admissionReadCases() []readCase {
	encrypt := func(f *readFixture) any { return &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")} }
	session := func(f *readFixture) any {
		f.putRole("app", func(r *fsmpb.Role) { r.Inline = inline(allow("kms:*", "*")) })
		f.alice = f.newSession("app", func(*iampb.Session) {})
		return encrypt(f)
	}
	user := func(f *readFixture) any {
		f.alice = f.newIAMUser("ann", func(u *fsmpb.User) { u.Inline = inline(allow("kms:*", "*")) })
		return encrypt(f)
	}
	// of a user's own session, which the credential behind it has to outlive
	ofUser := func(f *readFixture) any {
		user(f)
		f.alice = f.userSession(f.alice)
		return encrypt(f)
	}
	role := func(*readFixture) []byte { return fsm.EntityID(testAccountNumber, "app") }
	ann := func(*readFixture) []byte { return fsm.EntityID(testAccountNumber, "ann") }
	credential := func(*readFixture) []byte { return fsm.CredentialID(testAccountNumber, "spiffe://test/user/ann") }
	revoke := func(f *readFixture) {
		c, _ := f.State().Credential(testAccountNumber, "spiffe://test/user/ann")
		c = proto.CloneOf(c)
		c.Active = false
		f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: c}})
	}
	const issuer = "issuer.test"
	provider := func(*readFixture) []byte { return fsm.OidcProviderID(testAccountNumber, issuer) }
	putProvider := func(f *readFixture, revokedBefore int64) {
		f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutOidcProvider{PutOidcProvider: &fsmpb.OidcProvider{
			Account: uint64(testAccountNumber), Url: issuer, Created: 1, RevokedBefore: revokedBefore,
		}}})
	}
	ofPod := func(f *readFixture) any {
		putProvider(f, 0)
		f.putRole("app", func(r *fsmpb.Role) { r.Inline = inline(allow("kms:*", "*")) })
		f.alice = f.newSession("app", func(s *iampb.Session) { s.Provider, s.Issuer = arnOf("oidc-provider/"+issuer), issuer })
		return encrypt(f)
	}
	entity := func(name string) *fsmpb.EntityID {
		return &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: name}
	}
	mapped := func(pattern, principal string) func(*readFixture) any {
		return func(f *readFixture) any {
			f.putUser("ann", func(u *fsmpb.User) { u.Inline = inline(allow("kms:*", "*")) })
			f.putUser("bob", func(*fsmpb.User) {})
			f.putRole("app", func(r *fsmpb.Role) {
				r.Inline, r.Trust = inline(allow("kms:*", "*")), mappingTrust("Allow", "spiffe://test/ns/shop/")
			})
			f.putMapping(pattern, principal)
			f.alice = f.certified("spiffe://test/ns/shop/web")
			return encrypt(f)
		}
	}
	mapping := func(pattern string) func(*readFixture) []byte {
		return func(*readFixture) []byte { return fsm.CertificateMappingID(testAccountNumber, pattern) }
	}
	const byMapping = fsmpb.Kind_KIND_CERTIFICATE_MAPPING
	const prefix, exact = "spiffe://test/ns/shop/*", "spiffe://test/ns/shop/web"
	const mappedUser, mappedRole = "KEY KEY_POLICY USER CERTIFICATE_MAPPING CERTIFICATE_MAPPING", "KEY KEY_POLICY ROLE CERTIFICATE_MAPPING CERTIFICATE_MAPPING"
	const byUser, byRole = "KEY KEY_POLICY CREDENTIAL USER", "KEY KEY_POLICY ROLE"
	return []readCase{
		{"sessions of an identity provider revoked", "Encrypt", ofPod, fsmpb.Kind_KIND_OIDC_PROVIDER, provider, func(f *readFixture) {
			putProvider(f, f.Clock.Now().UnixNano()+1)
		}, "ok", "ExpiredTokenException", byRole + " OIDC_PROVIDER", false, false},
		{"identity provider deleted", "Encrypt", ofPod, fsmpb.Kind_KIND_OIDC_PROVIDER, provider, func(f *readFixture) {
			f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteOidcProvider{DeleteOidcProvider: &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: issuer}}})
		}, "ok", "UnrecognizedClientException", byRole + " OIDC_PROVIDER", false, false},
		{"sessions of a role revoked", "Encrypt", session, fsmpb.Kind_KIND_ROLE, role, func(f *readFixture) {
			f.putRole("app", func(r *fsmpb.Role) { r.RevokedBefore = f.Clock.Now().UnixNano() + 1 })
		}, "ok", "ExpiredTokenException", byRole, false, false},
		{"role deleted", "Encrypt", session, fsmpb.Kind_KIND_ROLE, role, func(f *readFixture) {
			f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteRole{DeleteRole: entity("app")}})
		}, "ok", "UnrecognizedClientException", byRole, false, false},
		{"role deleted and made again", "Encrypt", session, fsmpb.Kind_KIND_ROLE, role, func(f *readFixture) {
			f.remakeRole("app", uniqueID("AROA", "next"), 2)
		}, "ok", "UnrecognizedClientException", byRole, false, false},
		{"role deleted and made again with its unique id", "Encrypt", session, fsmpb.Kind_KIND_ROLE, role, func(f *readFixture) {
			f.remakeRole("app", uniqueID("AROA", "app"), f.Clock.Now().UnixNano()+1)
		}, "ok", "ExpiredTokenException", byRole, false, false},
		{"user deleted and made again", "Encrypt", user, fsmpb.Kind_KIND_USER, ann, func(f *readFixture) {
			f.remakeUser("ann", uniqueID("AIDA", "next"), 2)
		}, "ok", "UnrecognizedClientException", byUser, false, false},
		{"user of a session deleted and made again", "Encrypt", ofUser, fsmpb.Kind_KIND_USER, ann, func(f *readFixture) {
			f.remakeUser("ann", uniqueID("AIDA", "next"), 2)
		}, "ok", "UnrecognizedClientException", byUser, false, false},
		{"user deleted and made again with its unique id", "Encrypt", user, fsmpb.Kind_KIND_USER, ann, func(f *readFixture) {
			f.remakeUser("ann", uniqueID("AIDA", "ann"), 2)
		}, "ok", "UnrecognizedClientException", byUser, false, false},
		{"user deleted", "Encrypt", user, fsmpb.Kind_KIND_USER, ann, func(f *readFixture) {
			f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: entity("ann")}})
		}, "ok", "UnrecognizedClientException", byUser, false, false},
		{"user's credential revoked", "Encrypt", user, fsmpb.Kind_KIND_CREDENTIAL, credential, revoke, "ok", "UnrecognizedClientException", byUser, false, false},
		{"certificate mapping deleted", "Encrypt", mapped(prefix, uniqueID("AIDA", "ann")), byMapping, mapping(prefix), func(f *readFixture) { f.deleteMapping(prefix) },
			"ok", "UnrecognizedClientException", mappedUser, false, false},
		{"certificate mapped elsewhere by a longer pattern", "Encrypt", mapped(prefix, uniqueID("AIDA", "ann")), byMapping, mapping(exact), func(f *readFixture) { f.putMapping(exact, uniqueID("AIDA", "bob")) },
			"ok", "AccessDeniedException", mappedUser, false, false},
		{"user of a mapped certificate deleted", "Encrypt", mapped(prefix, uniqueID("AIDA", "ann")), fsmpb.Kind_KIND_USER, ann, func(f *readFixture) {
			f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: entity("ann")}})
		}, "ok", "UnrecognizedClientException", mappedUser, false, false},
		{"trust in a certificate mapping withdrawn", "Encrypt", mapped(prefix, uniqueID("AROA", "app")), fsmpb.Kind_KIND_ROLE, role, func(f *readFixture) {
			f.putRole("app", func(r *fsmpb.Role) { r.Trust = mappingTrust("Deny", "spiffe://test/ns/shop/") })
		}, "ok", "AccessDeniedException", mappedRole, false, false},
		{"credential of a user's session revoked", "Encrypt", ofUser, fsmpb.Kind_KIND_CREDENTIAL, credential, revoke, "ok", "UnrecognizedClientException", byUser, false, false},
	}
}

// remakeRole deletes a role and makes it again, with the same policies.
func (f *readFixture) remakeRole(name, id string, created int64) {
	f.t.Helper()
	r, _ := fsm.Object[*fsmpb.Role](f.State(), fsm.EntityID(testAccountNumber, name))
	r = proto.CloneOf(r)
	r.Id, r.Created = id, created
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteRole{DeleteRole: &fsmpb.EntityID{Account: r.Account, Name: name}}})
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutRole{PutRole: r}})
}

// remakeUser deletes a user and makes it again, with the same policies.
func (f *readFixture) remakeUser(name, id string, created int64) {
	f.t.Helper()
	u, _ := fsm.Object[*fsmpb.User](f.State(), fsm.EntityID(testAccountNumber, name))
	u = proto.CloneOf(u)
	u.Id, u.Created = id, created
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: &fsmpb.EntityID{Account: u.Account, Name: name}}})
	f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: u}})
}

// userSession returns an identity with temporary credentials that a user got with another
// identity.
func (f *readFixture) userSession(of iam.Identity) iam.Identity {
	f.t.Helper()
	o, err := f.engine.vault.Current()
	if err != nil {
		f.t.Fatal(err)
	}
	c, _ := f.State().Credential(testAccountNumber, of.Credential())
	known, err := f.engine.Authenticator.Identify(o, c)
	if err != nil {
		f.t.Fatal(err)
	}
	now := f.Clock.Now()
	b, err := proto.Marshal(&iampb.Session{
		Account: uint64(testAccountNumber), AccessKey: "ASIAAAAAAAAAAAAAAAAA", Parent: c.Id, ParentProof: known.Sessions[:],
		Issued: now.UnixNano(), Expires: now.Add(time.Hour).UnixNano(),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	id, err := iam.ForwardedIdentity(of.Principal(), testAccountNumber, "ASIAAAAAAAAAAAAAAAAA", [32]byte{}, "", b, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

// A node that is behind gives neither an answer nor a denial that rests on what has changed
// since.
func TestHeldBehind(t *testing.T) {
	t.Parallel()
	for _, tt := range allReadCases() {
		if tt.mutate == nil {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newReadFixture(t, withNodes(2))
			in := tt.in(f)
			who := f.alice
			if tt.root {
				who = f.root
			}
			f.Replica("n2").FallBehind()
			tt.mutate(f)
			out, err := f.engines["n2"].Do(t.Context(), f.caller(who), operationOf(tt.op), in)
			if got := f.outcome(out, err); got != tt.after {
				t.Errorf("got outcome %s, want %s", got, tt.after)
			}
		})
	}
}

// A ciphertext that names a key which is in no account is found to be none, however many
// accounts there are. A node that has not heard of an account yet finds its keys.
func TestCiphertextAmongAccounts(t *testing.T) {
	t.Parallel()
	f := newReadFixture(t, withNodes(2))
	at := bytes.Index(f.blob, f.keyBytes(f.id)[len(f.keyBytes(f.id))-16:])
	if at < 0 {
		t.Fatal("the ciphertext does not have the id of its key")
	}
	unknown := bytes.Clone(f.blob)
	unknown[at] ^= 1
	n2 := f.Replica("n2")
	decrypt := func(blob []byte) string {
		return f.outcome(f.engines["n2"].Do(t.Context(), f.caller(f.alice), OperationNamed(KMS, "Decrypt"), &kmsapi.DecryptInput{CiphertextBlob: blob}))
	}
	n2.FallBehind()
	for i := range 150 {
		f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: &fsmpb.Account{Account: uint64(900000000000 + i), Name: "a", Created: 1}}})
	}
	other := fsm.Account(900000000149)
	k := proto.CloneOf(f.storedKey(f.id))
	k.Account, k.Id = uint64(other), bytes.Clone(unknown[at:at+16])
	k.Materials = nil
	f.Change(putKeyChange(k), &fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{
		Account: uint64(other), Key: k.Id, Region: k.Region, Document: policyDocument(statement("Deny", "*", "kms:*")),
	}}})
	if got := decrypt(unknown); got != "AccessDeniedException" {
		t.Errorf("of a key of a new account: got outcome %s, want AccessDeniedException", got)
	}
	unknown[at] ^= 3
	if got := decrypt(unknown); got != "InvalidCiphertextException" {
		t.Errorf("of no key: got outcome %s, want InvalidCiphertextException", got)
	}
	if f.BrokenRule != "" {
		t.Errorf("a record broke the rule %q", f.BrokenRule)
	}
}

// A decision by the time is not accepted at another time, and neither is one by the number of
// days since a key was used. Without the interval in the record, the outdated answer is given.
func TestTimeInReadSet(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name, op, condition string
		wait, pass          time.Duration // before the request, and between its evaluation and commit
		before, after       string
	}{
		{"time window ends", "Encrypt", `{"DateLessThan":{"aws:CurrentTime":"$T"}}`, 0, 10 * time.Second, "ok", "AccessDeniedException"},
		{"time window begins", "Encrypt", `{"DateGreaterThanEquals":{"aws:EpochTime":"$E"}}`, 0, 10 * time.Second, "AccessDeniedException", "ok"},
		{"second passes", "Encrypt", `{"StringEquals":{"aws:CurrentTime":"$T"}}`, 10 * time.Second, time.Second, "ok", "AccessDeniedException"},
		{"key becomes unused", "DisableKey", `{"NumericGreaterThanEquals":{"kms:TrailingDaysWithoutKeyUsage":"1"}}`, day - time.Second, time.Second, "AccessDeniedException", "ok"},
		{"key stops being in use", "DisableKey", `{"NumericEquals":{"kms:TrailingDaysWithoutKeyUsage":"0"}}`, day - time.Second, time.Second, "ok", "AccessDeniedException"},
		{"another day passes", "DisableKey", `{"NumericLessThan":{"kms:TrailingDaysWithoutKeyUsage":"4"}}`, 4*day - time.Second, time.Second, "ok", "AccessDeniedException"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			run := func(pass, strip bool) string {
				f := newReadFixture(t)
				at := f.Clock.Now().Add(10 * time.Second).Truncate(time.Second)
				if strings.Contains(tt.condition, "Trailing") {
					f.encrypt(f.id, "x")
				} else {
					f.Clock.Advance(at.Add(-10 * time.Second).Sub(f.Clock.Now()))
				}
				condition := strings.NewReplacer("$T", at.UTC().Format(time.RFC3339), "$E", at.UTC().Format("2006-01-02T15:04:05Z")).Replace(tt.condition)
				ann := f.newIAMUser("ann", func(u *fsmpb.User) {
					u.Inline = inline(strings.Replace(allow("kms:*", "*"), `"Resource"`, `"Condition":`+condition+`,"Resource"`, 1))
				})
				f.Advance(tt.wait)
				first := true
				f.Replica("n1").BeforeCommit = func(rec *fsmpb.Record) {
					if !first || !pass {
						return
					}
					first = false
					if strip {
						rec.NotBefore, rec.NotAfter = 0, 0
					}
					f.Advance(tt.pass)
				}
				var in any = &kmsapi.EncryptInput{KeyId: &f.id, Plaintext: []byte("x")}
				if tt.op == "DisableKey" {
					in = &kmsapi.DisableKeyInput{KeyId: &f.id}
				}
				return f.outcome(f.engine.Do(t.Context(), f.caller(ann), OperationNamed(KMS, tt.op), in))
			}
			if got := run(false, false); got != tt.before {
				t.Fatalf("before: got outcome %s, want %s", got, tt.before)
			}
			if got := run(true, false); got != tt.after {
				t.Errorf("after: got outcome %s, want %s", got, tt.after)
			}
			if got := run(true, true); got != tt.before {
				t.Errorf("without the interval in the record: got outcome %s, want %s", got, tt.before)
			}
		})
	}
}

// A key that is in use all the time does not keep a request from being decided by its last use:
// once it was used within a day, further uses change nothing.
func TestUsesCauseNoConflicts(t *testing.T) {
	t.Parallel()
	f := newReadFixture(t)
	ann := f.newIAMUser("ann", func(u *fsmpb.User) {
		u.Inline = inline(allow("kms:*", "*"), strings.Replace(deny("kms:DisableKey", "*"), `"Resource"`, `"Condition":{"NumericLessThanEquals":{"kms:TrailingDaysWithoutKeyUsage":"30"}},"Resource"`, 1))
	})
	f.Advance(40 * 24 * time.Hour)
	for _, want := range []int64{2, 1} { // the first use conflicts, and the next ones do not
		uses := int64(0)
		n1 := f.Replica("n1")
		n1.BeforeCommit = func(rec *fsmpb.Record) {
			if len(rec.Uses) == 0 {
				uses++
				f.encrypt(f.id, "x")
			}
		}
		was := n1.Proposals.Load()
		_, err := f.engine.Do(t.Context(), f.caller(ann), OperationNamed(KMS, "DisableKey"), &kmsapi.DisableKeyInput{KeyId: &f.id})
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
		if got := n1.Proposals.Load() - was - uses; got != want {
			t.Errorf("the request was proposed %d times, want %d", got, want)
		}
		n1.BeforeCommit = nil
	}
}
