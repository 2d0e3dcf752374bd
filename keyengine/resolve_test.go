package keyengine

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func TestResolve(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	absent := "12345678-1234-1234-1234-1234567890ab"
	prefix := "arn:aws:kms:eu-west-1:111122223333:"
	must[request.None](r, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/a"), TargetKeyId: &id})
	multi := "mrk-" + strings.Repeat("0a", 16)
	n := &fsmpb.Key{
		Account: uint64(testAccountNumber), Id: []byte(strings.Repeat("\x0a", 16)), Region: testRegion, MultiRegion: true, PrimaryRegion: testRegion, Spec: kmsapi.SpecSymmetric, Usage: kmsapi.UsageEncrypt, Origin: kmsapi.OriginKMS,
		State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: n}}, &fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{
		Account: uint64(testAccountNumber), Key: n.Id, Region: n.Region, Document: r.policyFor(rootStatement)}}})
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
				ev := &request.Evaluation{Services: r.first.services, State: r.cluster.state(), Caller: r.caller(r.root), Op: OperationNamed("DescribeKey")}
				got, err := ev.Resolve(tt.given, f, "kms:DescribeKey")
				if tt.kind == nil {
					if err != nil || got.ARN != tt.message {
						t.Errorf("got %v, %v, want %s", got, err, tt.message)
					}
					continue
				}
				wantError(t, err, tt.kind, tt.message)
			}
		})
	}
	for _, given := range []string{"alias/a", prefix + "alias/a"} {
		if got := must[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &given}); *got.KeyMetadata.Arn != arn {
			t.Errorf("%s is %s", given, *got.KeyMetadata.Arn)
		}
	}
	for _, given := range []string{"alias/b", prefix + "alias/b"} {
		_, err := call[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &given})
		wantError(t, err, kmsapi.ErrNotFound, "Alias "+prefix+"alias/b is not found.")
	}
}

func TestKeyIDText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := fsm.KeyID{ID: [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))}
		multi := rapid.Bool().Draw(t, "multi-Region")
		got, m, ok := request.ParseKeyID(request.FormatKeyID(id.ID, multi))
		if !ok || got != id.ID || m != multi {
			t.Fatalf("%s reads as %x, %v, %v", request.FormatKeyID(id.ID, multi), got, m, ok)
		}
	})
}

// FuzzParseKeyID: there is one spelling of a key id.
func FuzzParseKeyID(f *testing.F) {
	f.Add("12345678-1234-1234-1234-1234567890ab")
	f.Add("mrk-1234567890abcdef1234567890abcdef")
	f.Add("mrk-1234-234-1234-1234-1234567890ab")
	f.Fuzz(func(t *testing.T, s string) {
		if id, multi, ok := request.ParseKeyID(s); ok && request.FormatKeyID(id, multi) != s {
			t.Errorf("%q is taken for %s", s, request.FormatKeyID(id, multi))
		}
	})
}

func TestRegion(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	ask := func(region string) error {
		c := r.caller(r.root)
		c.Region = region
		_, err := r.first.Do(t.Context(), c, OperationNamed("DescribeKey"), &kmsapi.DescribeKeyInput{KeyId: &id})
		return err
	}
	for _, region := range []string{"", testRegion} {
		if err := ask(region); err != nil {
			t.Errorf("in Region %q: %v", region, err)
		}
	}
	wantError(t, ask("us-east-1"), kmsapi.ErrInvalidSignature, "Credential should be scoped to a valid region, not 'us-east-1'.")
	was, _ := r.cluster.state().Cluster()
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: anyRegion(was)}})
	if err := ask("us-east-1"); err != nil {
		t.Errorf("where any Region is taken: %v", err)
	}
}

// The cluster is that of the state that is asked, also when a newer one was applied
// meanwhile.
func TestClusterOfAState(t *testing.T) {
	r := newRoom(t)
	before := r.cluster.state()
	was, _ := before.Cluster()
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: anyRegion(was)}})
	if got := r.first.cluster(r.cluster.state()); got == nil || !got.AnyRegion {
		t.Errorf("the newest state has %v", got)
	}
	if got := r.first.cluster(before); got != was {
		t.Errorf("the state before has %v", got)
	}
}
