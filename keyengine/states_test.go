package keyengine

import (
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
)

func anyRegion(c *fsmpb.Cluster) *fsmpb.Cluster {
	c = proto.CloneOf(c)
	c.AnyRegion = true
	return c
}

// stateRow is an operation on a key, with what comes of it in each state:
//
//	ok  goes on             I  is pending import
//	D   is disabled         N  is not pending deletion
//	P   is pending deletion X  is not for keys of this origin
//	R   is pending replica deletion
//	U   is not for keys of this kind
type stateRow struct {
	op   string
	name string // of the case, where the operation has several
	kind string // of the key, of stateKinds; "" for a symmetric one
	in   func(k *stateKey) any
	// The states in the order of keyStateColumns. Only imported keys come to wait
	// for an import, so other keys have the first four.
	want string
	own  string // for keys of origin AWS_KMS, where that is another outcome
}

// keyStateColumns are the states in the table's order.
var keyStateColumns = []fsmpb.KeyState{
	fsmpb.KeyState_KEY_STATE_ENABLED, fsmpb.KeyState_KEY_STATE_DISABLED, fsmpb.KeyState_KEY_STATE_PENDING_DELETION,
	fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, fsmpb.KeyState_KEY_STATE_PENDING_IMPORT,
}

// stateKinds are the kinds of keys in the table: spec and usage.
var stateKinds = map[string][2]string{
	"":      {specSymmetric, usageEncrypt},
	"sign":  {"ECC_NIST_P256", usageSign},
	"agree": {"ECC_NIST_P256", usageAgree},
	"mac":   {"HMAC_256", usageMac},
}

// keyless are the operations that concern no key that exists.
var keyless = []string{"CreateKey", "ListKeys", "ListRetirableGrants", "GenerateRandom"}

// keyStateRows is AWS's table of what works on a key in each state.
func keyStateRows() []stateRow {
	return []stateRow{
		{"CancelKeyDeletion", "", "", func(k *stateKey) any { return &CancelKeyDeletionInput{KeyId: &k.id} }, "N N ok ok N", ""},
		{"CreateAlias", "", "", func(k *stateKey) any { return &CreateAliasInput{AliasName: ptr(k.alias()), TargetKeyId: &k.id} }, "ok ok P R ok", ""},
		{"CreateGrant", "", "", func(k *stateKey) any {
			return &CreateGrantInput{KeyId: &k.id, GranteePrincipal: ptr(aliceARN), Operations: []string{"Encrypt"}}
		}, "ok D P R I", ""},
		{"Decrypt", "", "", func(k *stateKey) any { return &DecryptInput{CiphertextBlob: k.seal(k.id, "x")} }, "ok D P R I", ""},
		{"Decrypt", "with key", "", func(k *stateKey) any { return &DecryptInput{CiphertextBlob: k.seal(k.id, "x"), KeyId: &k.id} }, "ok D P R I", ""},
		{"DeleteAlias", "", "", func(k *stateKey) any { return &DeleteAliasInput{AliasName: ptr(k.aliasOf(k.id))} }, "ok ok ok ok ok", ""},
		{"DeleteImportedKeyMaterial", "", "", func(k *stateKey) any { return &DeleteImportedKeyMaterialInput{KeyId: &k.id} }, "ok ok ok ok ok", "X X X X"},
		{"DeriveSharedSecret", "", "agree", func(k *stateKey) any {
			return &DeriveSharedSecretInput{KeyId: &k.id, KeyAgreementAlgorithm: ptr(algorithmECDH), PublicKey: k.publicKey(k.id)}
		}, "ok D P R I", ""},
		{"DescribeKey", "", "", func(k *stateKey) any { return &DescribeKeyInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"DisableKey", "", "", func(k *stateKey) any { return &DisableKeyInput{KeyId: &k.id} }, "ok ok P R I", ""},
		{"DisableKeyRotation", "", "", func(k *stateKey) any { return &DisableKeyRotationInput{KeyId: &k.id} }, "X D P R X", "ok D P R"},
		{"DisableKeyRotation", "of a kind that does not rotate", "sign", func(k *stateKey) any { return &DisableKeyRotationInput{KeyId: &k.id} }, "U D P R X", ""},
		{"EnableKey", "", "", func(k *stateKey) any { return &EnableKeyInput{KeyId: &k.id} }, "ok ok P R I", ""},
		{"EnableKeyRotation", "", "", func(k *stateKey) any { return &EnableKeyRotationInput{KeyId: &k.id} }, "X D P R X", "ok D P R"},
		{"EnableKeyRotation", "of a kind that does not rotate", "mac", func(k *stateKey) any { return &EnableKeyRotationInput{KeyId: &k.id} }, "U D P R X", ""},
		{"Encrypt", "", "", func(k *stateKey) any { return &EncryptInput{KeyId: &k.id, Plaintext: []byte("x")} }, "ok D P R I", ""},
		{"GenerateDataKey", "", "", func(k *stateKey) any { return &GenerateDataKeyInput{KeyId: &k.id, KeySpec: ptr("AES_128")} }, "ok D P R I", ""},
		{"GenerateDataKeyPair", "", "", func(k *stateKey) any {
			return &GenerateDataKeyPairInput{KeyId: &k.id, KeyPairSpec: ptr("ECC_NIST_P256")}
		}, "ok D P R I", ""},
		{"GenerateDataKeyPairWithoutPlaintext", "", "", func(k *stateKey) any {
			return &GenerateDataKeyPairWithoutPlaintextInput{KeyId: &k.id, KeyPairSpec: ptr("ECC_NIST_P256")}
		}, "ok D P R I", ""},
		{"GenerateDataKeyWithoutPlaintext", "", "", func(k *stateKey) any {
			return &GenerateDataKeyWithoutPlaintextInput{KeyId: &k.id, KeySpec: ptr("AES_128")}
		}, "ok D P R I", ""},
		{"GenerateMac", "", "mac", func(k *stateKey) any { return k.macInput(k.id) }, "ok D P R I", ""},
		{"GetKeyLastUsage", "", "", func(k *stateKey) any { return &GetKeyLastUsageInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"GetKeyPolicy", "", "", func(k *stateKey) any { return &GetKeyPolicyInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"GetKeyRotationStatus", "", "", func(k *stateKey) any { return &GetKeyRotationStatusInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"GetKeyRotationStatus", "of a kind that does not rotate", "agree", func(k *stateKey) any { return &GetKeyRotationStatusInput{KeyId: &k.id} }, "U U U U U", ""},
		{"GetParametersForImport", "", "", func(k *stateKey) any {
			return &GetParametersForImportInput{KeyId: &k.id, WrappingAlgorithm: ptr("RSAES_OAEP_SHA_256"), WrappingKeySpec: ptr("RSA_2048")}
		}, "ok ok P R ok", "X X P R"},
		{"GetPublicKey", "", "sign", func(k *stateKey) any { return &GetPublicKeyInput{KeyId: &k.id} }, "ok D P R I", ""},
		{"ImportKeyMaterial", "", "", (*stateKey).importInput, "ok ok P R ok", "X X P R"},
		{"ListAliases", "", "", func(k *stateKey) any { return &ListAliasesInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"ListGrants", "", "", func(k *stateKey) any { return &ListGrantsInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"ListKeyPolicies", "", "", func(k *stateKey) any { return &ListKeyPoliciesInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"ListKeyRotations", "", "", func(k *stateKey) any { return &ListKeyRotationsInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"ListKeyRotations", "of a kind that does not rotate", "mac", func(k *stateKey) any { return &ListKeyRotationsInput{KeyId: &k.id} }, "U U U U U", ""},
		{"ListResourceTags", "", "", func(k *stateKey) any { return &ListResourceTagsInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"PutKeyPolicy", "", "", func(k *stateKey) any {
			return &PutKeyPolicyInput{KeyId: &k.id, Policy: ptr(k.policyFor(rootStatement))}
		}, "ok ok ok ok ok", ""},
		{"ReEncrypt", "source", "", func(k *stateKey) any {
			return &ReEncryptInput{CiphertextBlob: k.seal(k.id, "x"), DestinationKeyId: &k.other}
		}, "ok D P R I", ""},
		{"ReEncrypt", "destination", "", func(k *stateKey) any {
			return &ReEncryptInput{CiphertextBlob: k.seal(k.other, "x"), DestinationKeyId: &k.id}
		}, "ok D P R I", ""},
		{"ReplicateKey", "", "", func(k *stateKey) any { return &ReplicateKeyInput{KeyId: &k.id, ReplicaRegion: ptr(thirdRegion)} }, "ok D P R I", ""},
		{"RetireGrant", "", "", func(k *stateKey) any { return &RetireGrantInput{KeyId: &k.arn, GrantId: k.grant()} }, "ok ok ok ok ok", ""},
		{"RevokeGrant", "", "", func(k *stateKey) any { return &RevokeGrantInput{KeyId: &k.id, GrantId: k.grant()} }, "ok ok ok ok ok", ""},
		{"RotateKeyOnDemand", "", "", (*stateKey).rotateInput, "ok D P R I", ""},
		{"RotateKeyOnDemand", "of a kind that does not rotate", "sign", func(k *stateKey) any { return &RotateKeyOnDemandInput{KeyId: &k.id} }, "U D P R I", ""},
		{"ScheduleKeyDeletion", "", "", func(k *stateKey) any { return &ScheduleKeyDeletionInput{KeyId: &k.id} }, "ok ok P R ok", ""},
		{"Sign", "", "sign", func(k *stateKey) any { return k.signInput(k.id) }, "ok D P R I", ""},
		{"TagResource", "", "", func(k *stateKey) any { return &TagResourceInput{KeyId: &k.id, Tags: manyTags(1)} }, "ok ok P R ok", ""},
		{"UntagResource", "", "", func(k *stateKey) any { return &UntagResourceInput{KeyId: &k.id, TagKeys: []string{"k"}} }, "ok ok P R ok", ""},
		{"UpdateAlias", "old target", "", func(k *stateKey) any {
			return &UpdateAliasInput{AliasName: ptr(k.aliasOf(k.id)), TargetKeyId: &k.other}
		}, "ok ok ok ok ok", ""},
		{"UpdateAlias", "new target", "", func(k *stateKey) any {
			return &UpdateAliasInput{AliasName: ptr(k.aliasOf(k.other)), TargetKeyId: &k.id}
		}, "ok ok P R ok", ""},
		{"UpdateKeyDescription", "", "", func(k *stateKey) any { return &UpdateKeyDescriptionInput{KeyId: &k.id, Description: ptr("")} }, "ok ok P R ok", ""},
		{"UpdatePrimaryRegion", "", "", func(k *stateKey) any {
			return &UpdatePrimaryRegionInput{KeyId: &k.id, PrimaryRegion: ptr(secondRegion)}
		}, "ok D P R I", ""},
		{"Verify", "", "sign", func(k *stateKey) any {
			in := k.signInput(k.id)
			s := must[SignOutput](k.room, "Sign", in).Signature
			return &VerifyInput{KeyId: &k.id, Message: in.Message, SigningAlgorithm: in.SigningAlgorithm, Signature: s}
		}, "ok D P R I", ""},
		{"VerifyMac", "", "mac", func(k *stateKey) any {
			in := k.macInput(k.id)
			m := must[GenerateMacOutput](k.room, "GenerateMac", in).Mac
			return &VerifyMacInput{KeyId: &k.id, Message: in.Message, MacAlgorithm: in.MacAlgorithm, Mac: m}
		}, "ok D P R I", ""},
	}
}

// stateKey is a new key for one cell of the table. It is enabled while the input is
// made.
type stateKey struct {
	*room
	id, arn string
	origin  string
	other   string // another symmetric key
}

// newStateKey makes the primary of two multi-Region keys, as no other key is ever
// pending replica deletion, or a key of one Region.
func newStateKey(r *room, kind, origin, other string, multi bool) *stateKey {
	r.t.Helper()
	spec := stateKinds[kind]
	m := must[CreateKeyOutput](r, "CreateKey", &CreateKeyInput{KeySpec: &spec[0], KeyUsage: &spec[1], Origin: &origin, MultiRegion: &multi}).KeyMetadata
	k := &stateKey{room: r, id: *m.KeyId, arn: *m.Arn, origin: origin, other: other}
	material, err := []byte(strings.Repeat("m", 32)), error(nil)
	if spec[0] != specSymmetric {
		if material, err = primitive.Generate(spec[0]); err != nil {
			r.t.Fatal(err)
		}
	}
	if origin == originImported {
		r.give(k.id, material)
	}
	if !multi {
		return k
	}
	must[ReplicateKeyOutput](r, "ReplicateKey", &ReplicateKeyInput{KeyId: &k.id, ReplicaRegion: ptr(secondRegion)})
	if origin == originImported {
		r.give(k.id, material)
	}
	return k
}

// alias is a name that no alias has.
func (k *stateKey) alias() string { return "alias/" + rand.Text() }

func (k *stateKey) aliasOf(id string) string {
	k.t.Helper()
	name := k.alias()
	must[none](k.room, "CreateAlias", &CreateAliasInput{AliasName: &name, TargetKeyId: &id})
	return name
}

// grant is a new grant on the key.
func (k *stateKey) grant() *string {
	k.t.Helper()
	return must[CreateGrantOutput](k.room, "CreateGrant", &CreateGrantInput{
		KeyId: &k.id, GranteePrincipal: ptr(aliceARN), Operations: []string{"Encrypt"},
	}).GrantId
}

// importInput brings the material that the key has, where it can have been imported.
func (k *stateKey) importInput() any {
	if k.origin == originImported {
		return k.wrapped(k.id, "RSA_2048", "RSAES_OAEP_SHA_256", []byte(strings.Repeat("m", 32)))
	}
	return &ImportKeyMaterialInput{KeyId: &k.id, ImportToken: []byte("x"), EncryptedKeyMaterial: []byte("x"), ExpirationModel: ptr(modelForever)}
}

// rotateInput rotates to new material, which has to be there if it is imported.
func (k *stateKey) rotateInput() any {
	if k.origin == originImported {
		k.give(k.id, []byte(strings.Repeat("n", 32)))
	}
	return &RotateKeyOnDemandInput{KeyId: &k.id}
}

// enter has the key be in a state, with what belongs to it.
func (k *stateKey) enter(state fsmpb.KeyState) {
	k.mangle(k.id, func(key *fsmpb.Key) {
		key.State = state
		switch state {
		case fsmpb.KeyState_KEY_STATE_PENDING_DELETION:
			key.DeletionTime = k.cluster.clock.Now().UnixNano() + 1e18
		case fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION:
			key.DeletionDays = 7
		case fsmpb.KeyState_KEY_STATE_PENDING_IMPORT:
			for _, m := range key.Materials {
				m.Generation, m.Wrapped = 0, nil
			}
		}
	})
}

func (k *stateKey) wantOutcome(t *testing.T, want string, out any, err error) {
	t.Helper()
	switch want {
	case "ok":
		if err != nil || out == nil {
			t.Errorf("got %v, %v", out, err)
		}
	case "D":
		wantError(t, err, ErrDisabled, k.arn+" is disabled.")
	case "P":
		wantError(t, err, ErrInvalidState, k.arn+" is pending deletion.")
	case "R":
		wantError(t, err, ErrInvalidState, k.arn+" is pending replica deletion.")
	case "I":
		wantError(t, err, ErrInvalidState, k.arn+" is pending import.")
	case "N":
		wantError(t, err, ErrInvalidState, k.arn+" is not pending deletion.")
	case "X":
		wantError(t, err, ErrUnsupported, k.arn+" origin is "+k.origin+" which is not valid for this operation.")
	case "U":
		wantError(t, err, ErrUnsupported, "")
	default:
		t.Errorf("there is no outcome %q", want)
	}
}

func TestKeyStates(t *testing.T) {
	r := newRoomIn(t, threeRegions())
	other, _ := r.newKey()
	covered := map[string]bool{}
	for _, row := range keyStateRows() {
		covered[row.op] = true
		own := row.own
		if own == "" {
			own = row.want
		}
		primaries := row.op == "ReplicateKey" || row.op == "UpdatePrimaryRegion"
		for _, of := range []struct {
			name, origin string
			multi        bool
			want         []string
		}{
			{"own", originKMS, false, strings.Fields(own)[:3]},
			{"own primary", originKMS, true, strings.Fields(own)[:4]},
			{"imported", originImported, true, strings.Fields(row.want)},
		} {
			if primaries && !of.multi {
				continue
			}
			if of.origin == originImported && len(of.want) != len(keyStateColumns) {
				t.Errorf("%s has %d outcomes", row.op, len(of.want))
			}
			for i, want := range of.want {
				state := keyStateColumns[i]
				t.Run(strings.Join([]string{row.op, row.name, of.name, keyStates[state]}, " "), func(t *testing.T) {
					r.t = t
					k := newStateKey(r, row.kind, of.origin, other, of.multi)
					in := row.in(k)
					k.enter(state)
					out, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(row.op), in)
					k.wantOutcome(t, want, out, err)
				})
			}
		}
	}
	for name := range table {
		if !covered[name] && !slices.Contains(storeOperations, name) && !slices.Contains(keyless, name) {
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
