package access

import (
	"bytes"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/iampb"
)

// visitAll calls visit with all commands.
func visitAll(cmd *cobra.Command, visit func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		visit(c)
		visitAll(c, visit)
	}
}

// TestEveryOperationHasACommand takes the operations from the descriptions of the services.
func TestEveryOperationHasACommand(t *testing.T) {
	t.Parallel()
	// Operations without a command, with the reason.
	without := map[string]string{
		"GetContextKeysForCustomPolicy":    "policy lint reads documents itself",
		"GetContextKeysForPrincipalPolicy": "policy simulate says which keys were missing",
	}
	without["UpdateRoleDescription"] = "role update sets the description by UpdateRole"
	const empty = "Conclave has none of these; the operation is there for tools that list them"
	for _, op := range []string{
		"ListSSHPublicKeys", "ListVirtualMFADevices", "ListMFADevices", "ListSigningCertificates", "ListServiceSpecificCredentials", "ListInstanceProfilesForRole",
		"ListInstanceProfiles", "ListServerCertificates", "ListSAMLProviders", "DeleteLoginProfile", "GetLoginProfile",
	} {
		without[op] = empty
	}
	called := make(map[string]bool)
	root := new(cobra.Command)
	root.AddCommand(Commands(new(cli.App))...)
	visitAll(root, func(c *cobra.Command) {
		for _, op := range strings.Fields(c.Annotations[operations]) {
			called[op] = true
		}
	})
	for _, s := range services {
		for i := range s.Methods().Len() {
			op := string(s.Methods().Get(i).Name())
			if called[op] == (without[op] != "") {
				t.Errorf("%s: called %v, exempt %q", op, called[op], without[op])
			}
			delete(called, op)
		}
	}
	if len(called) > 0 {
		t.Errorf("the services have no %v", slices.Sorted(maps.Keys(called)))
	}
}

// TestTemplates decides requests by each template: it allows what it says, on its key only.
func TestTemplates(t *testing.T) {
	t.Parallel()
	const key, other = "arn:aws:kms:us-east-1:111122223333:key/k", "arn:aws:kms:us-east-1:111122223333:key/l"
	const alias = "arn:aws:kms:us-east-1:111122223333:alias/a"
	who, err := policy.ParsePrincipal("arn:aws:iam::111122223333:user/alice")
	if err != nil {
		t.Fatal(err)
	}
	keyPolicy, err := policy.Parse(policy.KeyPolicy, []byte(policy.DefaultKeyPolicy("aws", "111122223333")))
	if err != nil {
		t.Fatal(err)
	}
	allowed := func(doc, action, resource string) bool {
		d, err := policy.Parse(policy.IdentityPolicy, []byte(doc))
		if err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		p := policy.Policies{Identity: []*policy.Document{d}}
		if strings.Contains(resource, ":key/") {
			p.Resource = keyPolicy
		}
		return policy.Evaluate(policy.Request{Principal: who, Action: action, Resource: resource}, p).Allowed()
	}
	yes := map[string]string{
		"use-key":      "Encrypt Decrypt ReEncryptFrom ReEncryptTo GenerateDataKey GenerateDataKeyWithoutPlaintext GenerateDataKeyPair DescribeKey",
		"encrypt-only": "Encrypt ReEncryptTo GenerateDataKey DescribeKey",
		"decrypt-only": "Decrypt DescribeKey",
		"sign":         "Sign GenerateMac GetPublicKey DescribeKey",
		"verify":       "Verify VerifyMac GetPublicKey DescribeKey",
		"admin-key":    "PutKeyPolicy EnableKey DisableKey ScheduleKeyDeletion TagResource GetKeyPolicy ListGrants RevokeGrant CreateAlias",
		"read-only":    "DescribeKey GetKeyPolicy ListGrants GetPublicKey",
		"auditor":      "", "admin": "",
	}
	all := strings.Fields("Encrypt Decrypt ReEncryptFrom ReEncryptTo GenerateDataKey Sign Verify GenerateMac VerifyMac DeriveSharedSecret PutKeyPolicy CreateGrant ScheduleKeyDeletion DisableKey CreateAlias")
	for _, tpl := range templates {
		want, ok := yes[tpl.name]
		if !ok {
			t.Errorf("no test for %s", tpl.name)
		}
		if tpl.managed != "" {
			if _, ok := policy.AWSManaged("arn:aws:iam::aws:policy/" + tpl.managed); !ok {
				t.Errorf("%s: AWS has no policy %s", tpl.name, tpl.managed)
			}
			continue
		}
		doc, err := tpl.document(key)
		if err != nil {
			t.Fatal(err)
		}
		for _, action := range strings.Fields(want) {
			if !allowed(doc, "kms:"+action, key) {
				t.Errorf("%s does not allow %s", tpl.name, action)
			}
			if tpl.key && allowed(doc, "kms:"+action, other) {
				t.Errorf("%s allows %s on another key", tpl.name, action)
			}
		}
		for _, action := range all {
			if !slices.Contains(strings.Fields(want), action) && allowed(doc, "kms:"+action, key) {
				t.Errorf("%s allows %s", tpl.name, action)
			}
		}
		if got := allowed(doc, "kms:CreateAlias", alias); got != (tpl.name == "admin-key") {
			t.Errorf("%s allows CreateAlias on an alias: %v", tpl.name, got)
		}
		if got := allowed(doc, "conclave:ReadAudit", "*"); got != (tpl.name == "auditor") {
			t.Errorf("%s allows ReadAudit: %v", tpl.name, got)
		}
		for _, action := range []string{"iam:CreateUser", "iam:PutUserPolicy", "sts:AssumeRole", "kms:CreateKey"} {
			if allowed(doc, action, "*") {
				t.Errorf("%s allows %s", tpl.name, action)
			}
		}
	}
}

func TestTemplateFlags(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		flags templateFlags
		want  string // the template, or what the error says
	}{
		{templateFlags{}, ""},
		{templateFlags{policy: "use-key", key: "x"}, "use-key"},
		{templateFlags{policy: "auditor"}, "auditor"},
		{templateFlags{policy: "use-key"}, "give it with --key"},
		{templateFlags{policy: "auditor", key: "x"}, "for no key"},
		{templateFlags{policy: "nonsense"}, "no template"},
		{templateFlags{key: "x"}, "--key is for --policy"},
	} {
		tpl, err := tt.flags.template()
		switch {
		case err != nil:
			if !strings.Contains(err.Error(), tt.want) || tt.want == "" {
				t.Errorf("%+v: %v, want %q", tt.flags, err, tt.want)
			}
		case tpl == nil && tt.want != "" || tpl != nil && tpl.name != tt.want:
			t.Errorf("%+v: %v, want %q", tt.flags, tpl, tt.want)
		}
	}
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]policy.Kind{
		`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`:                             policy.IdentityPolicy,
		`{"Statement":[{"Principal":"*","Action":"kms:*","Resource":"*"}]}`:                        policy.KeyPolicy,
		`{"Statement":[{"NotPrincipal":"*","NotAction":"sts:*","Resource":"*"}]}`:                  policy.KeyPolicy,
		`{"Statement":{"Principal":{"AWS":"1"},"Action":["sts:AssumeRole","STS:TagSession"]}}`:     policy.TrustPolicy,
		`{"Statement":[{"Principal":"*","Action":"sts:AssumeRole"},{"Principal":"*","Action":1}]}`: policy.KeyPolicy,
		``: policy.IdentityPolicy, `{"Statement":1}`: policy.IdentityPolicy,
	} {
		if got := kindOf([]byte(doc)); got != want {
			t.Errorf("%s is a %v, want %v", doc, got, want)
		}
	}
}

func TestTrustPolicy(t *testing.T) {
	t.Parallel()
	doc, err := trustPolicy([]string{"arn:aws:iam::111122223333:root", "arn:aws:iam::111122223333:user/a"}, `7f"3a`)
	if err != nil {
		t.Fatal(err)
	}
	d, err := policy.Parse(policy.TrustPolicy, []byte(doc))
	if err != nil || len(d.Principals()) != 2 || !slices.Equal(d.ContextKeys(), []string{"sts:ExternalId"}) {
		t.Errorf("%v\n%s", err, doc)
	}
	if doc, err = trustPolicy([]string{"arn:aws:iam::111122223333:root"}, ""); err != nil || strings.Contains(doc, "Condition") {
		t.Errorf("without an external id: %v\n%s", err, doc)
	}
}

func TestContextEntries(t *testing.T) {
	t.Parallel()
	got, err := contextEntries([]string{"aws:TagKeys=a", "aws:SourceIp=192.0.2.7", "AWS:tagkeys=b=c"})
	if err != nil || len(got) != 2 || !slices.Equal(got[0].GetContextKeyValues(), []string{"a", "b=c"}) || got[0].GetContextKeyType() != "stringList" || got[1].GetContextKeyType() != "string" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"x", "=y"} {
		if _, err := contextEntries([]string{bad}); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestExports has a real shell read temporary credentials.
func TestExports(t *testing.T) {
	t.Parallel()
	cr := &iampb.Credentials{
		AccessKeyId: proto.String("ASIAX"), SecretAccessKey: proto.String("a/b+c'd"), SessionToken: proto.String("t$(x)"), Expiration: timestamppb.New(time.Unix(1, 0)),
	}
	var out bytes.Buffer
	if err := writeExports(&out, cr); err != nil {
		t.Fatal(err)
	}
	sh := exec.Command("sh", "-c", `eval "$LINES"; printf '%s|' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" "$AWS_SESSION_TOKEN" "${CONCLAVE_ACCESS_KEY_ID-none}"`)
	sh.Env = []string{"LINES=" + out.String(), "CONCLAVE_ACCESS_KEY_ID=other"}
	got, err := sh.Output()
	if err != nil || string(got) != "ASIAX|a/b+c'd|t$(x)|none|" {
		t.Errorf("a shell reads %q, %v", got, err)
	}
}

func TestPastTime(t *testing.T) {
	t.Parallel()
	if at, err := pastTime("since", "2026-01-02T03:04:05Z"); err != nil || at.Unix() != 1767323045 {
		t.Errorf("got %v, %v", at, err)
	}
	if at, err := pastTime("since", "1h"); err != nil || time.Since(at) < time.Hour || time.Since(at) > 2*time.Hour {
		t.Errorf("got %v, %v", at, err)
	}
	if _, err := pastTime("since", "yesterday"); err == nil {
		t.Error("no error")
	}
}

// TestExplanation reads a decoded message in AWS's form, and one in another.
func TestExplanation(t *testing.T) {
	t.Parallel()
	const aws = `{"allowed":false,"explicitDeny":true,"matchedStatements":{"items":[{"statementId":"NoVPC","effect":"DENY"}]},"failures":{"items":[]},
		"context":{"principal":{"id":"AIDAX","arn":"arn:aws:iam::111122223333:user/alice"},"action":"kms:Encrypt","resource":"arn:x",
		"conditions":{"items":[{"key":"aws:SourceIp","values":{"items":[{"value":"192.0.2.7"}]}}]}},"reason":"\u001b[31mkey policy"}`
	for _, tt := range []struct {
		raw  string
		want []string
	}{
		{aws, []string{"decision\tdenied by a statement\n", "principal\tarn:aws:iam::111122223333:user/alice\n", "context\taws:SourceIp = 192.0.2.7\n", `"statementId":"NoVPC"`, `reason`}},
		{strings.Replace(aws, `"explicitDeny":true`, `"explicitDeny":false`, 1), []string{"decision\tdenied: no policy allows it\n"}},
		{`{"other":1}`, []string{"{\n  \"other\": 1\n}\n"}},
	} {
		var out bytes.Buffer
		explanation(&out, []byte(tt.raw))
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in:\n%s", want, &out)
			}
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Errorf("a terminal would obey:\n%s", &out)
		}
	}
}

func TestStatementsText(t *testing.T) {
	t.Parallel()
	r := &iampb.EvaluationResult{
		MatchedStatements: []*iampb.Statement{
			{SourcePolicyId: proto.String("user_alice_own"), StartPosition: &iampb.Position{Line: proto.Int32(3)}}, {SourcePolicyId: proto.String("limit")},
		},
		PermissionsBoundaryDecisionDetail: &iampb.PermissionsBoundaryDecisionDetail{AllowedByPermissionsBoundary: proto.Bool(false)},
	}
	if got, want := statementsText(r), "user_alice_own line 3, limit, outside of the permissions boundary"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
