package keyengine

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/issuertest"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// The authorization matrix: each operation of each service, asked for by every kind of caller.
// The operations are those of the tables, and each needs a row.
//
// What an operation needs is written down in its row, action and resource, and the matrix takes
// it away in each way that there is: no permission at all, all but that one, a Deny, a boundary
// or a session policy without it, and so on. So a check that is missing or is made for another
// resource fails, whichever it is.

// A need is a permission that an operation needs.
type need struct{ action, resource string }

// A matrixRow says how the matrix asks for an operation.
type matrixRow struct {
	name string // of the case, where the operation has several
	// ask prepares a request that succeeds for a caller with all permissions, once, and returns
	// it with the permissions that it needs. A request that is refused leaves it as it is.
	ask func() (in any, needs []need)
	// free says why the operation needs no permission; "" if it needs some.
	free string
	// want is the outcome with the permissions if it cannot succeed.
	want *kmsapi.Error
}

// A matrix is a cluster with the callers of the authorization matrix.
type matrix struct {
	*testCluster
	rows map[string][]matrixRow

	caller iam.Identity // of a user without groups; see may
	// gone are identities that were proved, had all permissions, and have ended since.
	gone map[string]iam.Identity
	// admins is a role of the cluster's account with all permissions.
	admins   string
	token    iam.Identity // of GetSessionToken, for a user with all permissions
	outsider iam.Identity // a user of another account with all permissions

	serial int // of objects; see putObjects

	// changed are the accounts whose objects the newest record changes.
	changed map[uint64]bool
}

const (
	matrixUser     = "caller"
	matrixBoundary = "boundary"
)

var everything = allow("*", "*")

// newMatrix returns a matrix without rows.
func newMatrix(t *testing.T) *matrix {
	m := &matrix{testCluster: newTestCluster(t, withRegions(threeRegions()...)), rows: make(map[string][]matrixRow), gone: make(map[string]iam.Identity)}
	m.allowManyRefusals()
	m.putAccount(otherAccount)
	m.outsider = m.storeUser(otherAccount, "admin", policyDocument(everything))
	m.caller = m.newIAMUser(matrixUser, func(*fsmpb.User) {})
	m.admins = m.storeRole(testAccountNumber, "admins", trusts(testAccount, ""), policyDocument(everything))

	m.gone["nobody"] = iam.Identity{}
	inactive := m.newPerson("inactive", everything)
	m.gone["an inactive access key"], m.gone["a session of an inactive access key"] = inactive.identity, m.sessionOf(inactive.identity)
	must[request.None](m.testCluster, "UpdateAccessKey", &iamapi.UpdateAccessKeyInput{UserName: &inactive.name, AccessKeyId: &inactive.key.AccessKeyID, Status: new("Inactive")})
	deleted := m.newPerson("deleted-key", everything)
	m.gone["a deleted access key"] = deleted.identity
	must[request.None](m.testCluster, "DeleteAccessKey", &iamapi.DeleteAccessKeyInput{UserName: &deleted.name, AccessKeyId: &deleted.key.AccessKeyID})
	// Its credential is left, as nothing deletes the certificates of a user with it.
	user := m.newIAMUser("deleted", func(u *fsmpb.User) { u.Inline = inline(everything) })
	m.gone["a deleted user"], m.gone["a session of a deleted user"] = user, m.sessionOf(user)
	m.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: "deleted"}}})

	m.newIAMUser("unmapped", func(u *fsmpb.User) { u.Inline = inline(everything) })
	m.putMapping("spiffe://test/unmapped", uniqueID("AIDA", "unmapped"))
	m.gone["a certificate whose mapping was deleted"] = m.certified("spiffe://test/unmapped")
	m.deleteMapping("spiffe://test/unmapped")

	admin := m.newPerson("admin", everything)
	m.token = m.sessionOf(admin.identity)
	m.gone["a break-glass access key that has ended"] = m.breakGlassIdentity(time.Minute)
	short := assumeInput(m.admins)
	short.DurationSeconds = new(int32(900))
	m.gone["an expired session"] = m.assume(admin.identity, short)
	m.Advance(15 * time.Minute)
	revoked := m.storeRole(testAccountNumber, "revoked", trusts(testAccount, ""), policyDocument(everything))
	m.gone["a revoked session"] = m.assume(admin.identity, assumeInput(revoked))
	must[request.None](m.testCluster, "RevokeRoleSessions", &iamapi.RevokeRoleSessionsInput{RoleName: new("revoked")})
	former := m.storeRole(testAccountNumber, "former", trusts(testAccount, ""), policyDocument(everything))
	m.gone["a session of a deleted role"] = m.assume(admin.identity, assumeInput(former))
	m.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteRole{DeleteRole: &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: "former"}}})

	m.Replica("n1").BeforeCommit = func(r *fsmpb.Record) {
		m.changed = make(map[uint64]bool)
		for _, c := range r.Changes {
			m.changed[accountOf(c)] = true
		}
	}
	return m
}

// accountOf returns the account of the object of a change.
func accountOf(c *fsmpb.Change) (account uint64) {
	c.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if of := f.Message().Fields().ByName("account"); of != nil {
			account = v.Message().Get(of).Uint()
		}
		return true
	})
	return account
}

// sessionOf returns temporary credentials of GetSessionToken.
func (m *matrix) sessionOf(id iam.Identity) iam.Identity {
	m.t.Helper()
	return m.withTemporary(m.engine, m.sessionToken(id))
}

// row adds a row for an operation.
func (m *matrix) row(operation string, r matrixRow) {
	m.rows[operation] = append(m.rows[operation], r)
}

// may gives the caller a policy with the given statements, and a permissions boundary unless
// it is "".
func (m *matrix) may(boundary string, statements ...string) iam.Identity {
	m.t.Helper()
	m.putUser(matrixUser, func(u *fsmpb.User) {
		u.Boundary, u.Inline = boundary, nil
		if len(statements) > 0 {
			u.Inline = inline(statements...)
		}
	})
	return m.caller
}

// bound sets the statements of the boundary that may can give the caller, and returns its ARN.
func (m *matrix) bound(statements ...string) string {
	m.t.Helper()
	a := uint64(testAccountNumber)
	was, _ := fsm.Object[*fsmpb.Policy](m.State(), fsm.EntityID(testAccountNumber, matrixBoundary))
	n := was.GetNewest() + 1
	p := &fsmpb.Policy{Account: a, Name: matrixBoundary, Path: "/", Id: uniqueID("ANPA", matrixBoundary), Created: 1, DefaultVersion: n, Newest: n, Versions: []uint32{n}}
	changes := []*fsmpb.Change{
		{Change: &fsmpb.Change_PutPolicy{PutPolicy: p}},
		{Change: &fsmpb.Change_PutPolicyVersion{PutPolicyVersion: &fsmpb.PolicyVersion{
			Account: a, Policy: p.Name, Number: n, Document: policyDocument(statements...), Created: 1,
		}}},
	}
	if was != nil {
		changes = append(changes, &fsmpb.Change{Change: &fsmpb.Change_DeletePolicyVersion{DeletePolicyVersion: &fsmpb.PolicyVersionID{
			Account: a, Policy: p.Name, Number: was.DefaultVersion,
		}}})
	}
	m.Change(changes...)
	return managedARN(p.Name)
}

// session returns a new session of the admins with a session policy.
func (m *matrix) session(statements ...string) iam.Identity {
	m.t.Helper()
	return m.newSession("admins", func(s *iampb.Session) {
		r, _ := fsm.Object[*fsmpb.Role](m.State(), fsm.EntityID(testAccountNumber, "admins"))
		s.Role, s.Policy = r.Id, policyDocument(statements...)
	})
}

// only returns the statements that allow what is needed and nothing else.
func only(needs []need) (list []string) {
	for _, n := range needs {
		list = append(list, allow(n.action, n.resource))
	}
	return list
}

// allBut returns the statements that allow everything but what is needed.
func allBut(n need) []string {
	return []string{
		`{"Effect":"Allow","NotAction":"` + n.action + `","Resource":"*"}`,
		`{"Effect":"Allow","Action":"` + n.action + `","NotResource":"` + n.resource + `"}`,
	}
}

func (m *matrix) do(t *testing.T, op *Operation, id iam.Identity, in any) (any, error) {
	t.Helper()
	m.changed = nil
	out, err := m.engine.Do(t.Context(), m.testCluster.caller(id), op, in)
	if err != nil && out != nil {
		t.Errorf("it failed and returned %v", out)
	}
	return out, err
}

// denied checks that a caller is denied a request, and that the record says so.
func (m *matrix) denied(t *testing.T, op *Operation, in any, id iam.Identity, who string) {
	t.Helper()
	if _, err := m.do(t, op, id, in); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("%s: got error %v, want AccessDeniedException", who, err)
	}
	if len(m.changed) > 0 {
		t.Errorf("%s: the record has changes", who)
	}
	if rec := m.lastRecord(); rec.EventName != op.Name || rec.EventSource != string(op.Service)+".amazonaws.com" || rec.ErrorCode != string(kmsapi.ErrAccessDenied.Code) {
		t.Errorf("%s: the record says %s of %s, %q", who, rec.EventName, rec.EventSource, rec.ErrorCode)
	}
}

// allowed checks that a caller is allowed a new request.
func (m *matrix) allowed(t *testing.T, op *Operation, r *matrixRow, who string, as func(needs []need) iam.Identity) {
	t.Helper()
	in, needs := r.ask()
	_, err := m.do(t, op, as(needs), in)
	if r.want == nil && err != nil || r.want != nil && !errors.Is(err, r.want) {
		t.Errorf("%s: got error %v, want %v", who, err, r.want)
	}
}

func TestAuthorizationMatrix(t *testing.T) {
	t.Parallel()
	for service, addRows := range map[Service]func(*matrix){KMS: (*matrix).addKMS, IAM: (*matrix).addIAM, STS: (*matrix).addSTS, CloudTrail: (*matrix).addCloudTrail} {
		t.Run(string(service), func(t *testing.T) {
			t.Parallel()
			m := newMatrix(t)
			addRows(m)
			for _, op := range OperationsOf(service) {
				if op.Unsigned {
					continue // its callers are not those of the matrix; see TestUnsignedMatrix
				}
				rows := m.rows[op.Name]
				delete(m.rows, op.Name)
				if len(rows) == 0 {
					t.Errorf("%s has no row in the authorization matrix", op.Name)
				}
				for i := range rows {
					t.Run(strings.TrimSpace(op.Name+" "+rows[i].name), func(t *testing.T) {
						m.t = t
						m.cells(t, op, &rows[i])
					})
				}
			}
			for name := range m.rows {
				t.Errorf("%s has a row and is no operation", name)
			}
		})
	}
}

// The operations without a signature, whose caller is whoever the token of the input is about.
func TestUnsignedMatrix(t *testing.T) {
	t.Parallel()
	m, i := newMatrix(t), issuertest.New(t)
	m.allowIssuers(i)
	m.register(i, i.Keys(), "conclave")
	for _, op := range Operations() {
		if op.Unsigned && op.Name != "AssumeRoleWithWebIdentity" {
			t.Errorf("%s has no row in the authorization matrix", op.Name)
		}
	}
	web := func(action string) string {
		return `{"Effect":"Allow","Principal":{"Federated":"` + providerARN(i) + `"},"Action":"` + action + `"}`
	}
	const action = "sts:AssumeRoleWithWebIdentity"
	claims := i.Claims(m.Clock.Now(), serviceAccount, "conclave")
	good, now := i.Sign(claims), m.Clock.Now()
	for _, tt := range []struct {
		who, role, token string
		want             *kmsapi.Error // nil for success
		recorded         bool
	}{
		{"no token", web(action), "x.y.z", iamapi.ErrInvalidIdentityToken, false},
		{"a token of another issuer", web(action), issuertest.New(t).Sign(claims), iamapi.ErrInvalidIdentityToken, false},
		{"an expired token", web(action), i.Sign(claims.With(issuertest.Claims{"exp": now.Add(-time.Hour).Unix()})), kmsapi.ErrExpiredToken, false},
		{"another audience", web(action), i.Sign(claims.With(issuertest.Claims{"aud": "other"})), iamapi.ErrInvalidIdentityToken, false},
		{"no permission", trust(`{"AWS":"` + testAccount + `"}`), good, kmsapi.ErrAccessDenied, true},
		{"all but the permission", web("sts:Tag*"), good, kmsapi.ErrAccessDenied, true},
		{"a deny", web(action) + `,{"Effect":"Deny","Principal":"*","Action":"` + action + `"}`, good, kmsapi.ErrAccessDenied, true},
		{"the permission", web(action), good, nil, true},
	} {
		t.Run(tt.who, func(t *testing.T) {
			if !strings.Contains(tt.role, "Version") {
				tt.role = policyDocument(tt.role)
			}
			role := m.storeRole(testAccountNumber, "pod", tt.role, policyDocument(everything))
			records := m.Audit.Size()
			_, err := m.web(m.engine, role, tt.token)
			if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
			if got := m.Audit.Size() > records; got != tt.recorded {
				t.Errorf("the request is recorded: %v", got)
			}
		})
	}
	// The issuer is registered in one account, and vouches for nobody in another.
	theirs := m.storeRole(otherAccount, "pod", policyDocument(web(action)), policyDocument(everything))
	if _, err := m.web(m.engine, theirs, good); !errors.Is(err, iamapi.ErrInvalidIdentityToken) {
		t.Errorf("for a role of another account: got error %v", err)
	}
}

// cells asks for an operation as each of the callers.
func (m *matrix) cells(t *testing.T, op *Operation, r *matrixRow) {
	in, needs := r.ask()
	if (len(needs) == 0) != (r.free != "") {
		t.Fatalf("the row has the needs %v, and is free because %q", needs, r.free)
	}
	for _, who := range slices.Sorted(maps.Keys(m.gone)) {
		records := m.Audit.Size()
		_, err := m.do(t, op, m.gone[who], in)
		if !errors.Is(err, iam.ErrUnrecognized) && !errors.Is(err, iam.ErrSessionEnded) {
			t.Errorf("%s: got error %v, want one of a caller who is not known", who, err)
		}
		if m.changed != nil || m.Audit.Size() != records {
			t.Errorf("%s: the request has a record", who)
		}
	}
	m.fromOutside(t, op, r, in)
	defer m.byBreakGlass(t, op, r)
	if r.free != "" {
		m.allowed(t, op, r, "no policy", func([]need) iam.Identity { return m.may("") })
		m.allowed(t, op, r, "a deny", func([]need) iam.Identity { return m.may("", deny("*", "*")) })
		return
	}

	m.denied(t, op, in, m.may(""), "no policy")
	for _, n := range needs {
		but := allBut(n)
		what := n.action + " on " + n.resource
		m.denied(t, op, in, m.may("", but...), "all but "+what)
		m.denied(t, op, in, m.may("", everything, deny(n.action, n.resource)), "a deny of "+what)
		m.denied(t, op, in, m.session(but...), "a session policy without "+what)
		m.denied(t, op, in, m.may(m.bound(but...), everything), "a boundary without "+what)
	}
	m.allowed(t, op, r, "what it needs", func(needs []need) iam.Identity { return m.may("", only(needs)...) })
	m.allowed(t, op, r, "what it needs, within a boundary", func(needs []need) iam.Identity {
		return m.may(m.bound(only(needs)...), everything)
	})
	m.allowed(t, op, r, "a session with what it needs", func(needs []need) iam.Identity { return m.session(only(needs)...) })
	if op.Service == KMS || op.Service == CloudTrail || op.Name == "AssumeRole" {
		m.allowed(t, op, r, "a session of a user", func([]need) iam.Identity { return m.token })
	} else {
		m.denied(t, op, in, m.token, "a session of a user")
	}
	m.byGrant(t, op, r, needs)
	m.byKeyPolicy(t, op, r, in, needs)
}

// fromOutside asks as an administrator of another account, to whom the resources of this one
// are closed. What it may do, it does in its own account.
func (m *matrix) fromOutside(t *testing.T, op *Operation, r *matrixRow, in any) {
	t.Helper()
	in, names := m.byARN(in)
	out, err := m.do(t, op, m.outsider, in)
	switch {
	case names && err == nil:
		t.Error("an administrator of another account may do it with what belongs to this one")
	case m.changed[uint64(testAccountNumber)]:
		t.Error("an administrator of another account changes something in this one")
	}
	text, jerr := json.Marshal(out)
	if jerr != nil {
		t.Fatal(jerr)
	}
	if strings.Contains(string(text), testAccount) && op.Name != "GetAccessKeyInfo" { // the id tells the account to everybody
		t.Errorf("an administrator of another account gets an answer about this one: %s", text)
	}
}

// byARN returns an input in which keys are named by ARN, with which they can be named from
// another account. names says whether it names something of the cluster's account.
func (m *matrix) byARN(in any) (out any, names bool) {
	v := reflect.New(reflect.TypeOf(in).Elem())
	v.Elem().Set(reflect.ValueOf(in).Elem())
	for i := range v.Elem().NumField() {
		p, ok := v.Elem().Field(i).Interface().(*string)
		if !ok || p == nil {
			continue
		}
		if id, multi, ok := request.ParseKeyID(*p); ok {
			c, _ := m.State().Cluster()
			p = new(request.KeyARN(c, testAccountNumber, testRegion, request.FormatKeyID(id, multi)))
			v.Elem().Field(i).Set(reflect.ValueOf(p))
		}
		names = names || strings.HasPrefix(*p, "arn:") && strings.Contains(*p, ":"+testAccount+":")
	}
	return v.Interface(), names
}

// keysOf returns the keys that permissions are needed for, by their ids, and whether there is
// nothing else.
func (m *matrix) keysOf(needs []need) (ids []string, nothingElse bool) {
	nothingElse = true
	for _, n := range needs {
		arn, ok := strings.CutPrefix(n.resource, "arn:aws:kms:"+testRegion+":"+testAccount+":key/")
		switch {
		case !ok:
			nothingElse = false
		case !slices.Contains(ids, arn):
			ids = append(ids, arn)
		}
	}
	return ids, nothingElse
}

// byGrant asks as somebody who has only grants: one of the operation, and one of all others
// that the key takes. An operation that no grant can have is denied in any case.
func (m *matrix) byGrant(t *testing.T, op *Operation, r *matrixRow, needs []need) {
	t.Helper()
	if _, keys := m.keysOf(needs); !keys {
		return
	}
	grant := func(in any, needs []need, wanted func(operation, needed string) bool) {
		for _, n := range needs {
			ids, _ := m.keysOf([]need{n})
			operations := slices.DeleteFunc(ops.GrantOperations(m.storedKey(ids[0])), func(o string) bool { return !wanted(o, strings.TrimPrefix(n.action, "kms:")) })
			if g, ok := in.(*kmsapi.CreateGrantInput); ok && slices.Contains(operations, "CreateGrant") {
				operations = append(operations, g.Operations...) // a grant gives on only what it has
			}
			if len(operations) > 0 && !slices.Equal(operations, []string{"CreateGrant"}) {
				pending := m.storedKey(ids[0]).State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION
				if pending { // there are no new grants on such a key
					must[kmsapi.CancelKeyDeletionOutput](m.testCluster, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &ids[0]})
					must[request.None](m.testCluster, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &ids[0]})
				}
				m.createGrant(ids[0], m.caller.Principal().String(), operations...)
				if pending {
					m.scheduleDeletionIn(testRegion, ids[0])
				}
			}
		}
	}
	in, needs := r.ask()
	grant(in, needs, func(o, needed string) bool { return o != needed })
	m.denied(t, op, in, m.may(""), "grants of all other operations")
	grantable := !slices.ContainsFunc(needs, func(n need) bool {
		return !kmsapi.EnumOf("GrantOperation").Has(strings.TrimPrefix(n.action, "kms:"))
	})
	// A grant of RetireGrant is for the grant itself; see TestRetireGrant.
	if !grantable || op.Name == "RetireGrant" {
		return
	}
	in, needs = r.ask()
	grant(in, needs, func(o, needed string) bool { return o == needed })
	m.denied(t, op, in, m.may("", deny("kms:*", "*")), "a grant, and a deny")
	if _, err := m.do(t, op, m.may(""), in); err != nil {
		t.Errorf("a grant of the operation: %v", err)
	}
}

// byKeyPolicy asks as somebody about whom only the key policies say something: in the account,
// and in another one, whose administrators may then use the operations that work across
// accounts.
func (m *matrix) byKeyPolicy(t *testing.T, op *Operation, r *matrixRow, in any, needs []need) {
	t.Helper()
	who := m.caller.Principal().String()
	set := func(needs []need, statements ...string) {
		ids, _ := m.keysOf(needs)
		for _, id := range ids {
			m.setPolicy(id, policyDocument(append(statements, rootStatement)...))
		}
	}
	ids, keys := m.keysOf(needs)
	if len(ids) == 0 {
		return
	}
	for _, n := range needs {
		if ids, _ := m.keysOf([]need{n}); len(ids) == 0 {
			continue
		}
		if op.Name != "RetireGrant" { // which key policies have no say in
			set([]need{n}, statement("Deny", who, n.action))
			m.denied(t, op, in, m.may("", everything), "a deny in the policy of "+n.resource)
		}
		set([]need{n})
	}
	if !keys {
		return
	}
	byPolicy := func(principal string) any {
		in, needs := r.ask()
		set(needs, statement("Allow", principal, "kms:*"))
		if p, ok := in.(*kmsapi.PutKeyPolicyInput); ok {
			p.BypassPolicyLockoutSafetyCheck = new(true) // the new policy does not have the principal
		}
		return in
	}
	defer set(needs)
	in = byPolicy(who)
	if _, err := m.do(t, op, m.may(""), in); (err == nil) != (op.Name != "RetireGrant") {
		t.Errorf("an allow in the key policy: got error %v", err)
	}
	in, _ = m.byARN(byPolicy("arn:aws:iam::" + otherAccount.String() + ":root"))
	_, err := m.do(t, op, m.outsider, in)
	if works := op.CrossAccount && op.Name != "RetireGrant"; (err == nil) != works || !works && !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("an administrator of another account whom the key policy lets in: got error %v; works across accounts: %v", err, works)
	}
}

// byBreakGlass asks with a break-glass access key of the account's root user. It recovers access:
// it may do everything in IAM, and find keys and replace their policies, whatever these say. It
// does nothing else, not even what their policies allow.
func (m *matrix) byBreakGlass(t *testing.T, op *Operation, r *matrixRow) {
	t.Helper()
	in, needs := r.ask()
	id := m.breakGlassIdentity(time.Hour)
	closed := func(needs []need) {
		ids, _ := m.keysOf(needs)
		for _, key := range ids {
			m.setPolicy(key, policyDocument(`{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*"}`))
		}
	}
	switch op.Name {
	case "DescribeKey", "GetKeyPolicy", "ListAliases", "ListKeyPolicies", "ListKeys", "PutKeyPolicy", "GetCallerIdentity":
		m.allowed(t, op, r, "break-glass, by keys that are closed to everybody", func(needs []need) iam.Identity {
			closed(needs)
			return id
		})
	default:
		if op.Service == IAM {
			m.allowed(t, op, r, "break-glass", func([]need) iam.Identity { return id })
		} else {
			m.denied(t, op, in, id, "break-glass")
		}
	}
	ids, _ := m.keysOf(needs)
	for _, key := range ids {
		m.setPolicy(key, policyDocument(rootStatement))
	}
}

// breakGlassIdentity returns the root user by a new break-glass access key.
func (c *testCluster) breakGlassIdentity(life time.Duration) iam.Identity {
	c.t.Helper()
	o, err := c.engine.vault.Current()
	if err != nil {
		c.t.Fatal(err)
	}
	now := c.Clock.Now()
	made, secret, err := iam.NewAccessKey(c.engine.vault.Arena(), o, testAccountNumber, "arn:aws:iam::"+testAccount+":root", now.UnixNano(), now.Add(life).UnixNano())
	if err != nil {
		c.t.Fatal(err)
	}
	defer secret.Destroy()
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: made}})
	key := &ceremony.InitResult{AccessKeyID: made.Id}
	if err := secret.With(func(b []byte) error { key.SecretAccessKey = string(b); return nil }); err != nil {
		c.t.Fatal(err)
	}
	id, err := c.engine.AuthenticateSigV4(c.t.Context(), enginetest.SigV4Proof(key, testRegion, "text"))
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// arnOfKey returns the ARN of a key in a Region.
func arnOfKey(region, id string) string {
	return fmt.Sprintf("arn:aws:kms:%s:%s:key/%s", region, testAccount, id)
}
