package keyengine

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trailapi"
)

// addKMS adds the rows of KMS: those of the table of key states, and the operations on no key.
func (m *matrix) addKMS() {
	for _, row := range keyStateRows() {
		want, origin := row.own, kmsapi.OriginKMS
		if want == "" {
			want = row.want
		}
		switch {
		case strings.HasPrefix(want, "X"):
			origin = kmsapi.OriginImported
		case strings.HasPrefix(want, "U"):
			continue // not for this kind of key
		}
		multi := row.op == "ReplicateKey" || row.op == "UpdatePrimaryRegion"
		state := fsmpb.KeyState_KEY_STATE_ENABLED
		if row.op == "CancelKeyDeletion" {
			state = fsmpb.KeyState_KEY_STATE_PENDING_DELETION
		}
		m.row(row.op, matrixRow{name: row.name, ask: func() (any, []need) {
			other, _ := m.newKey() // without the grants of other requests
			k := newStateKey(m.testCluster, row.kind, origin, other, multi, state)
			in := row.in(k)
			k.enter(state)
			return in, needsOfKey(row.op, row.name, k, in)
		}})
	}
	m.row("ReplicateKey", matrixRow{name: "with tags", ask: func() (any, []need) {
		k := newStateKey(m.testCluster, "", kmsapi.OriginKMS, "", true, fsmpb.KeyState_KEY_STATE_ENABLED)
		in := &kmsapi.ReplicateKeyInput{KeyId: &k.id, ReplicaRegion: new(thirdRegion), Tags: manyTags(1)}
		return in, append(needsOfKey("ReplicateKey", "", k, in), need{"kms:TagResource", "*"})
	}})
	account := func(operation, name string, in any, needs ...need) {
		if needs == nil {
			needs = []need{{"kms:" + operation, "*"}}
		}
		m.row(operation, matrixRow{name: name, ask: func() (any, []need) { return in, needs }})
	}
	account("CreateKey", "", &kmsapi.CreateKeyInput{})
	account("CreateKey", "with tags", &kmsapi.CreateKeyInput{Tags: manyTags(1)}, need{"kms:CreateKey", "*"}, need{"kms:TagResource", "*"})
	account("ListKeys", "", &kmsapi.ListKeysInput{})
	account("ListAliases", "all", &kmsapi.ListAliasesInput{})
	account("GenerateRandom", "", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8))})
	account("ListRetirableGrants", "", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(aliceARN)}, need{"kms:ListRetirableGrants", aliceARN})
	m.addStores()
}

// needsOfKey returns what an operation on a key needs.
func needsOfKey(operation, name string, k *stateKey, in any) []need {
	action, other := "kms:"+operation, arnOfKey(testRegion, k.other)
	alias := func(name *string) string { return "arn:aws:kms:" + testRegion + ":" + testAccount + ":" + *name }
	switch in := in.(type) {
	case *kmsapi.CreateAliasInput:
		return []need{{action, alias(in.AliasName)}, {action, k.arn}}
	case *kmsapi.DeleteAliasInput:
		return []need{{action, alias(in.AliasName)}, {action, k.arn}}
	case *kmsapi.UpdateAliasInput:
		return []need{{action, alias(in.AliasName)}, {action, k.arn}, {action, other}}
	case *kmsapi.ListAliasesInput:
		return []need{{action, "*"}}
	case *kmsapi.ReEncryptInput:
		from, to := k.arn, other
		if name == "destination" {
			from, to = to, from
		}
		return []need{{"kms:ReEncryptFrom", from}, {"kms:ReEncryptTo", to}}
	case *kmsapi.ReplicateKeyInput:
		return []need{{action, k.arn}, {"kms:CreateKey", "*"}}
	case *kmsapi.UpdatePrimaryRegionInput:
		return []need{{action, k.arn}, {action, arnOfKey(*in.PrimaryRegion, k.id)}}
	}
	return []need{{action, k.arn}}
}

// addCloudTrail adds the row of CloudTrail.
func (m *matrix) addCloudTrail() {
	withIndex(m.t, m.engine)
	m.row("LookupEvents", matrixRow{ask: func() (any, []need) {
		m.Clock.Advance(time.Second) // an account may look up only so often
		return &trailapi.LookupEventsInput{MaxResults: new(int32(1))}, []need{{"cloudtrail:LookupEvents", "*"}}
	}})
}

// addStores adds the rows of custom key stores.
func (m *matrix) addStores() {
	p := m.newProxy()
	// An endpoint has one key store, so there is one, and each request finds it as it needs it.
	store := func(connected bool) *string {
		var id *string
		for s := range m.State().AllKeyStores(testAccountNumber) {
			if id = &s.Id; s.State == request.StoreConnected && !connected {
				must[request.None](m.testCluster, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
			}
		}
		if id == nil {
			id = must[kmsapi.CreateCustomKeyStoreOutput](m.testCluster, "CreateCustomKeyStore", storeAt(p, "store")).CustomKeyStoreId
		}
		if connected && *m.describeStore(*id).ConnectionState != "CONNECTED" {
			must[request.None](m.testCluster, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: id})
		}
		return id
	}
	row := func(operation string, in func() any) {
		m.row(operation, matrixRow{ask: func() (any, []need) { return in(), []need{{"kms:" + operation, "*"}} }})
	}
	row("CreateCustomKeyStore", func() any {
		must[request.None](m.testCluster, "DeleteCustomKeyStore", &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: store(false)})
		return storeAt(p, "store")
	})
	row("ConnectCustomKeyStore", func() any { return &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: store(false)} })
	row("DisconnectCustomKeyStore", func() any { return &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: store(true)} })
	row("DescribeCustomKeyStores", func() any { return &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: store(true)} })
	row("UpdateCustomKeyStore", func() any {
		return &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: store(false), NewCustomKeyStoreName: new("renamed")}
	})
	row("DeleteCustomKeyStore", func() any { return &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: store(false)} })
}

// The objects of the matrix of IAM, whose names are those that resourceOf knows.
var iamMembers = map[string]string{
	"UserName": "ann", "GroupName": "g", "RoleName": "app", "PolicyArn": managedARN("p"), "OpenIDConnectProviderArn": arnOf("oidc-provider/a.example"),
	"Url": "https://b.example", "PolicyName": "new", "VersionId": "v2", "Status": "Inactive", "ClientID": "x",
	"PolicyDocument": policyDocument(allow("kms:*", "*")), "AssumeRolePolicyDocument": trust(`{"AWS":"` + otherAccount.String() + `"}`), "PermissionsBoundary": awsAdmin,
	"Description": "d", "AccountAlias": "acme", "JSONWebKeySet": "", "PolicySourceArn": arnOf("user/ann"),
}

// addIAM adds the rows of IAM. The required members of inputs have the same values everywhere.
func (m *matrix) addIAM() {
	for _, op := range OperationsOf(IAM) {
		r := matrixRow{ask: func() (any, []need) {
			m.putObjects(op.Name)
			return m.inputOf(op), []need{{"iam:" + op.Name, resourceOf(op.Name)}}
		}}
		switch op.Name {
		case "GetLoginProfile", "DeleteLoginProfile":
			r.want = iamapi.ErrNoSuchEntity
		}
		m.row(op.Name, r)
	}
	with := func(operation, name string, in func(any) []need) {
		m.row(operation, matrixRow{name: name, ask: func() (any, []need) {
			m.putObjects(operation)
			input := m.inputOf(OperationNamed(IAM, operation))
			return input, append([]need{{"iam:" + operation, resourceOf(operation)}}, in(input)...)
		}})
	}
	tags := []iamapi.Tag{{Key: new("k"), Value: new("v")}}
	with("CreateUser", "with tags", func(in any) []need {
		in.(*iamapi.CreateUserInput).Tags = tags
		return []need{{"iam:TagUser", arnOf("user/ann")}}
	})
	with("CreateRole", "with tags", func(in any) []need {
		in.(*iamapi.CreateRoleInput).Tags = tags
		return []need{{"iam:TagRole", arnOf("role/app")}}
	})
	with("CreatePolicy", "with tags", func(in any) []need {
		in.(*iamapi.CreatePolicyInput).Tags = tags
		return []need{{"iam:TagPolicy", arnOf("policy/new")}}
	})
	with("CreateOpenIDConnectProvider", "with tags", func(in any) []need {
		in.(*iamapi.CreateOpenIDConnectProviderInput).Tags = tags
		return []need{{"iam:TagOpenIDConnectProvider", arnOf("oidc-provider/b.example")}}
	})
	with("UpdateUser", "with a new name", func(in any) []need {
		in.(*iamapi.UpdateUserInput).NewUserName = new("ann2")
		return []need{{"iam:UpdateUser", arnOf("user/ann2")}}
	})
	with("UpdateGroup", "with a new path", func(in any) []need {
		in.(*iamapi.UpdateGroupInput).NewPath = new("/new/")
		return []need{{"iam:UpdateGroup", arnOf("group/new/g")}}
	})
}

// inputOf returns an input of an operation of IAM with its required members.
func (m *matrix) inputOf(op *Operation) any {
	m.t.Helper()
	in := op.NewInput()
	if _, ok := op.Input().Index([]byte("AccessKeyId")); ok {
		iamMembers["AccessKeyId"] = m.newAccessKey(new("ann")).AccessKeyID
	}
	fillRequired(m.t, op, in, iamMembers)
	if in, ok := in.(*iamapi.UpdateAssumeRolePolicyInput); ok {
		in.PolicyDocument = new(iamMembers["AssumeRolePolicyDocument"])
	}
	return in
}

// putObjects writes the objects that an operation of IAM finds: what it creates is not there,
// and nothing depends on what it deletes.
func (m *matrix) putObjects(operation string) {
	m.t.Helper()
	m.removeObjects()
	a := uint64(testAccountNumber)
	m.serial++
	id := func(prefix string) string { return uniqueID(prefix, fmt.Sprint(m.serial)) }
	bare := slices.Contains([]string{"DeleteUser", "DeleteGroup", "DeleteRole", "DeletePolicy"}, operation)
	p := &fsmpb.Policy{Account: a, Name: "p", Path: "/", Id: id("ANPA"), Created: 1, Tags: storedTags()}
	g := &fsmpb.Group{Account: a, Name: "g", Path: "/", Id: id("AGPA"), Created: 1}
	r := &fsmpb.Role{Account: a, Name: "app", Path: "/", Id: id("AROA"), Created: 1, MaxSession: 3600, Trust: iamMembers["AssumeRolePolicyDocument"], Tags: storedTags()}
	u := &fsmpb.User{Account: a, Name: "ann", Path: "/", Id: id("AIDA"), Created: 1, Tags: storedTags()}
	if !bare {
		own := []*fsmpb.InlinePolicy{{Name: "new", Document: iamMembers["PolicyDocument"]}}
		g.Inline, r.Inline, u.Inline = own, own, own
		g.Policies, r.Policies, u.Policies = []string{managedARN("p")}, []string{managedARN("p")}, []string{managedARN("p")}
		r.Boundary, u.Boundary, u.Groups = awsAdmin, awsAdmin, []string{g.Id}
	}
	versions := []uint32{1, 2}
	if bare {
		versions = versions[:1]
	}
	p.DefaultVersion, p.Newest, p.Versions = 1, versions[len(versions)-1], versions
	changes := []*fsmpb.Change{{Change: &fsmpb.Change_PutPolicy{PutPolicy: p}}}
	for _, n := range versions {
		changes = append(changes, &fsmpb.Change{Change: &fsmpb.Change_PutPolicyVersion{PutPolicyVersion: &fsmpb.PolicyVersion{
			Account: a, Policy: "p", Number: n, Document: iamMembers["PolicyDocument"], Created: 1,
		}}})
	}
	if operation != "CreateGroup" {
		changes = append(changes, &fsmpb.Change{Change: &fsmpb.Change_PutGroup{PutGroup: g}})
	} else {
		u.Groups = nil
	}
	if operation != "CreateRole" {
		changes = append(changes, &fsmpb.Change{Change: &fsmpb.Change_PutRole{PutRole: r}})
	}
	if operation != "CreateUser" {
		changes = append(changes, &fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: u}})
	}
	account := &fsmpb.Account{Account: a, Created: 1}
	if operation != "CreateAccountAlias" {
		account.Alias = iamMembers["AccountAlias"]
	}
	m.Change(append(changes,
		&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: account}},
		&fsmpb.Change{Change: &fsmpb.Change_PutOidcProvider{PutOidcProvider: &fsmpb.OidcProvider{
			Account: a, Url: "a.example", Created: 1, ClientIds: []string{"x"}, Tags: storedTags(),
		}}},
	)...)
}

func storedTags() []*fsmpb.Tag { return []*fsmpb.Tag{{Key: "k", Value: "v"}} }

// removeObjects removes the objects of putObjects and those that operations have made of them.
func (m *matrix) removeObjects() {
	m.t.Helper()
	id := func(name string) *fsmpb.EntityID {
		return &fsmpb.EntityID{Account: uint64(testAccountNumber), Name: name}
	}
	for _, name := range []string{"ann", "ann2"} {
		if u, _ := fsm.Object[*fsmpb.User](m.State(), fsm.EntityID(testAccountNumber, name)); u != nil {
			m.putUser(name, func(u *fsmpb.User) { u.AccessKeys = nil })
			m.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteUser{DeleteUser: id(name)}})
		}
	}
	remove := func(there bool, c *fsmpb.Change) {
		if there {
			m.Change(c)
		}
	}
	remove(stored[*fsmpb.Role](m, "app"), &fsmpb.Change{Change: &fsmpb.Change_DeleteRole{DeleteRole: id("app")}})
	remove(stored[*fsmpb.Group](m, "g"), &fsmpb.Change{Change: &fsmpb.Change_DeleteGroup{DeleteGroup: id("g")}})
	for _, name := range []string{"p", "new"} {
		remove(stored[*fsmpb.Policy](m, name), &fsmpb.Change{Change: &fsmpb.Change_DeletePolicy{DeletePolicy: id(name)}})
	}
	for _, url := range []string{"a.example", "b.example"} {
		p, _ := fsm.Object[*fsmpb.OidcProvider](m.State(), fsm.OidcProviderID(testAccountNumber, url))
		remove(p != nil, &fsmpb.Change{Change: &fsmpb.Change_DeleteOidcProvider{DeleteOidcProvider: id(url)}})
	}
}

// stored reports whether there is an object with a name.
func stored[M interface {
	comparable
	proto.Message
}](m *matrix, name string) bool {
	var none M
	got, _ := fsm.Object[M](m.State(), fsm.EntityID(testAccountNumber, name))
	return got != none
}

// addSTS adds the rows of STS.
func (m *matrix) addSTS() {
	account := func(operation string, in any) {
		m.row(operation, matrixRow{ask: func() (any, []need) { return in, []need{{"sts:" + operation, "*"}} }})
	}
	account("GetAccessKeyInfo", &iamapi.GetAccessKeyInfoInput{AccessKeyId: &m.initResult.AccessKeyID})
	free := func(operation, why string, in any) {
		m.row(operation, matrixRow{free: why, ask: func() (any, []need) { return in, nil }})
	}
	free("GetCallerIdentity", "it says what the caller proved", &iamapi.GetCallerIdentityInput{})
	free("GetSessionToken", "the session has no more permissions than the caller", &iamapi.GetSessionTokenInput{})
	m.row("DecodeAuthorizationMessage", matrixRow{ask: func() (any, []need) {
		key, _ := m.newKey()
		_, err := callAs[kmsapi.EncryptOutput](m.testCluster, m.engine, m.may(""), "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
		return &iamapi.DecodeAuthorizationMessageInput{EncodedMessage: new(encoded(err))}, []need{{"sts:DecodeAuthorizationMessage", "*"}}
	}})
	role := m.storeRole(testAccountNumber, "assumed", trusts(testAccount, ""), "")
	assume := func(name string, in *iamapi.AssumeRoleInput, more ...string) {
		m.row("AssumeRole", matrixRow{name: name, ask: func() (any, []need) {
			needs := []need{{"sts:AssumeRole", role}}
			for _, action := range more {
				needs = append(needs, need{action, role})
			}
			return in, needs
		}})
	}
	assume("", assumeInput(role))
	in := assumeInput(role)
	in.Tags, in.SourceIdentity = []iamapi.Tag{{Key: new("k"), Value: new("v")}}, new("ann")
	assume("with tags and a source identity", in, "sts:TagSession", "sts:SetSourceIdentity")
}
