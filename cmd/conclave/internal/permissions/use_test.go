package permissions

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/policy"
)

// line is a record of the audit log. resources are type=ARN.
func line(source, name, principal, more string, resources ...string) string {
	var list []string
	for _, r := range resources {
		typ, arn, _ := strings.Cut(r, "=")
		list = append(list, fmt.Sprintf(`{"type":%q,"ARN":%q}`, typ, arn))
	}
	return fmt.Sprintf(`{"userIdentity":{"arn":%q},"eventTime":"2026-01-02T03:04:05Z","eventSource":%q,"eventName":%q,"resources":[%s]%s}`,
		principal, source, name, strings.Join(list, ","), more)
}

func TestUse(t *testing.T) {
	t.Parallel()
	const (
		alice = iamARN + "user/alice"
		kms   = "kms.amazonaws.com"
		key   = "AWS::KMS::Key=" + keyARN
		other = "AWS::KMS::Key=" + keyARN + "-2"
		alias = "AWS::KMS::Alias=arn:aws:kms:us-east-1:" + account + ":alias/x"
		role  = "AWS::IAM::Role=" + iamARN + "role/app"
	)
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"an alias that names the key", []string{line(kms, "Encrypt", alice, "", key, alias)}, "kms:Encrypt " + keyARN},
		{"an alias itself", []string{line(kms, "CreateAlias", alice, "", key, alias)}, "kms:CreateAlias arn:aws:kms:us-east-1:" + account + ":alias/x " + keyARN},
		{"the same resources", []string{line(kms, "Encrypt", alice, "", key), line(kms, "Decrypt", alice, "", key), line(kms, "Encrypt", alice, "", key)}, "kms:Decrypt kms:Encrypt " + keyARN},
		{"other resources", []string{line(kms, "Encrypt", alice, "", key), line(kms, "Decrypt", alice, "", key), line(kms, "Decrypt", alice, "", other)},
			"kms:Decrypt " + keyARN + " " + keyARN + "-2; kms:Encrypt " + keyARN},
		{"from one key to another", []string{line(kms, "ReEncrypt", alice, "", key, other)}, "kms:ReEncryptFrom " + keyARN + "; kms:ReEncryptTo " + keyARN + "-2"},
		{"to the same key", []string{line(kms, "ReEncrypt", alice, "", key)}, "kms:ReEncryptFrom kms:ReEncryptTo " + keyARN},
		{"a new key with tags", []string{line(kms, "CreateKey", alice, `,"requestParameters":{"tags":[{"tagKey":"a"}]}`, key)}, "kms:CreateKey kms:TagResource *"},
		{"a new key without tags", []string{line(kms, "CreateKey", alice, `,"requestParameters":{"tags":[]}`, key)}, "kms:CreateKey *"},
		{"a replica", []string{line(kms, "ReplicateKey", alice, "", key)}, "kms:CreateKey *; kms:ReplicateKey " + keyARN},
		{"a role with tags", []string{line("sts.amazonaws.com", "AssumeRole", alice, `,"requestParameters":{"tags":[{"key":"a"}],"sourceIdentity":"x"}`, role)},
			"sts:AssumeRole sts:SetSourceIdentity sts:TagSession " + iamARN + "role/app"},
		{"without resources", []string{line("iam.amazonaws.com", "ListUsers", alice, "")}, "iam:ListUsers *"},
		{"the audit log", []string{line("conclave", "ReadAudit", alice, ""), line("conclave", "CreateSession", alice, "")}, "conclave:ReadAudit *"},
		{"no permission needed", []string{line("sts.amazonaws.com", "GetCallerIdentity", alice, "")}, ""},
		{"refused", []string{line(kms, "Encrypt", alice, `,"errorCode":"AccessDenied"`, key)}, ""},
		{"another principal", []string{line(kms, "Encrypt", alice+"s", "", key)}, ""},
		{"before", []string{strings.Replace(line(kms, "Encrypt", alice, "", key), "03:04:05Z", "03:04:04Z", 1)}, ""},
		{"not a record", []string{"{", "[]", strings.Replace(line(kms, "Encrypt", alice, "", key), "2026-01-02T", "", 1)}, ""},
	} {
		var u Use
		for _, l := range tt.lines {
			u.Add(l, alice, since)
		}
		doc, err := u.Policy()
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Statement []Statement }
		if err := json.Unmarshal([]byte(doc), &got); err != nil {
			t.Fatal(err)
		}
		var parts []string
		for _, s := range got.Statement {
			parts = append(parts, strings.Join(append(s.Action, s.Resource...), " "))
		}
		if diff := cmp.Diff(tt.want, strings.Join(parts, "; ")); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tt.name, diff)
		}
		if (u.Requests > 0) != (tt.want != "") {
			t.Errorf("%s: %d requests", tt.name, u.Requests)
		}
		if tt.want == "" {
			continue
		}
		if _, err := policy.Parse(policy.IdentityPolicy, []byte(doc)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestUseOfRoles: what the sessions of a role do, the role does.
func TestUseOfRoles(t *testing.T) {
	t.Parallel()
	session := strings.Replace(line("kms.amazonaws.com", "ListKeys", "arn:aws:sts::"+account+":assumed-role/app/x", ""),
		`"userIdentity":{`, `"userIdentity":{"sessionContext":{"sessionIssuer":{"arn":"`+iamARN+`role/eng/app"}},`, 1)
	for principal, want := range map[string]int{
		iamARN + "role/eng/app": 1, "arn:aws:sts::" + account + ":assumed-role/app/x": 1, iamARN + "role/app": 0, "": 0,
	} {
		var u Use
		u.Add(session, principal, time.Time{})
		if u.Requests != want {
			t.Errorf("%q: %d requests, want %d", principal, u.Requests, want)
		}
	}
}
