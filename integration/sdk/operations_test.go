package sdk

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/integration/harness"
)

const otherRegion = "eu-test-2"

// sdkOperations has a row for each operation of AWS's Go SDK. A row uses its
// operation for what it is there for, and looks at what came of it.
var sdkOperations = []struct {
	name string
	run  func(*sdkRound)
}{
	{"CreateKey", sdkCreateKey},
	{"DescribeKey", sdkDescribeKey},
	{"ListKeys", sdkListKeys},
	{"UpdateKeyDescription", sdkUpdateKeyDescription},
	{"EnableKey", sdkEnableKey},
	{"DisableKey", sdkDisableKey},
	{"ScheduleKeyDeletion", sdkScheduleKeyDeletion},
	{"CancelKeyDeletion", sdkCancelKeyDeletion},
	{"GetKeyLastUsage", sdkGetKeyLastUsage},
	{"CreateAlias", sdkCreateAlias},
	{"UpdateAlias", sdkUpdateAlias},
	{"DeleteAlias", sdkDeleteAlias},
	{"ListAliases", sdkListAliases},
	{"TagResource", sdkTagResource},
	{"UntagResource", sdkUntagResource},
	{"ListResourceTags", sdkListResourceTags},
	{"GetKeyPolicy", sdkGetKeyPolicy},
	{"PutKeyPolicy", sdkPutKeyPolicy},
	{"ListKeyPolicies", sdkListKeyPolicies},
	{"Encrypt", sdkEncrypt},
	{"Decrypt", sdkDecrypt},
	{"ReEncrypt", sdkReEncrypt},
	{"GenerateDataKey", sdkGenerateDataKey},
	{"GenerateDataKeyWithoutPlaintext", sdkGenerateDataKeyWithoutPlaintext},
	{"GenerateDataKeyPair", sdkGenerateDataKeyPair},
	{"GenerateDataKeyPairWithoutPlaintext", sdkGenerateDataKeyPairWithoutPlaintext},
	{"GenerateRandom", sdkGenerateRandom},
	{"Sign", sdkSign},
	{"Verify", sdkVerify},
	{"GetPublicKey", sdkGetPublicKey},
	{"GenerateMac", sdkGenerateMac},
	{"VerifyMac", sdkVerifyMac},
	{"DeriveSharedSecret", sdkDeriveSharedSecret},
	{"Encapsulate", sdkEncapsulate},
	{"Decapsulate", sdkDecapsulate},
	{"EnableKeyRotation", sdkEnableKeyRotation},
	{"DisableKeyRotation", sdkDisableKeyRotation},
	{"GetKeyRotationStatus", sdkGetKeyRotationStatus},
	{"RotateKeyOnDemand", sdkRotateKeyOnDemand},
	{"ListKeyRotations", sdkListKeyRotations},
	{"GetParametersForImport", sdkGetParametersForImport},
	{"ImportKeyMaterial", sdkImportKeyMaterial},
	{"DeleteImportedKeyMaterial", sdkDeleteImportedKeyMaterial},
	{"ReplicateKey", sdkReplicateKey},
	{"UpdatePrimaryRegion", sdkUpdatePrimaryRegion},
	{"CreateGrant", sdkCreateGrant},
	{"ListGrants", sdkListGrants},
	{"ListRetirableGrants", sdkListRetirableGrants},
	{"RetireGrant", sdkRetireGrant},
	{"RevokeGrant", sdkRevokeGrant},
	{"CreateCustomKeyStore", sdkCreateCustomKeyStore},
	{"ConnectCustomKeyStore", sdkConnectCustomKeyStore},
	{"DescribeCustomKeyStores", sdkDescribeCustomKeyStores},
	{"UpdateCustomKeyStore", sdkUpdateCustomKeyStore},
	{"DisconnectCustomKeyStore", sdkDisconnectCustomKeyStore},
	{"DeleteCustomKeyStore", sdkDeleteCustomKeyStore},
}

// TestAWSSDKAllOperations calls every operation of AWS's Go SDK on three nodes,
// each call on another one than the call before, so that whatever a call did has
// to be there on the next node at once.
func TestAWSSDKAllOperations(t *testing.T) {
	t.Parallel()
	r := &sdkRound{T: t, c: harness.NewCluster(t, 3, harness.Options{Regions: []string{harness.Region, otherRegion}, Configure: harness.TrustStores(t)}), done: make(map[string]bool)}
	r.c.MakePrincipals("user/grantee", "user/retirer")
	var named []string
	for _, op := range sdkOperations {
		named = append(named, op.name)
		t.Run(op.name, func(t *testing.T) {
			r.T = t
			delete(r.done, op.name)
			op.run(r)
			if !r.done[op.name] && !t.Failed() {
				t.Errorf("its row does not call %s", op.name)
			}
		})
	}
	r.T = t
	slices.Sort(named)
	if diff := cmp.Diff(operationsOfSDK(), named); diff != "" {
		t.Errorf("the table is not what the SDK has (-SDK +table):\n%s", diff)
	}
	r.c.NoFaults()
}

// operationsOfSDK are the methods of the SDK's client that are operations,
// ascending.
func operationsOfSDK() []string {
	var names []string
	client := reflect.TypeFor[*kms.Client]()
	for i := range client.NumMethod() {
		if name := client.Method(i).Name; name != "Options" {
			names = append(names, name)
		}
	}
	return names
}

// sdkRound is where the rows do their work.
type sdkRound struct {
	*testing.T // of the row
	c          *harness.Cluster
	calls      int
	done       map[string]bool // operations that succeeded
}

// next is the SDK on the node whose turn it is.
func (r *sdkRound) next() *kms.Client {
	r.calls++
	return r.c.Nodes[r.calls%len(r.c.Nodes)].SDK()
}

func errorCode(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

type sdkMethod[In, Out any] func(*kms.Client, context.Context, *In, ...func(*kms.Options)) (*Out, error)

// call calls an operation on the next node; it has to succeed.
func call[In, Out any](r *sdkRound, op sdkMethod[In, Out], in *In, opts ...func(*kms.Options)) *Out {
	r.Helper()
	name := strings.TrimSuffix(reflect.TypeFor[In]().Name(), "Input")
	out, err := op(r.next(), r.Context(), in, opts...)
	if err != nil {
		r.Fatalf("%s: %v", name, err)
	}
	r.done[name] = true
	return out
}

// refused calls an operation on the next node; it has to fail in this way.
func refused[In, Out any](r *sdkRound, code string, op sdkMethod[In, Out], in *In, opts ...func(*kms.Options)) {
	r.Helper()
	_, err := op(r.next(), r.Context(), in, opts...)
	if got := errorCode(err); got != code {
		r.Errorf("%s: %v, want %s", strings.TrimSuffix(reflect.TypeFor[In]().Name(), "Input"), err, code)
	}
}

// inOther sends a request to the cluster's other Region.
func inOther(o *kms.Options) { o.Region = otherRegion }

// key makes a key and returns its id.
func (r *sdkRound) key(spec types.KeySpec, usage types.KeyUsageType) *string {
	r.Helper()
	return call(r, (*kms.Client).CreateKey, &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage}).KeyMetadata.KeyId
}

// symmetric makes a key for encryption and returns its id.
func (r *sdkRound) symmetric() *string { return r.key("", "") }

func (r *sdkRound) describe(key *string, opts ...func(*kms.Options)) *types.KeyMetadata {
	r.Helper()
	return call(r, (*kms.Client).DescribeKey, &kms.DescribeKeyInput{KeyId: key}, opts...).KeyMetadata
}

func (r *sdkRound) encrypt(key *string, plaintext string, opts ...func(*kms.Options)) []byte {
	r.Helper()
	return call(r, (*kms.Client).Encrypt, &kms.EncryptInput{KeyId: key, Plaintext: []byte(plaintext)}, opts...).CiphertextBlob
}

// decrypts checks what a ciphertext hides.
func (r *sdkRound) decrypts(blob []byte, want string, opts ...func(*kms.Options)) {
	r.Helper()
	if got := call(r, (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob}, opts...).Plaintext; string(got) != want {
		r.Errorf("Decrypt gives %d bytes, want other ones", len(got))
	}
}

// is checks a value.
func is[T any](r *sdkRound, what string, got, want T) {
	r.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		r.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
