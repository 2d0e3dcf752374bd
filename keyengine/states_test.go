package keyengine

import (
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A stateRow is an operation on a key, with its outcome in each state:
//
//	ok  succeeds            I  is pending import
//	D   is disabled         N  is not pending deletion
//	P   is pending deletion X  is not for keys of this origin
//	R   is pending replica deletion
//	U   is not for keys of this kind
type stateRow struct {
	op   string
	name string // of the case, where the operation has several
	kind string // of the key, of stateKinds; "" for a symmetric one
	in   func(k *stateKey) any
	// The outcomes in the order of keyStateColumns. Only keys with imported material can be
	// pending import, so there are four for other keys, and for kinds of keys that cannot be
	// imported.
	want string
	own  string // for keys of origin AWS_KMS, where that is another outcome
}

// keyStateColumns are the states in the order of the table.
var keyStateColumns = []fsmpb.KeyState{
	fsmpb.KeyState_KEY_STATE_ENABLED, fsmpb.KeyState_KEY_STATE_DISABLED, fsmpb.KeyState_KEY_STATE_PENDING_DELETION,
	fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, fsmpb.KeyState_KEY_STATE_PENDING_IMPORT,
}

// stateKinds are the kinds of keys in the table, each with a spec and a usage.
var stateKinds = map[string][2]string{
	"":      {kmsapi.SpecSymmetric, kmsapi.UsageEncrypt},
	"sign":  {"ECC_NIST_P256", kmsapi.UsageSign},
	"agree": {"ECC_NIST_P256", kmsapi.UsageAgree},
	"mac":   {"HMAC_256", kmsapi.UsageMac},
	"kem":   {"ML_KEM_512", kmsapi.UsageEncapsulate},
}

// keyless are the operations that are not on a key that exists.
var keyless = []string{"CreateKey", "ListKeys", "ListRetirableGrants", "GenerateRandom"}

// keyStateRows is AWS's table of which operations succeed in which state of a key.
func keyStateRows() []stateRow {
	return []stateRow{
		{"CancelKeyDeletion", "", "", func(k *stateKey) any { return &kmsapi.CancelKeyDeletionInput{KeyId: &k.id} }, "N N ok ok N", ""},
		{"CreateAlias", "", "", func(k *stateKey) any { return &kmsapi.CreateAliasInput{AliasName: new(k.alias()), TargetKeyId: &k.id} }, "ok ok P R ok", ""},
		{"CreateGrant", "", "", func(k *stateKey) any {
			return &kmsapi.CreateGrantInput{KeyId: &k.id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"}}
		}, "ok D P R I", ""},
		{"Decrypt", "", "", func(k *stateKey) any { return &kmsapi.DecryptInput{CiphertextBlob: k.encrypt(k.id, "x")} }, "ok D P R I", ""},
		{"Decrypt", "with key", "", func(k *stateKey) any { return &kmsapi.DecryptInput{CiphertextBlob: k.encrypt(k.id, "x"), KeyId: &k.id} }, "ok D P R I", ""},
		{"Decapsulate", "", "kem", func(k *stateKey) any {
			return decapsulateInput(k.id, k.encapsulate(k.id).SharedSecretCiphertextBlob)
		}, "ok D P R", ""},
		{"DeleteAlias", "", "", func(k *stateKey) any { return &kmsapi.DeleteAliasInput{AliasName: new(k.aliasOf(k.id))} }, "ok ok ok ok ok", ""},
		{"DeleteImportedKeyMaterial", "", "", func(k *stateKey) any { return &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &k.id} }, "ok ok ok ok ok", "X X X X"},
		{"DeriveSharedSecret", "", "agree", func(k *stateKey) any {
			return &kmsapi.DeriveSharedSecretInput{KeyId: &k.id, KeyAgreementAlgorithm: new(cryptops.AlgorithmECDH), PublicKey: k.publicKey(k.id)}
		}, "ok D P R I", ""},
		{"DescribeKey", "", "", func(k *stateKey) any { return &kmsapi.DescribeKeyInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"DisableKey", "", "", func(k *stateKey) any { return &kmsapi.DisableKeyInput{KeyId: &k.id} }, "ok ok P R I", ""},
		{"DisableKeyRotation", "", "", func(k *stateKey) any { return &kmsapi.DisableKeyRotationInput{KeyId: &k.id} }, "X D P R X", "ok D P R"},
		{"DisableKeyRotation", "of a kind that does not rotate", "sign", func(k *stateKey) any { return &kmsapi.DisableKeyRotationInput{KeyId: &k.id} }, "ok D P R X", ""},
		{"EnableKey", "", "", func(k *stateKey) any { return &kmsapi.EnableKeyInput{KeyId: &k.id} }, "ok ok P R I", ""},
		{"EnableKeyRotation", "", "", func(k *stateKey) any { return &kmsapi.EnableKeyRotationInput{KeyId: &k.id} }, "X D P R X", "ok D P R"},
		{"EnableKeyRotation", "of a kind that does not rotate", "mac", func(k *stateKey) any { return &kmsapi.EnableKeyRotationInput{KeyId: &k.id} }, "U D P R X", ""},
		{"Encapsulate", "", "kem", func(k *stateKey) any { return encapsulateInput(k.id) }, "ok D P R", ""},
		{"Encrypt", "", "", func(k *stateKey) any { return &kmsapi.EncryptInput{KeyId: &k.id, Plaintext: []byte("x")} }, "ok D P R I", ""},
		{"GenerateDataKey", "", "", func(k *stateKey) any { return &kmsapi.GenerateDataKeyInput{KeyId: &k.id, KeySpec: new("AES_128")} }, "ok D P R I", ""},
		{"GenerateDataKeyPair", "", "", func(k *stateKey) any {
			return &kmsapi.GenerateDataKeyPairInput{KeyId: &k.id, KeyPairSpec: new("ECC_NIST_P256")}
		}, "ok D P R I", ""},
		{"GenerateDataKeyPairWithoutPlaintext", "", "", func(k *stateKey) any {
			return &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &k.id, KeyPairSpec: new("ECC_NIST_P256")}
		}, "ok D P R I", ""},
		{"GenerateDataKeyWithoutPlaintext", "", "", func(k *stateKey) any {
			return &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &k.id, KeySpec: new("AES_128")}
		}, "ok D P R I", ""},
		{"GenerateMac", "", "mac", func(k *stateKey) any { return k.macInput(k.id) }, "ok D P R I", ""},
		{"GetKeyLastUsage", "", "", func(k *stateKey) any { return &kmsapi.GetKeyLastUsageInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"GetKeyPolicy", "", "", func(k *stateKey) any { return &kmsapi.GetKeyPolicyInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"GetKeyRotationStatus", "", "", func(k *stateKey) any { return &kmsapi.GetKeyRotationStatusInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"GetKeyRotationStatus", "of a kind that does not rotate", "agree", func(k *stateKey) any { return &kmsapi.GetKeyRotationStatusInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"GetParametersForImport", "", "", func(k *stateKey) any {
			return &kmsapi.GetParametersForImportInput{KeyId: &k.id, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_2048")}
		}, "ok ok P R ok", "X X P R"},
		{"GetPublicKey", "", "sign", func(k *stateKey) any { return &kmsapi.GetPublicKeyInput{KeyId: &k.id} }, "ok D P R I", ""},
		{"ImportKeyMaterial", "", "", (*stateKey).importInput, "ok ok P R ok", "X X P R"},
		{"ListAliases", "", "", func(k *stateKey) any { return &kmsapi.ListAliasesInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"ListGrants", "", "", func(k *stateKey) any { return &kmsapi.ListGrantsInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"ListKeyPolicies", "", "", func(k *stateKey) any { return &kmsapi.ListKeyPoliciesInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"ListKeyRotations", "", "", func(k *stateKey) any { return &kmsapi.ListKeyRotationsInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"ListKeyRotations", "of a kind that does not rotate", "mac", func(k *stateKey) any { return &kmsapi.ListKeyRotationsInput{KeyId: &k.id} }, "U U U U U", ""},
		{"ListResourceTags", "", "", func(k *stateKey) any { return &kmsapi.ListResourceTagsInput{KeyId: &k.id} }, "ok ok ok ok ok", ""},
		{"PutKeyPolicy", "", "", func(k *stateKey) any {
			return &kmsapi.PutKeyPolicyInput{KeyId: &k.id, Policy: new(policyDocument(rootStatement))}
		}, "ok ok ok ok ok", ""},
		{"ReEncrypt", "source", "", func(k *stateKey) any {
			return &kmsapi.ReEncryptInput{CiphertextBlob: k.encrypt(k.id, "x"), DestinationKeyId: &k.other}
		}, "ok D P R I", ""},
		{"ReEncrypt", "destination", "", func(k *stateKey) any {
			return &kmsapi.ReEncryptInput{CiphertextBlob: k.encrypt(k.other, "x"), DestinationKeyId: &k.id}
		}, "ok D P R I", ""},
		{"ReplicateKey", "", "", func(k *stateKey) any { return &kmsapi.ReplicateKeyInput{KeyId: &k.id, ReplicaRegion: new(thirdRegion)} }, "ok D P R I", ""},
		{"RetireGrant", "", "", func(k *stateKey) any { return &kmsapi.RetireGrantInput{KeyId: &k.arn, GrantId: k.grant()} }, "ok ok ok ok ok", ""},
		{"RevokeGrant", "", "", func(k *stateKey) any { return &kmsapi.RevokeGrantInput{KeyId: &k.id, GrantId: k.grant()} }, "ok ok ok ok ok", ""},
		{"RotateKeyOnDemand", "", "", (*stateKey).rotateInput, "ok D P R I", ""},
		{"RotateKeyOnDemand", "of a kind that does not rotate", "sign", func(k *stateKey) any { return &kmsapi.RotateKeyOnDemandInput{KeyId: &k.id} }, "U D P R I", ""},
		{"ScheduleKeyDeletion", "", "", func(k *stateKey) any { return &kmsapi.ScheduleKeyDeletionInput{KeyId: &k.id} }, "ok ok P R ok", ""},
		{"Sign", "", "sign", func(k *stateKey) any { return k.signInput(k.id) }, "ok D P R I", ""},
		{"TagResource", "", "", func(k *stateKey) any { return &kmsapi.TagResourceInput{KeyId: &k.id, Tags: manyTags(1)} }, "ok ok P R ok", ""},
		{"UntagResource", "", "", func(k *stateKey) any { return &kmsapi.UntagResourceInput{KeyId: &k.id, TagKeys: []string{"k"}} }, "ok ok P R ok", ""},
		{"UpdateAlias", "old target", "", func(k *stateKey) any {
			return &kmsapi.UpdateAliasInput{AliasName: new(k.aliasOf(k.id)), TargetKeyId: &k.other}
		}, "ok ok ok ok ok", ""},
		{"UpdateAlias", "new target", "", func(k *stateKey) any {
			return &kmsapi.UpdateAliasInput{AliasName: new(k.aliasOf(k.other)), TargetKeyId: &k.id}
		}, "ok ok P R ok", ""},
		{"UpdateKeyDescription", "", "", func(k *stateKey) any { return &kmsapi.UpdateKeyDescriptionInput{KeyId: &k.id, Description: new("")} }, "ok ok P R ok", ""},
		{"UpdatePrimaryRegion", "", "", func(k *stateKey) any {
			return &kmsapi.UpdatePrimaryRegionInput{KeyId: &k.id, PrimaryRegion: new(secondRegion)}
		}, "ok D P R I", ""},
		{"Verify", "", "sign", func(k *stateKey) any {
			in := k.signInput(k.id)
			s := must[kmsapi.SignOutput](k.testCluster, "Sign", in).Signature
			return &kmsapi.VerifyInput{KeyId: &k.id, Message: in.Message, SigningAlgorithm: in.SigningAlgorithm, Signature: s}
		}, "ok D P R I", ""},
		{"VerifyMac", "", "mac", func(k *stateKey) any {
			in := k.macInput(k.id)
			m := must[kmsapi.GenerateMacOutput](k.testCluster, "GenerateMac", in).Mac
			return &kmsapi.VerifyMacInput{KeyId: &k.id, Message: in.Message, MacAlgorithm: in.MacAlgorithm, Mac: m}
		}, "ok D P R I", ""},
	}
}

// A stateKey is a new key for one cell of the table. It is enabled while the request is made.
type stateKey struct {
	*testCluster
	id, arn string
	spec    string
	origin  string
	other   string // another symmetric key
}

// newStateKey creates a multi-Region primary key, or a single-Region key. A primary key has a
// replica, without which it cannot be pending replica deletion, unless the state is pending
// deletion, for which it must have none.
func newStateKey(c *testCluster, kind, origin, other string, multi bool, state fsmpb.KeyState) *stateKey {
	c.t.Helper()
	c.exist(aliceARN)
	spec := stateKinds[kind]
	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec[0], KeyUsage: &spec[1], Origin: &origin, MultiRegion: &multi}).KeyMetadata
	k := &stateKey{testCluster: c, id: *m.KeyId, arn: *m.Arn, spec: spec[0], origin: origin, other: other}
	material, err := []byte(strings.Repeat("m", 32)), error(nil)
	if spec[0] != kmsapi.SpecSymmetric {
		if material, err = primitive.Generate(spec[0]); err != nil {
			c.t.Fatal(err)
		}
	}
	if origin == kmsapi.OriginImported {
		c.setMaterial(k.id, material)
	}
	if !multi || state == fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
		return k
	}
	must[kmsapi.ReplicateKeyOutput](c, "ReplicateKey", &kmsapi.ReplicateKeyInput{KeyId: &k.id, ReplicaRegion: new(secondRegion)})
	if origin == kmsapi.OriginImported {
		c.setMaterial(k.id, material)
	}
	return k
}

// alias returns a new name for an alias.
func (k *stateKey) alias() string { return "alias/" + rand.Text() }

func (k *stateKey) aliasOf(id string) string {
	k.t.Helper()
	name := k.alias()
	must[request.None](k.testCluster, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: &name, TargetKeyId: &id})
	return name
}

// grant creates a grant on the key.
func (k *stateKey) grant() *string {
	k.t.Helper()
	return must[kmsapi.CreateGrantOutput](k.testCluster, "CreateGrant", &kmsapi.CreateGrantInput{
		KeyId: &k.id, GranteePrincipal: new(aliceARN), Operations: []string{"Encrypt"},
	}).GrantId
}

// importInput returns a request to import the material that the key has.
func (k *stateKey) importInput() any {
	if k.origin == kmsapi.OriginImported {
		return k.importRequest(k.id, "RSA_2048", "RSAES_OAEP_SHA_256", []byte(strings.Repeat("m", 32)))
	}
	return &kmsapi.ImportKeyMaterialInput{KeyId: &k.id, ImportToken: []byte("x"), EncryptedKeyMaterial: []byte("x"), ExpirationModel: new(ops.ModelForever)}
}

// rotateInput returns a request to rotate the key. Imported material for the rotation is put
// into the key.
func (k *stateKey) rotateInput() any {
	if k.origin == kmsapi.OriginImported {
		k.setMaterial(k.id, []byte(strings.Repeat("n", 32)))
	}
	return &kmsapi.RotateKeyOnDemandInput{KeyId: &k.id}
}

// enter changes the state of the key, and what belongs to the state.
func (k *stateKey) enter(state fsmpb.KeyState) {
	k.modifyKey(k.id, func(key *fsmpb.Key) {
		key.State = state
		switch state {
		case fsmpb.KeyState_KEY_STATE_PENDING_DELETION:
			key.DeletionTime = k.inAWeek()
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
			t.Errorf("got %v, error %v; want success", out, err)
		}
	case "D":
		wantError(t, err, kmsapi.ErrDisabled, k.arn+" is disabled.")
	case "P":
		wantError(t, err, kmsapi.ErrInvalidState, k.arn+" is pending deletion.")
	case "R":
		wantError(t, err, kmsapi.ErrInvalidState, k.arn+" is pending replica deletion.")
	case "I":
		wantError(t, err, kmsapi.ErrInvalidState, k.arn+" is pending import.")
	case "N":
		wantError(t, err, kmsapi.ErrInvalidState, k.arn+" is not pending deletion.")
	case "X":
		wantError(t, err, kmsapi.ErrUnsupported, k.arn+" origin is "+k.origin+" which is not valid for this operation.")
	case "U":
		wantError(t, err, kmsapi.ErrUnsupported, k.arn+" has key spec "+k.spec+". Only symmetric encryption keys can be rotated.")
	default:
		t.Errorf("the table has an unknown outcome %q", want)
	}
}

func TestKeyStates(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	other, _ := c.newKey()
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
			{"own", kmsapi.OriginKMS, false, strings.Fields(own)[:3]},
			{"own primary", kmsapi.OriginKMS, true, strings.Fields(own)[:4]},
			{"imported", kmsapi.OriginImported, true, strings.Fields(row.want)},
		} {
			if primaries && !of.multi || of.origin == kmsapi.OriginImported && ops.Importable(stateKinds[row.kind][0]) != nil {
				continue
			}
			if of.origin == kmsapi.OriginImported && len(of.want) != len(keyStateColumns) {
				t.Errorf("the row of %s has %d outcomes, want %d", row.op, len(of.want), len(keyStateColumns))
			}
			for i, want := range of.want {
				state := keyStateColumns[i]
				t.Run(strings.Join([]string{row.op, row.name, of.name, ops.KeyStates[state]}, " "), func(t *testing.T) {
					c.t = t
					k := newStateKey(c, row.kind, of.origin, other, of.multi, state)
					in := row.in(k)
					k.enter(state)
					out, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, row.op), in)
					k.wantOutcome(t, want, out, err)
				})
			}
		}
	}
	for name := range ops.Table {
		if !covered[name] && !slices.Contains(storeOperations, name) && !slices.Contains(keyless, name) {
			t.Errorf("%s is not in the table of key states", name)
		}
	}
}
