package keyengine

import (
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	absent := "12345678-1234-1234-1234-1234567890ab"
	prefix := "arn:aws:kms:eu-west-1:111122223333:"
	must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/a"), TargetKeyId: &id})
	multi := "mrk-" + strings.Repeat("0a", 16)
	n := &fsmpb.Key{
		Account: uint64(testAccountNumber), Id: []byte(strings.Repeat("\x0a", 16)), Region: testRegion, MultiRegion: true, PrimaryRegion: testRegion, Spec: kmsapi.SpecSymmetric, Usage: kmsapi.UsageEncrypt, Origin: kmsapi.OriginKMS,
		State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: n}}, &fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{
		Account: uint64(testAccountNumber), Key: n.Id, Region: n.Region, Document: policyDocument(rootStatement)}}})
	plain := "0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a"

	tests := []struct {
		given   string
		aliases bool // whether the answer with aliases allowed is the same
		kind    *kmsapi.Error
		message string
	}{
		{id, true, nil, arn},
		{arn, true, nil, arn},
		{multi, true, nil, prefix + "key/" + multi},
		{prefix + "key/" + multi, true, nil, prefix + "key/" + multi},
		{plain, true, kmsapi.ErrNotFound, "Key '" + prefix + "key/" + plain + "' does not exist"},
		{"mrk-" + strings.ReplaceAll(id, "-", ""), true, kmsapi.ErrNotFound, "Key '" + prefix + "key/mrk-" + strings.ReplaceAll(id, "-", "") + "' does not exist"},
		{absent, true, kmsapi.ErrNotFound, "Key '" + prefix + "key/" + absent + "' does not exist"},
		{prefix + "key/" + absent, true, kmsapi.ErrNotFound, "Key '" + prefix + "key/" + absent + "' does not exist"},
		{strings.ToUpper(id), true, kmsapi.ErrNotFound, "Key '" + prefix + "key/" + strings.ToUpper(id) + "' does not exist"},
		{prefix + "key/" + strings.ToUpper(id), true, kmsapi.ErrNotFound, "Key '" + prefix + "key/" + strings.ToUpper(id) + "' does not exist"},
		{strings.ReplaceAll(id, "-", ""), true, kmsapi.ErrNotFound, "Invalid keyId '" + strings.ReplaceAll(id, "-", "") + "'"},
		{id + "0", true, kmsapi.ErrNotFound, "Invalid keyId '" + id + "0'"},
		{"mrk-0a", true, kmsapi.ErrNotFound, "Invalid keyId 'mrk-0a'"},
		{multi + "0", true, kmsapi.ErrNotFound, "Invalid keyId '" + multi + "0'"},
		{strings.Replace(multi, "0a", "0A", 1), true, kmsapi.ErrNotFound, "Key '" + prefix + "key/" + strings.Replace(multi, "0a", "0A", 1) + "' does not exist"},
		{"key/" + id, true, kmsapi.ErrNotFound, "Invalid keyId 'key/" + id + "'"},
		{"x", true, kmsapi.ErrNotFound, "Invalid keyId 'x'"},
		{"Alias/a", true, kmsapi.ErrNotFound, "Invalid keyId 'Alias/a'"},
		{"alias/a", false, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation."},
		{"alias/none", false, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation."},
		{prefix + "alias/a", false, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation."},
		{"arn:aws:kms:us-east-1:444455556666:alias/a", false, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation."},
		{prefix + "key/alias/a", true, kmsapi.ErrNotFound, "Invalid keyId alias/a"},
		{prefix + "key/x", true, kmsapi.ErrNotFound, "Invalid keyId x"},
		{prefix + "grant/x", true, kmsapi.ErrNotFound, "Invalid keyId '" + prefix + "grant/x'"},
		{"arn:aws:kms:us-east-1:111122223333:key/" + id, true, kmsapi.ErrNotFound, "Invalid arn us-east-1"},
		{"arn:aws:kms:us-east-1:444455556666:key/" + id, true, kmsapi.ErrNotFound, "Invalid arn us-east-1"},
		{"arn:aws:kms:eu-west-1:444455556666:key/" + id, true, kmsapi.ErrAccessDenied,
			"User: arn:aws:iam::111122223333:root is not authorized to perform: kms:DescribeKey on resource: arn:aws:kms:eu-west-1:444455556666:key/" + id +
				" because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access"},
		{"arn:aws:s3:eu-west-1:111122223333:key/" + id, true, kmsapi.ErrInvalidArn, "Invalid arn arn:aws:s3:eu-west-1:111122223333:key/" + id},
		{"arn:aws-cn:kms:eu-west-1:111122223333:key/" + id, true, kmsapi.ErrInvalidArn, "Invalid arn arn:aws-cn:kms:eu-west-1:111122223333:key/" + id},
		{"arn:aws:kms", true, kmsapi.ErrInvalidArn, "Invalid arn arn:aws:kms"},
	}
	for _, tt := range tests {
		t.Run(tt.given, func(t *testing.T) {
			for _, f := range []request.Forms{request.KeyForms, request.AnyForm} {
				if f == request.AnyForm && !tt.aliases {
					continue
				}
				ev := &request.Evaluation{Ctx: t.Context(), Services: c.engine.services, State: c.State(), Caller: c.caller(c.root), Op: OperationNamed(KMS, "DescribeKey")}
				if err := ev.Admit(); err != nil {
					t.Fatal(err)
				}
				got, err := ev.Resolve(tt.given, f, "kms:DescribeKey")
				if tt.kind == nil {
					if err != nil || got.ARN != tt.message {
						t.Errorf("got ARN %v, error %v; want %s", got, err, tt.message)
					}
					continue
				}
				wantError(t, err, tt.kind, tt.message)
			}
		})
	}
	for _, given := range []string{"alias/a", prefix + "alias/a"} {
		if got := must[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &given}); *got.KeyMetadata.Arn != arn {
			t.Errorf("%s is key %s, want %s", given, *got.KeyMetadata.Arn, arn)
		}
	}
	for _, given := range []string{"alias/b", prefix + "alias/b"} {
		_, err := call[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &given})
		wantError(t, err, kmsapi.ErrNotFound, "Alias "+prefix+"alias/b is not found.")
	}
}

func TestRegion(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	ask := func(region string) error {
		caller := c.caller(c.root)
		caller.Region = region
		_, err := c.engine.Do(t.Context(), caller, OperationNamed(KMS, "DescribeKey"), &kmsapi.DescribeKeyInput{KeyId: &id})
		return err
	}
	for _, region := range []string{"", testRegion} {
		if err := ask(region); err != nil {
			t.Errorf("for Region %q: %v", region, err)
		}
	}
	wantError(t, ask("us-east-1"), kmsapi.ErrInvalidSignature, "Credential should be scoped to a valid region, not 'us-east-1'.")
	c.acceptAnyRegion()
	if err := ask("us-east-1"); err != nil {
		t.Errorf("with AnyRegion: %v", err)
	}
}

// The cluster's record is that of the given state, also after a newer state was applied.
func TestClusterOfAState(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	before := c.State()
	was, _ := before.Cluster()
	c.acceptAnyRegion()
	if got := c.engine.cluster(c.State()); got == nil || !got.AnyRegion {
		t.Errorf("got cluster %v of the newest state, want AnyRegion", got)
	}
	if got := c.engine.cluster(before); got != was {
		t.Errorf("got cluster %v of the older state, want %v", got, was)
	}
}
