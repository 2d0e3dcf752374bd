package keyengine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func TestGetCallerIdentity(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.putAccount(otherAccount)
	denied := identityPolicy("Deny", "*", "*")
	alice := c.storeUser(testAccountNumber, "alice", denied)
	role := c.storeRole(otherAccount, "app", trusts(aliceARN, ""), denied)
	c.editRole(otherAccount, "app", func(r *fsmpb.Role) {})
	bob := c.storeUser(testAccountNumber, "bob", identityPolicy("Allow", "sts:*", "*"))
	c.editTrust(otherAccount, "app", trusts(bobARN, ""))
	for name, tt := range map[string]struct {
		id                   iam.Identity
		arn, userID, account string
	}{
		"root":  {c.root, "arn:aws:iam::111122223333:root", "111122223333", "111122223333"},
		"user":  {alice, aliceARN, uniqueID("AIDA", testAccountNumber.String()+"alice"), "111122223333"},
		"other": {c.rootOf(otherAccount), "arn:aws:iam::444455556666:root", "444455556666", "444455556666"},
		"session": {c.assume(bob, assumeInput(role)), "arn:aws:sts::444455556666:assumed-role/app/test",
			uniqueID("AROA", otherAccount.String()+"app") + ":test", "444455556666"},
	} {
		out, err := callAs[iamapi.GetCallerIdentityOutput](c, c.engine, tt.id, "GetCallerIdentity", &iamapi.GetCallerIdentityInput{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if *out.Arn != tt.arn || *out.UserId != tt.userID || *out.Account != tt.account {
			t.Errorf("%s: got %s, %s, %s", name, *out.Arn, *out.UserId, *out.Account)
		}
	}
}

// Who may assume a role is decided by its trust policy, and by the caller's policies where
// the trust policy names the account or the role is in another account.
func TestAssumeRoleTrust(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	c.putAccount(otherAccount)
	allow, deny := identityPolicy("Allow", "sts:AssumeRole", "*"), identityPolicy("Deny", "sts:AssumeRole", "*")
	const account = "arn:aws:iam::111122223333:root"
	n := 0
	for _, tt := range []struct {
		name      string
		elsewhere bool   // the role is in another account
		own       string // policy of the user
		trust     string
		allowed   bool
	}{
		{"named", false, "", trusts("USER", ""), true},
		{"named and denied", false, deny, trusts("USER", ""), false},
		{"account without own policy", false, "", trusts(account, ""), false},
		{"account with own policy", false, allow, trusts(account, ""), true},
		{"not named", false, allow, trusts("arn:aws:iam::444455556666:root", ""), false},
		{"everybody", false, "", trusts("*", ""), true},
		{"elsewhere, named without own policy", true, "", trusts("USER", ""), false},
		{"elsewhere, named with own policy", true, allow, trusts("USER", ""), true},
		{"elsewhere, account with own policy", true, allow, trusts(account, ""), true},
		{"elsewhere, not named", true, allow, trusts("arn:aws:iam::444455556666:root", ""), false},
		{"elsewhere, everybody without own policy", true, "", trusts("*", ""), false},
		{"external id", false, "", trusts("USER", `{"StringEquals":{"sts:ExternalId":"right"}}`), false},
		{"name", false, "", trusts("USER", `{"StringEquals":{"sts:RoleSessionName":"test"}}`), true},
		{"other name", false, "", trusts("USER", `{"StringEquals":{"sts:RoleSessionName":"best"}}`), false},
		{"username", false, "", trusts("*", `{"StringLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/user*"}}`), true},
	} {
		n++
		name := "user" + string(rune('a'+n))
		user := c.storeUser(testAccountNumber, name, tt.own)
		in := testAccountNumber
		if tt.elsewhere {
			in = otherAccount
		}
		role := c.storeRole(in, "role"+name, strings.ReplaceAll(tt.trust, "USER", "arn:aws:iam::111122223333:user/"+name), "")
		out, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, user, "AssumeRole", assumeInput(role))
		if tt.allowed {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if want := "arn:aws:sts::" + in.String() + ":assumed-role/role" + name + "/test"; *out.AssumedRoleUser.Arn != want {
				t.Errorf("%s: got %s, want %s", tt.name, *out.AssumedRoleUser.Arn, want)
			}
			continue
		}
		wantError(t, err, kmsapi.ErrAccessDenied, "User: arn:aws:iam::111122223333:user/"+name+" is not authorized to perform: sts:AssumeRole on resource: "+role)
		if rec := c.lastRecord(); rec.EventName != "AssumeRole" || rec.ErrorCode != "AccessDeniedException" {
			t.Errorf("%s: the record is %s %s", tt.name, rec.EventName, rec.ErrorCode)
		}
	}
}

// Nobody can tell a role that does not exist from one that may not be assumed.
func TestAbsentRole(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	alice := c.storeUser(testAccountNumber, "alice", identityPolicy("Allow", "*", "*"))
	c.storeRole(testAccountNumber, "closed", trusts(bobARN, ""), "")
	for _, role := range []string{
		"arn:aws:iam::111122223333:role/closed", "arn:aws:iam::111122223333:role/absent", "arn:aws:iam::111122223333:role/path/closed",
		"arn:aws:iam::999999999999:role/absent", "arn:aws-cn:iam::111122223333:role/closed",
	} {
		in := assumeInput(role)
		in.DurationSeconds = new(int32(43200)) // more than the role allows
		_, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, alice, "AssumeRole", in)
		wantError(t, err, kmsapi.ErrAccessDenied, "User: "+aliceARN+" is not authorized to perform: sts:AssumeRole on resource: "+role)
	}
	_, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, alice, "AssumeRole", assumeInput(aliceARN))
	wantError(t, err, kmsapi.ErrValidation, aliceARN+" is invalid")
	_, err = call[iamapi.AssumeRoleOutput](c, "AssumeRole", assumeInput("arn:aws:iam::111122223333:role/closed"))
	wantError(t, err, kmsapi.ErrAccessDenied, "Roles may not be assumed by root accounts.")
}

func TestAssumeRoleExternalID(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, `{"StringEquals":{"sts:ExternalId":"right"}}`), "")
	in := assumeInput(role)
	in.ExternalId = new("wrong")
	if _, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, alice, "AssumeRole", in); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("with another external id: %v", err)
	}
	in.ExternalId = new("right")
	c.assumed(alice, in)
}

// A session lasts as long as its role allows, and at most an hour if it was opened with the
// session of a role.
func TestSessionDurations(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	next := c.storeRole(testAccountNumber, "next", trusts("arn:aws:iam::111122223333:role/app", ""), "")
	session := c.assume(alice, assumeInput(role))
	for _, tt := range []struct {
		id     iam.Identity
		role   string
		ask    int32
		want   time.Duration
		refuse string
	}{
		{alice, role, 0, time.Hour, ""},
		{alice, role, 900, 15 * time.Minute, ""},
		{alice, role, 7200, 2 * time.Hour, ""},
		{alice, role, 7201, 0, "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."},
		{session, next, 3600, time.Hour, ""},
		{session, next, 3601, 0, "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining."},
		{alice, role, 899, 0, "1 validation error detected: Value '899' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900"},
	} {
		in := assumeInput(tt.role)
		if tt.ask != 0 {
			in.DurationSeconds = &tt.ask
		}
		out, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, tt.id, "AssumeRole", in)
		if tt.refuse != "" {
			wantError(t, err, kmsapi.ErrValidation, tt.refuse)
			continue
		}
		if err != nil {
			t.Errorf("%d s: %v", tt.ask, err)
			continue
		}
		if got := out.Credentials.Expiration.Sub(c.Clock.Now()); got > tt.want || got <= tt.want-time.Second {
			t.Errorf("%d s: the session lasts %v", tt.ask, got)
		}
	}
}

// What a session may do is what its role allows and its session policies allow.
func TestSessionPolicies(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	key, arn := c.newKey()
	c.setPolicy(key, policyDocument(rootStatement))
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""),
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["kms:Encrypt","kms:DescribeKey"],"Resource":"`+arn+`"}]}`)
	describe := c.putPolicy(testAccountNumber, "describe", identityPolicy("Allow", "kms:Describe*", "*"))
	random := c.putPolicy(testAccountNumber, "random", identityPolicy("Allow", "kms:GenerateRandom", "*"))
	for _, tt := range []struct {
		name                      string
		policy                    string
		arns                      []string
		encrypt, describe, random bool
	}{
		{"none", "", nil, true, true, false},
		{"inline", identityPolicy("Allow", "kms:Encrypt", "*"), nil, true, false, false},
		{"managed", "", []string{describe}, false, true, false},
		{"both", identityPolicy("Allow", "kms:Encrypt", "*"), []string{describe}, true, true, false},
		{"denied", identityPolicy("Deny", "kms:Encrypt", "*"), []string{"arn:aws:iam::aws:policy/AdministratorAccess"}, false, true, false},
		{"more than the role", identityPolicy("Allow", "*", "*"), []string{random}, true, true, false},
		{"less than all", identityPolicy("Allow", "sts:*", "*"), nil, false, false, false},
	} {
		in := assumeInput(role)
		if tt.policy != "" {
			in.Policy = &tt.policy
		}
		for _, a := range tt.arns {
			in.PolicyArns = append(in.PolicyArns, iamapi.PolicyDescriptorType{Arn: &a})
		}
		s := c.assume(alice, in)
		_, encrypt := callAs[kmsapi.EncryptOutput](c, c.engine, s, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
		_, describe := callAs[kmsapi.DescribeKeyOutput](c, c.engine, s, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &key})
		_, random := callAs[kmsapi.GenerateRandomOutput](c, c.engine, s, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1))})
		for what, got := range map[string]struct {
			err  error
			want bool
		}{"Encrypt": {encrypt, tt.encrypt}, "DescribeKey": {describe, tt.describe}, "GenerateRandom": {random, tt.random}} {
			if (got.err == nil) != got.want || got.err != nil && !errors.Is(got.err, kmsapi.ErrAccessDenied) {
				t.Errorf("session policies %s: %s got error %v, want success %v", tt.name, what, got.err, got.want)
			}
		}
	}
}

func TestRefusedSessions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.putAccount(otherAccount)
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	elsewhere := c.putPolicy(otherAccount, "elsewhere", identityPolicy("Allow", "*", "*"))
	many := make([]iamapi.PolicyDescriptorType, 11)
	for i := range many {
		many[i].Arn = new("arn:aws:iam::aws:policy/AdministratorAccess")
	}
	var tags []iamapi.Tag
	for i := range 20 {
		tags = append(tags, iamapi.Tag{Key: new("k" + string(rune('a'+i))), Value: new(strings.Repeat("v", 256))})
	}
	for name, tt := range map[string]struct {
		edit    func(*iamapi.AssumeRoleInput)
		kind    *kmsapi.Error
		message string
	}{
		"policy":     {func(in *iamapi.AssumeRoleInput) { in.Policy = new("{}") }, iamapi.ErrMalformedPolicyDocument, "…"},
		"key policy": {func(in *iamapi.AssumeRoleInput) { in.Policy = new(trusts("*", "")) }, iamapi.ErrMalformedPolicyDocument, "…"},
		"long policy": {func(in *iamapi.AssumeRoleInput) {
			in.Policy = new(identityPolicy("Allow", "*", "arn:aws:kms:*:*:key/"+strings.Repeat("a", 2048)))
		}, iamapi.ErrPackedPolicyTooLarge, "…"},
		"many policies": {func(in *iamapi.AssumeRoleInput) { in.PolicyArns = many }, kmsapi.ErrValidation, "…"},
		"null policy":   {func(in *iamapi.AssumeRoleInput) { in.PolicyArns = make([]iamapi.PolicyDescriptorType, 1) }, kmsapi.ErrValidation, "…"},
		"absent policy": {func(in *iamapi.AssumeRoleInput) {
			in.PolicyArns = []iamapi.PolicyDescriptorType{{Arn: new("arn:aws:iam::111122223333:policy/absent")}}
		}, kmsapi.ErrValidation, "The managed policy arn:aws:iam::111122223333:policy/absent does not exist in the account of the session."},
		"policy of another account": {func(in *iamapi.AssumeRoleInput) {
			in.PolicyArns = []iamapi.PolicyDescriptorType{{Arn: &elsewhere}}
		}, kmsapi.ErrValidation, "The managed policy arn:aws:iam::444455556666:policy/elsewhere does not exist in the account of the session."},
		"large tags": {func(in *iamapi.AssumeRoleInput) { in.Tags = tags }, iamapi.ErrPackedPolicyTooLarge, "Packed size of session tags consumes 130% of allotted space."},
		"same tags": {func(in *iamapi.AssumeRoleInput) {
			in.Tags = []iamapi.Tag{{Key: new("Team"), Value: new("a")}, {Key: new("team"), Value: new("b")}}
		}, kmsapi.ErrValidation, "Duplicate tag keys found. Please note that Tag keys are case insensitive."},
		"reserved tag": {func(in *iamapi.AssumeRoleInput) { in.Tags = []iamapi.Tag{{Key: new("AWS:x"), Value: new("a")}} }, kmsapi.ErrValidation,
			"Tag keys that begin with 'aws:' are reserved for system use."},
		"transitive": {func(in *iamapi.AssumeRoleInput) { in.TransitiveTagKeys = []string{"team"} }, kmsapi.ErrValidation,
			"The specified transitive tag key must be included in the requested tags."},
		"code": {func(in *iamapi.AssumeRoleInput) {
			in.TokenCode, in.SerialNumber = new("123456"), new("arn:aws:iam::111122223333:mfa/x")
		}, kmsapi.ErrAccessDenied, "…"},
		"contexts": {func(in *iamapi.AssumeRoleInput) { in.ProvidedContexts = make([]iamapi.ProvidedContext, 1) }, kmsapi.ErrValidation, "Context assertions are not supported."},
	} {
		t.Run(name, func(t *testing.T) {
			in := assumeInput(role)
			tt.edit(in)
			_, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, alice, "AssumeRole", in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
}

// Session tags need sts:TagSession, are condition keys of the session, and only transitive
// ones are inherited by a session that is opened with it, and cannot be set there.
func TestSessionTags(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	key, _ := c.newKey()
	c.setPolicy(key, policyDocument(rootStatement))
	alice := c.storeUser(testAccountNumber, "alice", "")
	byTeam := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalTag/team":"blue"}}}]}`
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, `{"StringEqualsIfExists":{"aws:RequestTag/team":["blue","red"]}}`), byTeam)
	next := c.storeRole(testAccountNumber, "next", trusts("arn:aws:iam::111122223333:role/app", ""), byTeam)
	untagged := c.storeRole(testAccountNumber, "untagged", strings.ReplaceAll(trusts("arn:aws:iam::111122223333:role/app", ""), `"sts:TagSession",`, ""), byTeam)

	encrypt := func(s iam.Identity) bool {
		_, err := callAs[kmsapi.EncryptOutput](c, c.engine, s, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
		if err != nil && !errors.Is(err, kmsapi.ErrAccessDenied) {
			t.Error(err)
		}
		return err == nil
	}
	tagged := func(role, value string, transitive ...string) *iamapi.AssumeRoleInput {
		in := assumeInput(role)
		in.Tags, in.TransitiveTagKeys = []iamapi.Tag{{Key: new("Team"), Value: &value}}, transitive
		return in
	}
	if encrypt(c.assume(alice, assumeInput(role))) || encrypt(c.assume(alice, tagged(role, "red"))) || !encrypt(c.assume(alice, tagged(role, "blue"))) {
		t.Error("the session's tags do not decide")
	}
	_, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, alice, "AssumeRole", tagged(role, "green"))
	wantError(t, err, kmsapi.ErrAccessDenied, "…")

	passing, keeping := c.assume(alice, tagged(role, "blue", "team")), c.assume(alice, tagged(role, "blue"))
	if !encrypt(c.assume(passing, assumeInput(next))) {
		t.Error("a transitive tag is not inherited")
	}
	if encrypt(c.assume(keeping, assumeInput(next))) {
		t.Error("a tag is inherited that is not transitive")
	}
	third := c.storeRole(testAccountNumber, "third", trusts("arn:aws:iam::111122223333:role/next", ""), byTeam)
	if !encrypt(c.assume(c.assume(passing, assumeInput(next)), assumeInput(third))) {
		t.Error("a transitive tag is not inherited twice")
	}
	_, err = callAs[iamapi.AssumeRoleOutput](c, c.engine, passing, "AssumeRole", tagged(next, "red"))
	wantError(t, err, kmsapi.ErrValidation, "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.")
	if encrypt(c.assume(keeping, tagged(next, "red"))) {
		t.Error("a tag of the calling session counts")
	}
	const session = "arn:aws:sts::111122223333:assumed-role/app/test"
	_, err = callAs[iamapi.AssumeRoleOutput](c, c.engine, passing, "AssumeRole", assumeInput(untagged))
	wantError(t, err, kmsapi.ErrAccessDenied, "User: "+session+" is not authorized to perform: sts:TagSession on resource: "+untagged)
	c.assume(keeping, assumeInput(untagged))
}

// A source identity needs sts:SetSourceIdentity, stays with all sessions that are opened with
// the session, and cannot be changed.
func TestSourceIdentity(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, `{"StringEqualsIfExists":{"sts:SourceIdentity":"ann"}}`), "")
	next := c.storeRole(testAccountNumber, "next", trusts("arn:aws:iam::111122223333:role/app", `{"StringEquals":{"aws:SourceIdentity":"ann"}}`), "")
	in := assumeInput(role)
	in.SourceIdentity = new("bob")
	_, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, alice, "AssumeRole", in)
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	in.SourceIdentity = new("ann")
	s := c.assume(alice, in)
	out := c.assumed(s, assumeInput(next))
	if out.SourceIdentity == nil || *out.SourceIdentity != "ann" {
		t.Error("the source identity is not inherited")
	}
	in = assumeInput(next)
	in.SourceIdentity = new("bob")
	_, err = callAs[iamapi.AssumeRoleOutput](c, c.engine, s, "AssumeRole", in)
	wantError(t, err, kmsapi.ErrValidation, "The source identity of the calling session is already set and cannot be changed.")
	if _, err := callAs[iamapi.AssumeRoleOutput](c, c.engine, c.assume(alice, assumeInput(role)), "AssumeRole", assumeInput(next)); !errors.Is(err, kmsapi.ErrAccessDenied) {
		t.Errorf("without a source identity: %v", err)
	}
}

func TestGetSessionToken(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	key, _ := c.newKey()
	c.setPolicy(key, policyDocument(rootStatement))
	alice := c.storeUser(testAccountNumber, "alice", identityPolicy("Allow", "kms:Encrypt", "*"))
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	for _, tt := range []struct {
		id   iam.Identity
		ask  int32
		want time.Duration
	}{
		{alice, 0, 12 * time.Hour}, {alice, 900, 15 * time.Minute}, {alice, 129_600, 36 * time.Hour},
		{c.root, 0, time.Hour}, {c.root, 900, 15 * time.Minute}, {c.root, 129_600, time.Hour},
	} {
		in := &iamapi.GetSessionTokenInput{}
		if tt.ask != 0 {
			in.DurationSeconds = &tt.ask
		}
		out, err := callAs[iamapi.GetSessionTokenOutput](c, c.engine, tt.id, "GetSessionToken", in)
		if err != nil {
			t.Fatal(err)
		}
		if got := out.Credentials.Expiration.Sub(c.Clock.Now()); got > tt.want || got <= tt.want-time.Second {
			t.Errorf("%d s: the session lasts %v", tt.ask, got)
		}
		s := c.withTemporary(c.engine, out.Credentials)
		if s.Principal() != tt.id.Principal() {
			t.Errorf("the session is of %v", s.Principal())
		}
		if _, err := callAs[kmsapi.EncryptOutput](c, c.engine, s, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")}); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"GetSessionToken", "GetAccessKeyInfo"} {
			_, err = c.engine.Do(t.Context(), c.caller(s), OperationNamed(STS, name), map[string]any{
				"GetSessionToken": &iamapi.GetSessionTokenInput{}, "GetAccessKeyInfo": &iamapi.GetAccessKeyInfoInput{AccessKeyId: out.Credentials.AccessKeyId},
			}[name])
			wantError(t, err, kmsapi.ErrAccessDenied, "Cannot call "+name+" with session credentials")
		}
		if tt.id == alice {
			c.assume(s, assumeInput(role))
		}
	}
	out, err := callAs[iamapi.GetSessionTokenOutput](c, c.engine, c.assume(alice, assumeInput(role)), "GetSessionToken", &iamapi.GetSessionTokenInput{})
	wantError(t, err, kmsapi.ErrAccessDenied, "Cannot call GetSessionToken with session credentials")
	if out != nil {
		t.Error("it has an answer")
	}
}

func TestGetAccessKeyInfo(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withShares(3, 2))
	root := c.rootOf(testAccountNumber)
	id := c.initResult.AccessKeyID
	out, err := callAs[iamapi.GetAccessKeyInfoOutput](c, c.engine, root, "GetAccessKeyInfo", &iamapi.GetAccessKeyInfoInput{AccessKeyId: &id})
	if err != nil || *out.Account != testAccount {
		t.Errorf("got %v and error %v", out, err)
	}
	_, err = callAs[iamapi.GetAccessKeyInfoOutput](c, c.engine, root, "GetAccessKeyInfo", &iamapi.GetAccessKeyInfoInput{AccessKeyId: new("AKIA0000000000000000")})
	wantError(t, err, kmsapi.ErrValidation, "…")
	alice := c.storeUser(testAccountNumber, "alice", "")
	_, err = callAs[iamapi.GetAccessKeyInfoOutput](c, c.engine, alice, "GetAccessKeyInfo", &iamapi.GetAccessKeyInfoInput{AccessKeyId: &id})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
}

// Records say which session was opened, and have neither the secret nor the token.
func TestSessionRecords(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	alice := c.storeUser(testAccountNumber, "alice", "")
	role := c.storeRole(testAccountNumber, "app", trusts(aliceARN, ""), "")
	out := c.assumed(alice, assumeInput(role))
	rec := c.lastRecord()
	text := rec.String()
	if strings.Contains(text, *out.Credentials.SecretAccessKey) || strings.Contains(text, (*out.Credentials.SessionToken)[20:40]) {
		t.Error("the record has a secret")
	}
	if !strings.Contains(text, *out.Credentials.AccessKeyId) || len(rec.Resources) != 1 || rec.Resources[0].Arn != role || !rec.ReadOnly {
		t.Errorf("the record is %s", text)
	}
}
