package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func daysAgo(n int) *timestamppb.Timestamp { return timestamppb.New(now.AddDate(0, 0, -n)) }

func options() Options {
	return Options{UnusedDays: 90, KeyDays: 365, AccessKeyDays: 90, RetentionDays: 365, Origins: []string{}, now: now}
}

const number = "111122223333"

// delegating is the policy that a key has by default.
const delegating = `{"Version": "2012-10-17", "Statement": [{"Sid": "Account", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"}]}`

// with returns the policy with one more statement, which is then the second.
func with(statement string) string {
	return strings.TrimSuffix(delegating, "]}") + ", " + statement + "]}"
}

// goodKey passes all checks. Each change makes it another key.
func goodKey(change ...func(*key)) *key {
	id := "1234abcd-12ab-34cd-56ef-1234567890ab"
	k := &key{
		meta: &kmspb.KeyMetadata{
			AwsAccountId: proto.String(number), KeyId: &id, Arn: proto.String("arn:aws:kms:eu-west-1:" + number + ":key/" + id), CreationDate: daysAgo(400),
			KeyState: proto.String("Enabled"), KeySpec: proto.String("SYMMETRIC_DEFAULT"), KeyUsage: proto.String("ENCRYPT_DECRYPT"), Origin: proto.String("AWS_KMS"),
		},
		policy:   delegating,
		rotation: &kmspb.GetKeyRotationStatusResponse{KeyRotationEnabled: proto.Bool(true), RotationPeriodInDays: proto.Int32(365)},
		use:      &kmspb.GetKeyLastUsageResponse{KeyLastUsage: &kmspb.KeyLastUsageData{Timestamp: daysAgo(1), Operation: proto.String("Decrypt")}},
		records:  map[string]uint64{"CreateKey": 3, "PutKeyPolicy": 5, "ScheduleKeyDeletion": 7},
	}
	for _, c := range change {
		c(k)
	}
	return k
}

func spec(spec, usage string) func(*key) {
	return func(k *key) { k.meta.KeySpec, k.meta.KeyUsage, k.rotation = &spec, &usage, nil }
}

func state(s string) func(*key) { return func(k *key) { k.meta.KeyState = &s } }

func policyOf(p string) func(*key) { return func(k *key) { k.policy = p } }

func created(n int) func(*key) { return func(k *key) { k.meta.CreationDate = daysAgo(n) } }

// keyCases has keys by check: those that pass and those that fail, with the statement or the record
// that shows it.
var keyCases = []struct {
	check     string
	pass      []*key
	fail      []*key
	statement int // of all that fail; -1: none
	record    int // -1: none
}{
	{"key-policy-public", []*key{goodKey(), goodKey(policyOf(with(`{"Effect": "Allow", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*", "Condition": {"StringEquals": {"kms:CallerAccount": "111122223333"}}}`)))},
		[]*key{
			goodKey(policyOf(with(`{"Effect": "Allow", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"}`))),
			goodKey(policyOf(with(`{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:Encrypt", "Resource": "*", "Condition": {"Bool": {"aws:SecureTransport": "true"}}}`))),
		}, 1, 5},
	{"key-pending-deletion", []*key{goodKey(), goodKey(state("Disabled"))},
		[]*key{goodKey(state("PendingDeletion"), func(k *key) { k.meta.DeletionDate = daysAgo(-7) }), goodKey(state("PendingReplicaDeletion"))}, -1, 7},
	{"key-rotation", []*key{goodKey(), goodKey(spec("HMAC_256", "GENERATE_VERIFY_MAC")), goodKey(func(k *key) { k.meta.Origin, k.rotation = proto.String("EXTERNAL"), nil })},
		[]*key{goodKey(func(k *key) { k.rotation.KeyRotationEnabled = proto.Bool(false) })}, -1, 3},
	{"key-cryptoperiod", []*key{goodKey(), goodKey(spec("RSA_4096", "SIGN_VERIFY"), created(300))},
		[]*key{goodKey(spec("RSA_4096", "SIGN_VERIFY")), goodKey(func(k *key) { k.meta.Origin, k.rotation = proto.String("EXTERNAL"), nil })}, -1, 3},
	{"key-cryptoperiod", nil, []*key{goodKey(func(k *key) { k.rotation.RotationPeriodInDays = proto.Int32(366) })}, -1, -1},
	{"key-rsa-size", []*key{goodKey(), goodKey(spec("RSA_3072", "ENCRYPT_DECRYPT")), goodKey(spec("RSA_2048", "SIGN_VERIFY"))},
		[]*key{goodKey(spec("RSA_2048", "ENCRYPT_DECRYPT"))}, -1, 3},
	{"key-quantum", []*key{goodKey(), goodKey(spec("ML_DSA_65", "SIGN_VERIFY")), goodKey(spec("HMAC_512", "GENERATE_VERIFY_MAC"))},
		[]*key{goodKey(spec("RSA_4096", "SIGN_VERIFY")), goodKey(spec("ECC_NIST_P521", "SIGN_VERIFY"))}, -1, 3},
	{"key-grants-limited", []*key{goodKey(), goodKey(policyOf(with(`{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:user/a"}, "Action": ["kms:CreateGrant"], "Resource": "*", "Condition": {"Bool": {"kms:GrantIsForAWSResource": true}}}`)))},
		[]*key{
			goodKey(policyOf(with(`{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:user/a"}, "Action": ["kms:creategrant"], "Resource": "*"}`))),
			goodKey(policyOf(with(`{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:user/a"}, "Action": "kms:Create*", "Resource": "*", "Condition": {"BoolIfExists": {"kms:GrantIsForAWSResource": "true"}}}`))),
		}, 1, 5},
	{"key-lockout", []*key{goodKey()},
		[]*key{goodKey(policyOf(`{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:user/a"}, "Action": "kms:Encrypt", "Resource": "*"}]}`))}, -1, 5},
	{"key-origin", []*key{goodKey()}, []*key{goodKey(func(k *key) { k.meta.Origin = proto.String("EXTERNAL") })}, -1, 3},
	{"key-other-account", []*key{goodKey()},
		[]*key{
			goodKey(policyOf(with(`{"Effect": "Allow", "Principal": {"AWS": ["111122223333", "444455556666"]}, "Action": "kms:Encrypt", "Resource": "*"}`))),
			goodKey(policyOf(with(`{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::444455556666:user/a"}, "Action": "kms:Encrypt", "Resource": "*"}`))),
		}, 1, 5},
	{"key-policy-broad", []*key{goodKey()},
		[]*key{goodKey(policyOf(with(`{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:user/a"}, "NotAction": "kms:Decrypt", "Resource": "*"}`)))}, 1, 5},
	{"key-unused", []*key{goodKey(), goodKey(func(k *key) { k.use = new(kmspb.GetKeyLastUsageResponse) }, created(10))},
		[]*key{goodKey(func(k *key) { k.use = new(kmspb.GetKeyLastUsageResponse) })}, -1, 3},
	{"key-unused", []*key{goodKey(func(k *key) { k.use = &kmspb.GetKeyLastUsageResponse{TrackingStartDate: daysAgo(10)} })},
		[]*key{goodKey(func(k *key) { k.use.KeyLastUsage.Timestamp = daysAgo(91) })}, -1, -1},
	{"key-material-expires", []*key{goodKey(), goodKey(func(k *key) { k.meta.ValidTo = daysAgo(-31) })},
		[]*key{goodKey(func(k *key) { k.meta.ValidTo = daysAgo(-29) }), goodKey(func(k *key) { k.meta.ValidTo = daysAgo(1) })}, -1, -1},
	{"key-disabled", []*key{goodKey(), goodKey(state("PendingDeletion"))}, []*key{goodKey(state("Disabled"))}, -1, -1},
}

// goodAccount passes all checks.
func goodAccount(change ...func(*account)) *account {
	a := &account{
		number: number,
		identities: &iampb.GetAccountAuthorizationDetailsResponse{
			UserDetailList: []*iampb.UserDetail{{UserName: proto.String("alice"), Arn: proto.String("arn:aws:iam::111122223333:user/alice"), UserPolicyList: []*iampb.PolicyDetail{
				{PolicyName: proto.String("reads"), PolicyDocument: proto.String(allows(`"kms:DescribeKey"`, `"*"`))}}}},
			GroupDetailList: []*iampb.GroupDetail{{GroupName: proto.String("staff"), Arn: proto.String("arn:aws:iam::111122223333:group/staff")}},
			RoleDetailList: []*iampb.RoleDetail{{
				RoleName: proto.String("app"), Arn: proto.String("arn:aws:iam::111122223333:role/app"), CreateDate: daysAgo(400), RoleLastUsed: &iampb.RoleLastUsed{LastUsedDate: daysAgo(1)},
				AssumeRolePolicyDocument: proto.String(trusts("arn:aws:iam::111122223333:user/alice")),
			}},
			Policies: []*iampb.ManagedPolicyDetail{managed("own", allows(`"kms:Decrypt"`, `"arn:aws:kms:*:111122223333:key/1"`))},
		},
		accessKeys: []accessKey{{user: "alice", id: "AKIA1", active: true, created: now.AddDate(0, 0, -80), used: now.AddDate(0, 0, -1)}},
		summary:    map[string]int32{"AccountAccessKeysPresent": 0},
		shares:     &Custody{2, 3, []Custodian{{1, "alice", ""}, {2, "bob", ""}, {3, "carol", ""}}},
		files:      &verify.Report{Origin: "log"},
		log:        &records{first: now.AddDate(0, 0, -10), to: 20},
	}
	for _, c := range change {
		c(a)
	}
	return a
}

func allows(action, resource string) string {
	return fmt.Sprintf(`{"Version": "2012-10-17", "Statement": [{"Sid": "One", "Effect": "Allow", "Action": %s, "Resource": %s}]}`, action, resource)
}

func trusts(who string) string {
	return fmt.Sprintf(`{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": %q}, "Action": "sts:AssumeRole"}]}`, who)
}

func managed(name, doc string) *iampb.ManagedPolicyDetail {
	return &iampb.ManagedPolicyDetail{PolicyName: &name, Arn: proto.String("arn:aws:iam::111122223333:policy/" + name), PolicyVersionList: []*iampb.PolicyVersion{
		{Document: proto.String(allows(`"*"`, `"*"`)), IsDefaultVersion: proto.Bool(false)}, // not in force
		{Document: &doc, IsDefaultVersion: proto.Bool(true)},
	}}
}

func inline(doc string) func(*account) {
	return func(a *account) {
		a.identities.GroupDetailList[0].GroupPolicyList = []*iampb.PolicyDetail{{PolicyName: proto.String("broad"), PolicyDocument: &doc}}
	}
}

func ownPolicy(doc string) func(*account) {
	return func(a *account) { a.identities.Policies[0] = managed("own", doc) }
}

var accountCases = []struct {
	check      string
	pass, fail []func(*account)
}{
	{"managed-policy-decrypts-all", []func(*account){inline(allows(`"kms:Decrypt"`, `"*"`))},
		[]func(*account){ownPolicy(allows(`"kms:Decrypt"`, `"*"`)), ownPolicy(allows(`["kms:ReEncrypt*"]`, `"*"`)), ownPolicy(allows(`"*"`, `"*"`))}},
	{"inline-policy-decrypts-all", []func(*account){ownPolicy(allows(`"kms:Decrypt"`, `"*"`))},
		[]func(*account){inline(allows(`"kms:*"`, `"*"`)), func(a *account) {
			a.identities.RoleDetailList[0].RolePolicyList = []*iampb.PolicyDetail{{PolicyName: proto.String("p"), PolicyDocument: proto.String(allows(`"kms:Decrypt"`, `"*"`))}}
		}}},
	{"identity-policy-broad", nil, []func(*account){inline(`{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}]}`)}},
	{"role-trust", nil, []func(*account){func(a *account) { a.identities.RoleDetailList[0].AssumeRolePolicyDocument = proto.String(trusts("*")) }}},
	{"access-key-unused", []func(*account){func(a *account) { a.accessKeys[0].active, a.accessKeys[0].used = false, now.AddDate(0, 0, -100) }},
		[]func(*account){
			func(a *account) { a.accessKeys[0].used = now.AddDate(0, 0, -91) },
			func(a *account) { a.accessKeys[0].created, a.accessKeys[0].used = now.AddDate(0, 0, -91), time.Time{} },
		}},
	{"access-key-age", nil, []func(*account){func(a *account) { a.accessKeys[0].created = now.AddDate(0, 0, -91) }}},
	{"role-unused", []func(*account){func(a *account) {
		a.identities.RoleDetailList[0].RoleLastUsed, a.identities.RoleDetailList[0].CreateDate = nil, daysAgo(3)
	}}, []func(*account){
		func(a *account) { a.identities.RoleDetailList[0].RoleLastUsed = nil },
		func(a *account) { a.identities.RoleDetailList[0].RoleLastUsed.LastUsedDate = daysAgo(91) },
	}},
	{"root-access-key", nil, []func(*account){func(a *account) { a.summary["AccountAccessKeysPresent"] = 1 }}},
	{"audit-verified", nil, []func(*account){func(a *account) {
		a.files.Problems = []verify.Problem{{File: "segments/0", Index: 9, What: "hash differs"}}
	}}},
	{"audit-readable", nil, []func(*account){
		func(a *account) { a.log.unopenable, a.log.firstBad = 2, 17 },
		func(a *account) { a.log.gaps = 1 },
	}},
	{"audit-retention", []func(*account){func(a *account) { a.log.from, a.log.first = 5, now.AddDate(-2, 0, 0) }},
		[]func(*account){func(a *account) { a.log.from = 5 }}},
	{"custody-split", nil, []func(*account){
		func(a *account) { a.shares.Threshold = 1 },
		func(a *account) { a.shares.Custodians[1].Name = "alice" },
		func(a *account) { a.shares.Custodians = []Custodian{{1, "", "f"}, {2, "", "f"}, {3, "", "g"}} },
	}},
	{"custody-named", nil, []func(*account){func(a *account) { a.shares.Custodians = nil }, func(a *account) { a.shares.Custodians[2].Name = "" }}},
	{"custody-spare", nil, []func(*account){func(a *account) { a.shares.Threshold = 3 }}},
}

// outcome makes all checks, and returns the result of one.
func outcome(id string, k *key, a *account) (*Result, *Report) {
	r := &Report{Options: options(), Generated: now, Account: number}
	r.Options.Origins = []string{"AWS_KMS"}
	x := newRun(r)
	if k != nil {
		x.key(k)
	}
	x.account(a)
	i := slices.IndexFunc(r.Results, func(res *Result) bool { return res.ID == id })
	return r.Results[i], r
}

// Every check has a case that passes and one that fails, and every finding refers to evidence in
// the report.
func TestChecks(t *testing.T) {
	passed, failed := make(map[string]bool), make(map[string]bool)
	passing := func(res *Result) {
		t.Helper()
		passed[res.ID] = true
		if res.Status != Passed || len(res.Findings) != 0 || res.Looked != 1 {
			t.Errorf("%s: %s with %+v", res.ID, res.Status, res.Findings)
		}
	}
	failing := func(res *Result, r *Report) {
		t.Helper()
		failed[res.ID] = true
		if res.Status != Failed || len(res.Findings) == 0 {
			t.Errorf("%s: %s", res.ID, res.Status)
		}
		for _, f := range res.Findings {
			i := slices.IndexFunc(r.Evidence, func(e *Evidence) bool { return e.ID == f.Evidence })
			if i < 0 || r.Evidence[i].Text == "" || !strings.HasPrefix(r.Evidence[i].Command, "conclave ") || f.ShownBy() != r.Evidence[i].Title || f.Message == "" || f.Resource == "" {
				t.Errorf("%s: the finding %+v has no evidence", res.ID, f)
			}
		}
	}
	for _, c := range keyCases {
		for _, k := range c.pass {
			res, _ := outcome(c.check, k, goodAccount())
			passing(res)
		}
		for i, k := range c.fail {
			res, r := outcome(c.check, k, goodAccount())
			failing(res, r)
			for _, f := range res.Findings {
				if got := f.Statement; (got != nil) != (c.statement >= 0) || got != nil && *got != c.statement {
					t.Errorf("%s, %d: the statement is %v, want %d", c.check, i, got, c.statement)
				}
				if got := f.Record; (got != nil) != (c.record >= 0) || got != nil && int(*got) != c.record {
					t.Errorf("%s, %d: the record is %v, want %d", c.check, i, got, c.record)
				}
			}
		}
	}
	for _, c := range accountCases {
		for _, change := range append(c.pass, func(*account) {}) {
			res, _ := outcome(c.check, nil, goodAccount(change))
			passing(res)
		}
		for _, change := range c.fail {
			res, r := outcome(c.check, nil, goodAccount(change))
			failing(res, r)
		}
	}
	seen := make(map[string]bool)
	for _, c := range checks() {
		if !passed[c.id] || !failed[c.id] {
			t.Errorf("%s has no case that passes, or none that fails", c.id)
		}
		if seen[c.id] || c.title == "" || len(c.sources) == 0 || (c.key == nil) == (c.account == nil) {
			t.Errorf("the row of %s is wrong", c.id)
		}
		seen[c.id] = true
	}
}

// The report covers what it says it is for.
func TestSources(t *testing.T) {
	var all string
	for _, c := range checks() {
		all += strings.Join(c.sources, "\n") + "\n"
	}
	for _, s := range []string{
		"Security Hub KMS.1", "Security Hub KMS.2", "Security Hub KMS.3", "Security Hub KMS.4", "Security Hub KMS.5", "CIS AWS Foundations 5.0.0: rotation of symmetric",
		"CT.KMS.PR.1", "CT.KMS.PR.2", "CT.KMS.PR.3", "CT.KMS.PV.1", "CT.KMS.PV.3", "CT.KMS.PV.7", "PCI DSS 4.0.1 3.6.1", "PCI DSS 4.0.1 3.7.4", "PCI DSS 4.0.1 10.", "PCI DSS 4.0.1 12.3.3",
		"HIPAA 164.312(b)", "GDPR Article 17",
	} {
		if !strings.Contains(all, s) {
			t.Errorf("no check is for %s", s)
		}
	}
}

// What could not be read never passes, and fails --fail-on. A policy that cannot be parsed fails.
func TestUnreadable(t *testing.T) {
	hidden := goodKey(func(k *key) { k.lacks, k.policy = needPolicy, "" })
	for _, id := range []string{"key-policy-public", "key-grants-limited", "key-other-account", "key-lockout"} {
		res, r := outcome(id, hidden, goodAccount())
		if res.Status != Unreadable || res.Unread != 1 || res.Looked != 0 {
			t.Errorf("%s of a key whose policy is hidden: %s", id, res.Status)
		}
		if _, n := r.worst(Critical); n != 1 {
			t.Errorf("%d critical checks could not be made, want 1", n)
		}
		if res, _ := outcome(id, goodKey(policyOf(`{"Statement": 5}`)), goodAccount()); res.Status != Failed {
			t.Errorf("%s of a policy that is none: %s", id, res.Status)
		}
	}
	nothing := &key{meta: &kmspb.KeyMetadata{KeyId: proto.String("k"), Arn: proto.String("arn")}, lacks: needDescription}
	_, r := outcome("key-disabled", nothing, goodAccount())
	for _, res := range r.Results {
		if strings.HasPrefix(res.ID, "key-") && res.Status != Unreadable {
			t.Errorf("%s of a key of which nothing is known: %s", res.ID, res.Status)
		}
	}
	res, r := outcome("role-trust", nil, goodAccount(func(a *account) {
		a.identities = nil
		a.lacks = []lack{{needIdentities | needAccessKeys, Unreadable, "denied"}, {needFiles, NotChecked, "not given"}}
	}))
	if res.Status != Unreadable || res.Reason != "denied" {
		t.Errorf("without principals: %s, %s", res.Status, res.Reason)
	}
	if failed, unreadable := r.worst(Critical); failed != 0 || unreadable != 1 {
		t.Errorf("%d critical checks failed and %d could not be made, want only role-trust", failed, unreadable)
	}
	for least, want := range map[string]bool{"critical": true, "info": true} {
		if err := (&request{failOn: least}).verdict(r); (err != nil) != want {
			t.Errorf("--fail-on %s: %v", least, err)
		}
	}
	_, good := outcome("role-trust", goodKey(), goodAccount())
	if err := (&request{failOn: "info"}).verdict(good); err != nil {
		t.Errorf("everything passed, and --fail-on says: %v", err)
	}
}

func TestManyFindings(t *testing.T) {
	r := &Report{Options: options()}
	x := newRun(r)
	for i := range maxFindings + 7 {
		x.key(goodKey(state("Disabled"), func(k *key) { k.meta.KeyId = proto.String(fmt.Sprint(i)) }))
	}
	x.account(goodAccount())
	i := slices.IndexFunc(r.Results, func(res *Result) bool { return res.ID == "key-disabled" })
	if res := r.Results[i]; len(res.Findings) != maxFindings || res.Omitted != 7 || len(r.Evidence) != maxFindings {
		t.Errorf("%d findings, %d omitted, %d pieces of evidence", len(res.Findings), res.Omitted, len(r.Evidence))
	}
	if r.Inventory[0].Keys != maxFindings+7 || r.Inventory[0].Enabled != 0 {
		t.Errorf("the inventory has %+v", r.Inventory[0])
	}
}

// hostile is what somebody writes into every text that they choose.
const hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover=\"x'{{.}}\u202e\x1b[31m"

func TestHTML(t *testing.T) {
	raw, _ := json.Marshal(hostile)
	k := goodKey(state("Disabled"), func(k *key) { k.meta.Description = proto.String(hostile) },
		policyOf(with(`{"Sid": `+string(raw)+`, "Effect": "Allow", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"}`)))
	a := goodAccount(func(a *account) {
		a.shares.Custodians[0].Name = hostile
		a.shares.Threshold = 1
		a.identities.RoleDetailList[0].RoleName, a.identities.RoleDetailList[0].Arn = proto.String(hostile), proto.String("arn:"+hostile)
		a.identities.RoleDetailList[0].RoleLastUsed = nil
		a.accessKeys[0].user, a.accessKeys[0].created = hostile, time.Time{}
	})
	_, r := outcome("key-disabled", k, a)
	r.Caller, r.Server, r.Region, r.Custody = hostile, hostile, hostile, a.shares
	r.Erasures = []Erasure{{hostile, hostile, 4}}
	r.Inventory[0].Spec = hostile
	var out bytes.Buffer
	if err := r.writeHTML(&out); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	for _, bad := range []string{"<script", "<img", "\u202e", "\x1b", "ZgotmplZ", " onmouseover=\"", "http://", "https://", "@import", "url("} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if n := strings.Count(page, "&lt;script&gt;"); n < 8 {
		t.Errorf("hostile text is shown %d times", n)
	}
	// The style is the one that the policy of the page allows, and nothing else is.
	_, style, _ := strings.Cut(page, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	if style != css || strings.Count(page, "<style") != 1 || strings.Contains(page, " style=") {
		t.Error("the style of the page is not the one that its policy has the hash of")
	}
	if !regexp.MustCompile(`content="default-src &#39;none&#39;; base-uri &#39;none&#39;; form-action &#39;none&#39;; style-src &#39;sha256-[A-Za-z0-9&#;+/=]+&#39;"`).MatchString(page) {
		t.Error("the page has no content security policy")
	}
	// Every link within the page leads somewhere.
	ids := make(map[string]bool)
	for _, m := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		ids[m[1]] = true
	}
	links := regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(page, -1)
	for _, m := range links {
		if !strings.HasPrefix(m[1], "#") || !ids[strings.TrimPrefix(m[1], "#")] {
			t.Errorf("the link %s leads nowhere", m[1])
		}
	}
	if len(links) < len(r.Results)+4 {
		t.Errorf("there are %d links", len(links))
	}
	if !strings.Contains(page, "@media print") {
		t.Error("there is no style for print")
	}
}

func TestCBOM(t *testing.T) {
	r := &Report{Generated: now, Account: number, Version: "1"}
	var out bytes.Buffer
	b := newCBOM(&out, r)
	n := 0
	for s := range algorithms {
		usage := "SIGN_VERIFY"
		switch {
		case strings.HasPrefix(s, "HMAC"):
			usage = "GENERATE_VERIFY_MAC"
		case strings.HasPrefix(s, "ML_KEM"):
			usage = "ENCAPSULATE_DECAPSULATE"
		case s == "SYMMETRIC_DEFAULT":
			usage = "ENCRYPT_DECRYPT"
		}
		b.key(goodKey(spec(s, usage), func(k *key) {
			k.meta.Arn, k.meta.ValidTo = proto.String(fmt.Sprint("arn:", n)), daysAgo(-1)
		}))
		n++
	}
	b.key(goodKey(spec("RSA_2048", "ENCRYPT_DECRYPT"), func(k *key) { k.meta.Arn = proto.String("arn:e") }))
	b.key(goodKey(spec("NEW", "NEWER"), state("Unavailable"), func(k *key) { k.meta.Arn = proto.String("arn:n") }))
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	var bom struct {
		BOMFormat, SpecVersion, SerialNumber string
		Components                           []component
	}
	if err := json.Unmarshal(out.Bytes(), &bom); err != nil {
		t.Fatal(err)
	}
	if bom.BOMFormat != "CycloneDX" || bom.SpecVersion != "1.6" || !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(bom.SerialNumber) {
		t.Errorf("it is %s %s %s", bom.BOMFormat, bom.SpecVersion, bom.SerialNumber)
	}
	// The values that the specification allows.
	primitives := []string{"ae", "mac", "pke", "signature", "key-agree", "kem", "unknown"}
	functions := []string{"encrypt", "decrypt", "sign", "verify", "tag", "keyderive", "encapsulate", "decapsulate"}
	refs := make(map[string]bool)
	keys := 0
	for _, c := range bom.Components {
		if refs[c.Ref] || c.Type != "cryptographic-asset" {
			t.Errorf("%s is a %s, or there twice", c.Ref, c.Type)
		}
		refs[c.Ref] = true
		if p := c.Crypto.Algorithm; p != nil {
			if !slices.Contains(primitives, p.Primitive) || slices.ContainsFunc(p.Functions, func(f string) bool { return !slices.Contains(functions, f) }) || p.Level > 6 {
				t.Errorf("%s: %+v", c.Ref, p)
			}
		}
	}
	for _, c := range bom.Components {
		if p := c.Crypto.Material; p != nil {
			keys++
			if !refs[p.Algorithm] || !slices.Contains([]string{"private-key", "secret-key", "key"}, p.Type) || !slices.Contains([]string{"active", "suspended"}, p.State) {
				t.Errorf("%s: %+v", c.Ref, p)
			}
		}
	}
	if keys != len(algorithms)+2 || len(bom.Components) != keys+len(algorithms)+2 {
		t.Errorf("%d components, of which %d are keys", len(bom.Components), keys)
	}
}

func TestRecords(t *testing.T) {
	l := &records{keys: make(map[string]map[string]uint64)}
	line := func(index uint64, event, code, key string) {
		t.Helper()
		text := fmt.Sprintf(`{"eventName": %q, "eventTime": "2026-11-29T12:00:0%dZ", "errorCode": %q, "resources": [{"ARN": "arn:aws:kms:eu-west-1:111122223333:key/%s"}]}`, event, index%10, code, key)
		if err := l.add(&kmspb.ReadAuditResponse{Index: index, Json: text, Unopenable: event == "UnopenableRecord"}); err != nil {
			t.Fatal(err)
		}
	}
	line(4, "CreateKey", "", "a")
	line(5, "PutKeyPolicy", "AccessDenied", "a")
	line(6, "PutKeyPolicy", "", "a")
	line(7, "CreateKey", "", "b")
	line(8, "UnopenableRecord", "UnopenableRecord", "")
	line(10, "DeleteKey", "", "b")
	if l.keys["a"]["PutKeyPolicy"] != 6 || l.keys["a"]["CreateKey"] != 4 || l.keys["b"] != nil {
		t.Errorf("the records of keys are %v", l.keys)
	}
	if l.from != 4 || l.to != 11 || l.gaps != 1 || l.unopenable != 1 || l.firstBad != 8 || l.first.Second() != 4 {
		t.Errorf("it is %+v", l)
	}
	if len(l.erasures) != 1 || l.erasures[0].Record != 10 {
		t.Errorf("the erasures are %v", l.erasures)
	}
	if err := l.add(&kmspb.ReadAuditResponse{Index: 11, Json: "{"}); err == nil {
		t.Error("a record that is no JSON is accepted")
	}
}

// docs/report.md has the table of the checks.
func TestPageHasChecks(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/report.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks() {
		if row := fmt.Sprintf("| `%s` | %s | %s | %s |\n", c.id, c.title, c.severity, strings.Join(c.sources, "; ")); !strings.Contains(string(page), row) {
			t.Errorf("docs/report.md lacks the row %s", row)
		}
	}
	if n := strings.Count(string(page), "\n| `"); n != len(checks()) {
		t.Errorf("docs/report.md has %d checks, want %d", n, len(checks()))
	}
}
