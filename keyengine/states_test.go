package keyengine

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

func anyRegion(c *fsmpb.Cluster) *fsmpb.Cluster {
	c = proto.CloneOf(c)
	c.AnyRegion = true
	return c
}

// TestKeyStates is AWS's table of what works on a key in each state: Enabled,
// Disabled, PendingDeletion. "ok" goes on, D is disabled, P is pending deletion, N
// is not pending deletion, X is not for keys of this origin.
func TestKeyStates(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	other, _ := r.newKey()
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	byOther := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &other, Plaintext: []byte("x")}).CiphertextBlob
	doc := r.policyFor(rootStatement)
	tests := []struct {
		op   string
		name string // of the case, where the operation has several
		in   any
		want string
	}{
		{"CancelKeyDeletion", "", &CancelKeyDeletionInput{KeyId: &id}, "N N ok"},
		{"CreateAlias", "", &CreateAliasInput{AliasName: ptr("alias/new"), TargetKeyId: &id}, "ok ok P"},
		{"Decrypt", "", &DecryptInput{CiphertextBlob: blob}, "ok D P"},
		{"Decrypt", "with key", &DecryptInput{CiphertextBlob: blob, KeyId: &id}, "ok D P"},
		{"DeleteAlias", "", &DeleteAliasInput{AliasName: ptr("alias/old")}, "ok ok ok"},
		{"DeleteImportedKeyMaterial", "", &DeleteImportedKeyMaterialInput{KeyId: &id}, "X X X"},
		{"DescribeKey", "", &DescribeKeyInput{KeyId: &id}, "ok ok ok"},
		{"DisableKey", "", &DisableKeyInput{KeyId: &id}, "ok ok P"},
		{"DisableKeyRotation", "", &DisableKeyRotationInput{KeyId: &id}, "ok D P"},
		{"EnableKeyRotation", "", &EnableKeyRotationInput{KeyId: &id}, "ok D P"},
		{"GetKeyRotationStatus", "", &GetKeyRotationStatusInput{KeyId: &id}, "ok ok ok"},
		{"GetParametersForImport", "", &GetParametersForImportInput{KeyId: &id, WrappingAlgorithm: ptr("RSAES_OAEP_SHA_256"), WrappingKeySpec: ptr("RSA_2048")}, "X X P"},
		{"ImportKeyMaterial", "", &ImportKeyMaterialInput{KeyId: &id, ImportToken: []byte("x"), EncryptedKeyMaterial: []byte("x"), ExpirationModel: ptr(modelForever)}, "X X P"},
		{"ListKeyRotations", "", &ListKeyRotationsInput{KeyId: &id}, "ok ok ok"},
		{"RotateKeyOnDemand", "", &RotateKeyOnDemandInput{KeyId: &id}, "ok D P"},
		{"EnableKey", "", &EnableKeyInput{KeyId: &id}, "ok ok P"},
		{"Encrypt", "", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}, "ok D P"},
		{"GenerateDataKey", "", &GenerateDataKeyInput{KeyId: &id, KeySpec: ptr("AES_128")}, "ok D P"},
		{"GenerateDataKeyWithoutPlaintext", "", &GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: ptr("AES_128")}, "ok D P"},
		{"GetKeyLastUsage", "", &GetKeyLastUsageInput{KeyId: &id}, "ok ok ok"},
		{"GetKeyPolicy", "", &GetKeyPolicyInput{KeyId: &id}, "ok ok ok"},
		{"ListAliases", "", &ListAliasesInput{KeyId: &id}, "ok ok ok"},
		{"ListKeyPolicies", "", &ListKeyPoliciesInput{KeyId: &id}, "ok ok ok"},
		{"ListResourceTags", "", &ListResourceTagsInput{KeyId: &id}, "ok ok ok"},
		{"PutKeyPolicy", "", &PutKeyPolicyInput{KeyId: &id, Policy: &doc}, "ok ok ok"},
		{"ReEncrypt", "source", &ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &other}, "ok D P"},
		{"ReEncrypt", "destination", &ReEncryptInput{CiphertextBlob: byOther, DestinationKeyId: &id}, "ok D P"},
		{"ScheduleKeyDeletion", "", &ScheduleKeyDeletionInput{KeyId: &id}, "ok ok P"},
		{"TagResource", "", &TagResourceInput{KeyId: &id, Tags: manyTags(1)}, "ok ok P"},
		{"UntagResource", "", &UntagResourceInput{KeyId: &id, TagKeys: []string{"k"}}, "ok ok P"},
		{"UpdateAlias", "old target", &UpdateAliasInput{AliasName: ptr("alias/old"), TargetKeyId: &other}, "ok ok ok"},
		{"UpdateAlias", "new target", &UpdateAliasInput{AliasName: ptr("alias/other"), TargetKeyId: &id}, "ok ok P"},
		{"UpdateKeyDescription", "", &UpdateKeyDescriptionInput{KeyId: &id, Description: ptr("")}, "ok ok P"},
	}
	covered := map[string]bool{}
	enabled, _ := r.cluster.state().Key(r.keyID(id))
	put := func(state fsmpb.KeyState) {
		k := proto.CloneOf(enabled)
		k.State, k.DeletionTime = state, 0
		if state == fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
			k.DeletionTime = r.cluster.clock.Now().UnixNano() + 1e18
		}
		old, o := r.keyID(id), r.keyID(other)
		changes := []*fsmpb.Change{
			{Change: &fsmpb.Change_PutKey{PutKey: k}},
			{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Name: "alias/old", Region: testRegion, Key: old.ID[:]}}},
			{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Name: "alias/other", Region: testRegion, Key: o.ID[:]}}},
		}
		if a, _ := r.cluster.state().Alias(testRegion, "alias/new"); a != nil {
			changes = append(changes, &fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Name: a.Name, Region: a.Region}}})
		}
		r.cluster.change(changes...)
	}
	states := []fsmpb.KeyState{fsmpb.KeyState_KEY_STATE_ENABLED, fsmpb.KeyState_KEY_STATE_DISABLED, fsmpb.KeyState_KEY_STATE_PENDING_DELETION}
	for _, tt := range tests {
		covered[tt.op] = true
		for i, want := range strings.Fields(tt.want) {
			t.Run(tt.op+" "+tt.name+" "+keyStates[states[i]], func(t *testing.T) {
				put(states[i])
				out, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(tt.op), tt.in)
				switch want {
				case "ok":
					if err != nil || out == nil {
						t.Errorf("got %v, %v", out, err)
					}
				case "D":
					wantError(t, err, ErrDisabled, arn+" is disabled.")
				case "P":
					wantError(t, err, ErrInvalidState, arn+" is pending deletion.")
				case "X":
					wantError(t, err, ErrUnsupported, arn+" origin is AWS_KMS which is not valid for this operation.")
				case "N":
					wantError(t, err, ErrInvalidState, arn+" is not pending deletion.")
				}
			})
		}
	}
	for name := range table {
		if !covered[name] && multiRegionStates[name] == "" && name != "CreateKey" && name != "ListKeys" && name != "GenerateRandom" {
			t.Errorf("%s is not in the table of key states", name)
		}
	}
}

// TestUnknownState: a state that an operation has no rule for lets nothing
// through.
func TestUnknownState(t *testing.T) {
	for _, op := range Operations() {
		for _, s := range []fsmpb.KeyState{fsmpb.KeyState_KEY_STATE_UNSPECIFIED, 6, 99, -1} {
			if err := op.states.check("arn", s); err == nil {
				t.Errorf("%s goes on in state %v", op.Name, s)
			}
		}
	}
}
