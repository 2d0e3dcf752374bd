package conformance

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
)

// stateRow is an operation on a key, with what comes of it when the key is Enabled,
// Disabled, PendingDeletion, PendingReplicaDeletion and PendingImport, which keys that
// cannot be imported never are: ok, or the letter of stateErrors.
type stateRow struct {
	op   string
	kind string // of the key, of stateKinds
	in   func(w *stateWorld, k stateKey) harness.Members
	want string
}

// stateErrors are what a key's state can be the reason for: code, and message after
// the key's ARN.
var stateErrors = map[string][2]string{
	"D": {"DisabledException", " is disabled."},
	"P": {"KMSInvalidStateException", " is pending deletion."},
	"R": {"KMSInvalidStateException", " is pending replica deletion."},
	"I": {"KMSInvalidStateException", " is pending import."},
	"N": {"KMSInvalidStateException", " is not pending deletion."},
	"X": {"UnsupportedOperationException", " origin is EXTERNAL which is not valid for this operation."},
}

// stateKinds are the kinds of keys: spec, usage and origin.
var stateKinds = map[string]struct {
	spec   types.KeySpec
	usage  types.KeyUsageType
	origin types.OriginType
}{
	"symmetric": {types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, types.OriginTypeAwsKms},
	"imported":  {types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, types.OriginTypeExternal},
	"sign":      {types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, types.OriginTypeAwsKms},
	"agree":     {types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement, types.OriginTypeAwsKms},
	"kem":       {types.KeySpecMlKem768, types.KeyUsageTypeEncapsulateDecapsulate, types.OriginTypeAwsKms},
	"mac":       {types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac, types.OriginTypeAwsKms},
}

func keyOnly(_ *stateWorld, k stateKey) harness.Members { return harness.Members{"KeyId": k.id} }

// with adds members to the key's.
func with(more harness.Members) func(*stateWorld, stateKey) harness.Members {
	return func(_ *stateWorld, k stateKey) harness.Members {
		in := harness.Members{"KeyId": k.id}
		for name, v := range more {
			in[name] = v
		}
		return in
	}
}

func stateRows() []stateRow {
	const always, usable, changeable = "ok ok ok ok ok", "ok D P R I", "ok ok P R ok"
	alias := func(w *stateWorld, k stateKey) harness.Members {
		return harness.Members{"AliasName": "alias/" + rand.Text(), "TargetKeyId": k.id}
	}
	return []stateRow{
		{"CancelKeyDeletion", "symmetric", keyOnly, "N N ok ok N"},
		{"CreateAlias", "symmetric", alias, changeable},
		{"CreateGrant", "symmetric", with(harness.Members{"GranteePrincipal": "arn:aws:iam::" + harness.Account + ":user/u", "Operations": []string{"Encrypt"}}), usable},
		{"Decrypt", "symmetric", func(_ *stateWorld, k stateKey) harness.Members { return harness.Members{"CiphertextBlob": k.made} }, usable},
		{"Decapsulate", "kem", func(_ *stateWorld, k stateKey) harness.Members {
			return harness.Members{"KeyId": k.id, "SharedSecretCiphertextBlob": k.made, "EncapsulationAlgorithm": "ML_KEM"}
		}, "ok D P R"},
		{"DeleteAlias", "symmetric", func(_ *stateWorld, k stateKey) harness.Members { return harness.Members{"AliasName": k.alias} }, always},
		{"DeleteImportedKeyMaterial", "imported", keyOnly, always},
		{"DeriveSharedSecret", "agree", func(_ *stateWorld, k stateKey) harness.Members {
			return harness.Members{"KeyId": k.id, "KeyAgreementAlgorithm": "ECDH", "PublicKey": k.made}
		}, usable},
		{"DescribeKey", "symmetric", keyOnly, always},
		{"DisableKey", "symmetric", keyOnly, "ok ok P R I"},
		{"DisableKeyRotation", "symmetric", keyOnly, "ok D P R X"},
		{"EnableKey", "symmetric", keyOnly, "ok ok P R I"},
		{"EnableKeyRotation", "symmetric", keyOnly, "ok D P R X"},
		{"EnableKeyRotation", "imported", keyOnly, "X D P R X"},
		{"Encapsulate", "kem", with(harness.Members{"EncapsulationAlgorithm": "ML_KEM"}), "ok D P R"},
		{"Encrypt", "symmetric", with(harness.Members{"Plaintext": []byte("x")}), usable},
		{"Encrypt", "imported", with(harness.Members{"Plaintext": []byte("x")}), usable},
		{"GenerateDataKey", "symmetric", with(harness.Members{"KeySpec": "AES_256"}), usable},
		{"GenerateDataKeyPair", "symmetric", with(harness.Members{"KeyPairSpec": "ECC_NIST_P256"}), usable},
		{"GenerateDataKeyPairWithoutPlaintext", "symmetric", with(harness.Members{"KeyPairSpec": "ECC_NIST_P256"}), usable},
		{"GenerateDataKeyWithoutPlaintext", "symmetric", with(harness.Members{"KeySpec": "AES_256"}), usable},
		{"GenerateMac", "mac", with(harness.Members{"Message": []byte("m"), "MacAlgorithm": "HMAC_SHA_256"}), usable},
		{"GetKeyLastUsage", "symmetric", keyOnly, always},
		{"GetKeyPolicy", "symmetric", keyOnly, always},
		{"GetKeyRotationStatus", "symmetric", keyOnly, always},
		{"GetParametersForImport", "imported", with(harness.Members{"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}), changeable},
		{"GetPublicKey", "sign", keyOnly, usable},
		{"ImportKeyMaterial", "imported", func(w *stateWorld, k stateKey) harness.Members {
			// Whether the key takes imports is seen before whether this one is good.
			if k.closed {
				return harness.Members{"KeyId": k.id, "ImportToken": []byte("x"), "EncryptedKeyMaterial": []byte("x"), "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
			}
			return w.importOf(k.id)
		}, changeable},
		{"ListAliases", "symmetric", keyOnly, always},
		{"ListGrants", "symmetric", keyOnly, always},
		{"ListKeyPolicies", "symmetric", keyOnly, always},
		{"ListKeyRotations", "symmetric", keyOnly, always},
		{"ListResourceTags", "symmetric", keyOnly, always},
		{"PutKeyPolicy", "symmetric", func(w *stateWorld, k stateKey) harness.Members {
			return harness.Members{"KeyId": k.id, "Policy": w.policy}
		}, always},
		{"ReEncrypt", "symmetric", func(w *stateWorld, k stateKey) harness.Members {
			return harness.Members{"CiphertextBlob": k.made, "DestinationKeyId": w.other}
		}, usable},
		{"ReEncrypt", "symmetric", func(w *stateWorld, k stateKey) harness.Members {
			return harness.Members{"CiphertextBlob": w.blob, "DestinationKeyId": k.id}
		}, usable},
		{"ReplicateKey", "symmetric", with(harness.Members{"ReplicaRegion": harness.ThirdRegion}), usable},
		{"RetireGrant", "symmetric", func(_ *stateWorld, k stateKey) harness.Members {
			return harness.Members{"KeyId": k.arn, "GrantId": k.grant}
		}, always},
		{"RevokeGrant", "symmetric", func(_ *stateWorld, k stateKey) harness.Members {
			return harness.Members{"KeyId": k.id, "GrantId": k.grant}
		}, always},
		{"RotateKeyOnDemand", "symmetric", keyOnly, usable},
		{"ScheduleKeyDeletion", "symmetric", keyOnly, changeable},
		{"Sign", "sign", with(harness.Members{"Message": []byte("m"), "SigningAlgorithm": "ECDSA_SHA_256"}), usable},
		{"TagResource", "symmetric", with(harness.Members{"Tags": []harness.Members{{"TagKey": "k", "TagValue": "v"}}}), changeable},
		{"UntagResource", "symmetric", with(harness.Members{"TagKeys": []string{"k"}}), changeable},
		{"UpdateAlias", "symmetric", func(w *stateWorld, k stateKey) harness.Members {
			return harness.Members{"AliasName": k.alias, "TargetKeyId": w.other}
		}, always},
		{"UpdateAlias", "symmetric", func(w *stateWorld, k stateKey) harness.Members {
			return harness.Members{"AliasName": w.otherAlias, "TargetKeyId": k.id}
		}, changeable},
		{"UpdateKeyDescription", "symmetric", with(harness.Members{"Description": "new"}), changeable},
		{"UpdatePrimaryRegion", "symmetric", with(harness.Members{"PrimaryRegion": harness.SecondRegion}), usable},
		{"Verify", "sign", func(_ *stateWorld, k stateKey) harness.Members {
			return harness.Members{"KeyId": k.id, "Message": []byte("m"), "SigningAlgorithm": "ECDSA_SHA_256", "Signature": k.made}
		}, usable},
		{"VerifyMac", "mac", func(_ *stateWorld, k stateKey) harness.Members {
			return harness.Members{"KeyId": k.id, "Message": []byte("m"), "MacAlgorithm": "HMAC_SHA_256", "Mac": k.made}
		}, usable},
	}
}

// stateKey is a key in a state.
type stateKey struct {
	id, arn string
	alias   string
	grant   string // on a symmetric key
	made    []byte // with the key while it was enabled: what operations of its kind take
	closed  bool   // on its way out
}

// stateWorld makes keys and brings them into states, all by requests.
type stateWorld struct {
	t    *testing.T
	n    *harness.Node
	kms  *kms.Client
	keys map[string]stateKey // by kind and state, those that no request has changed

	other, otherAlias string // a key that is enabled
	blob              []byte // a ciphertext of that key
	policy            string
}

// importOf is an import of always the same material.
func (w *stateWorld) importOf(id string) harness.Members {
	w.t.Helper()
	p := harness.Must[*kms.GetParametersForImportOutput](w.t)(w.kms.GetParametersForImport(w.t.Context(), &kms.GetParametersForImportInput{
		KeyId: &id, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa2048,
	}))
	public := harness.Must[any](w.t)(x509.ParsePKIXPublicKey(p.PublicKey))
	wrapped := harness.Must[[]byte](w.t)(rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), []byte(strings.Repeat("m", 32)), nil))
	return harness.Members{"KeyId": id, "ImportToken": p.ImportToken, "EncryptedKeyMaterial": wrapped, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
}

// key is one of a kind in a state: the one of earlier, if no request changed it.
func (w *stateWorld) key(kind, state string) stateKey {
	w.t.Helper()
	if k, ok := w.keys[kind+state]; ok {
		return k
	}
	t, ctx := w.t, w.t.Context()
	s := stateKinds[kind]
	if state == "PendingImport" {
		s.origin = types.OriginTypeExternal
	}
	// Keys with others in their set are never pending deletion.
	multi := state != "PendingDeletion"
	m := harness.Must[*kms.CreateKeyOutput](t)(w.kms.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: s.spec, KeyUsage: s.usage, Origin: s.origin, MultiRegion: &multi})).KeyMetadata
	k := stateKey{id: *m.KeyId, arn: *m.Arn, alias: "alias/" + rand.Text()}
	harness.Must[*kms.CreateAliasOutput](t)(w.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &k.alias, TargetKeyId: &k.id}))
	if s.origin == types.OriginTypeExternal && (state != "PendingImport" || kind == "symmetric") {
		w.mustSDK("ImportKeyMaterial", w.importOf(k.id))
	}
	w.make(&k, kind, state)
	if multi && state != "PendingImport" {
		harness.Must[*kms.ReplicateKeyOutput](t)(w.kms.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &k.id, ReplicaRegion: aws.String(harness.SecondRegion)}))
	}
	switch state {
	case "Disabled":
		w.mustSDK("DisableKey", harness.Members{"KeyId": k.id})
	case "PendingDeletion", "PendingReplicaDeletion":
		k.closed = true
		w.mustSDK("ScheduleKeyDeletion", harness.Members{"KeyId": k.id})
	case "PendingImport":
		w.mustSDK("DeleteImportedKeyMaterial", harness.Members{"KeyId": k.id})
	}
	d := harness.Must[*kms.DescribeKeyOutput](t)(w.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &k.id}))
	if got := string(d.KeyMetadata.KeyState); got != state {
		t.Fatalf("the key is %s, want %s", got, state)
	}
	w.keys[kind+state] = k
	return k
}

// make makes with a key what is to be opened or verified in another state. A key
// that never had material has made nothing, which its state is seen before.
func (w *stateWorld) make(k *stateKey, kind, state string) {
	w.t.Helper()
	t, ctx := w.t, w.t.Context()
	switch {
	case kind == "agree":
		p := w.key("sign", "Enabled") // on the same curve
		k.made = harness.Must[*kms.GetPublicKeyOutput](t)(w.kms.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &p.id})).PublicKey
	case kind == "symmetric" || kind == "imported" && state != "PendingImport":
		k.made = harness.Must[*kms.EncryptOutput](t)(w.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &k.id, Plaintext: []byte("x")})).CiphertextBlob
		k.grant = *harness.Must[*kms.CreateGrantOutput](t)(w.kms.CreateGrant(ctx, &kms.CreateGrantInput{
			KeyId: &k.id, GranteePrincipal: aws.String("arn:aws:iam::" + harness.Account + ":user/u"), Operations: []types.GrantOperation{types.GrantOperationEncrypt},
		})).GrantId
	case state == "PendingImport":
		k.made = []byte("x")
	case kind == "sign":
		k.made = harness.Must[*kms.SignOutput](t)(w.kms.Sign(ctx, &kms.SignInput{KeyId: &k.id, Message: []byte("m"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256})).Signature
	case kind == "kem":
		k.made = harness.Must[*kms.EncapsulateOutput](t)(w.kms.Encapsulate(ctx, &kms.EncapsulateInput{KeyId: &k.id, EncapsulationAlgorithm: types.EncapsulationAlgorithmSpecMlKem})).SharedSecretCiphertextBlob
	case kind == "mac":
		k.made = harness.Must[*kms.GenerateMacOutput](t)(w.kms.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: &k.id, Message: []byte("m"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256})).Mac
	}
}

// request makes a request by the method of a client that has the operation's name.
func (w *stateWorld) request(client any, op string, in harness.Members) error {
	w.t.Helper()
	method := reflect.ValueOf(client).MethodByName(op)
	arg := reflect.New(method.Type().In(1).Elem())
	harness.FillRequest(w.t, arg.Elem(), in)
	err, _ := method.Call([]reflect.Value{reflect.ValueOf(w.t.Context()), arg})[1].Interface().(error)
	return err
}

func (w *stateWorld) mustSDK(op string, in harness.Members) {
	w.t.Helper()
	if err := w.request(w.kms, op, in); err != nil {
		w.t.Fatalf("%s: %v", op, err)
	}
}

// TestKeyStates asks for every operation on keys in every state, through both
// faces. The engine's own table has more cases of each.
func TestKeyStates(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{Regions: []string{harness.Region, harness.SecondRegion, harness.ThirdRegion}})
	n := c.Nodes[0]
	c.MakePrincipals("user/u")
	w := &stateWorld{t: t, n: n, kms: n.SDK(), keys: make(map[string]stateKey), otherAlias: "alias/other"}
	ctx := t.Context()
	w.other = *harness.Must[*kms.CreateKeyOutput](t)(w.kms.CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.KeyId
	w.mustSDK("CreateAlias", harness.Members{"AliasName": w.otherAlias, "TargetKeyId": w.other})
	w.blob = harness.Must[*kms.EncryptOutput](t)(w.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &w.other, Plaintext: []byte("x")})).CiphertextBlob
	w.policy = *harness.Must[*kms.GetKeyPolicyOutput](t)(w.kms.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &w.other})).Policy
	faces := []struct {
		name   string
		client any
	}{{"aws", w.kms}, {"grpc", n.KMS()}}
	states := []string{"Enabled", "Disabled", "PendingDeletion", "PendingReplicaDeletion", "PendingImport"}
	var covered []string
	for _, row := range stateRows() {
		covered = append(covered, row.op)
		for i, want := range strings.Fields(row.want) {
			for _, face := range faces {
				t.Run(strings.Join([]string{row.op, row.kind, states[i], face.name}, " "), func(t *testing.T) {
					w.t = t
					k := w.key(row.kind, states[i])
					err := w.request(face.client, row.op, row.in(w, k))
					if want == "ok" {
						if err != nil {
							t.Error(err)
						}
						if !keyengine.OperationNamed(keyengine.KMS, row.op).ReadOnly {
							delete(w.keys, row.kind+states[i])
						}
						return
					}
					if err == nil {
						t.Fatalf("went on, want %s", stateErrors[want][0])
					}
					e := stateErrors[want]
					if code, message := harness.Told(err); code != e[0] || message != k.arn+e[1] {
						t.Errorf("got  %s: %s\nwant %s: %s", code, message, e[0], k.arn+e[1])
					}
				})
			}
		}
	}
	w.t = t
	for _, op := range keyengine.OperationsOf(keyengine.KMS) {
		if onNoKey := slices.Contains([]string{"CreateKey", "ListKeys", "ListRetirableGrants", "GenerateRandom"}, op.Name) ||
			strings.Contains(op.Name, "CustomKeyStore"); !onNoKey && !slices.Contains(covered, op.Name) {
			t.Errorf("%s was not asked for", op.Name)
		}
	}
	c.NoFaults()
}
