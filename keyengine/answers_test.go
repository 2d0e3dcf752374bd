package keyengine

import (
	"maps"
	"reflect"
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

// aliasTakers are the operations whose KeyId may be an alias, according to AWS's
// documentation.
var aliasTakers = []string{
	"Decapsulate", "Decrypt", "DeriveSharedSecret", "DescribeKey", "Encapsulate", "Encrypt", "GenerateDataKey", "GenerateDataKeyPair",
	"GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", "GenerateMac", "GetPublicKey",
	"Sign", "Verify", "VerifyMac",
}

// TestAliasForKey passes aliases, of keys that exist and of keys that do not, to every operation
// with a KeyId. An operation that does not accept aliases must not answer NotFoundException,
// which clients take to mean that the key does not exist.
func TestAliasForKey(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(threeRegions()...))
	other, _ := c.newKey()
	seen := make(map[string]bool)
	for _, row := range keyStateRows() {
		if seen[row.op] {
			continue
		}
		k := newStateKey(c, row.kind, kmsapi.OriginKMS, other, false, fsmpb.KeyState_KEY_STATE_ENABLED)
		alias := k.aliasOf(k.id)
		arn := k.arn[:strings.LastIndex(k.arn, ":")+1]
		in := reflect.ValueOf(row.in(k)).Elem().FieldByName("KeyId")
		if !in.IsValid() {
			continue
		}
		seen[row.op] = true
		for _, name := range []string{alias, arn + alias, "alias/none", arn + "alias/none"} {
			t.Run(row.op+" "+name, func(t *testing.T) {
				c.t = t
				k.t = t
				in := row.in(k)
				reflect.ValueOf(in).Elem().FieldByName("KeyId").Set(reflect.ValueOf(&name))
				_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, row.op), in)
				exists := !strings.HasSuffix(name, "/none")
				switch {
				case !slices.Contains(aliasTakers, row.op):
					wantError(t, err, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation.")
				case !exists:
					wantError(t, err, kmsapi.ErrNotFound, "Alias "+arn+"alias/none is not found.")
				case err != nil:
					t.Errorf("with alias %s: %v", name, err)
				}
			})
		}
	}
	for _, op := range Operations() {
		if f := reflect.ValueOf(op.NewInput()).Elem().FieldByName("KeyId"); f.IsValid() && !seen[op.Name] {
			t.Errorf("%s has a KeyId but is not tested", op.Name)
		}
	}
}

// cryptoRow is an operation that uses a key, or one of the two keys of ReEncrypt.
type cryptoRow struct {
	op, side string
	usage    string
	spec     string // of a key that the operation takes
	// in returns a request for a key, with an algorithm if the operation has one.
	in func(id, algorithm string) any
	// algorithm is one that is incompatible with the spec; "" if there is none.
	algorithm string
	message   string // of the error about it
}

func cryptoRows(c *testCluster, peer []byte) []cryptoRow {
	const unknown = "is incompatible with key spec"
	const noDataKey = "You cannot generate a data key with an asymmetric CMK"
	some := []byte("x")
	symmetric, _ := c.newKey()
	return []cryptoRow{
		{"Encrypt", "", kmsapi.UsageEncrypt, kmsapi.SpecSymmetric, func(id, alg string) any {
			return &kmsapi.EncryptInput{KeyId: &id, Plaintext: some, EncryptionAlgorithm: &alg}
		}, "RSAES_OAEP_SHA_256", unknown},
		{"Decrypt", "", kmsapi.UsageEncrypt, kmsapi.SpecSymmetric, func(id, alg string) any {
			return &kmsapi.DecryptInput{KeyId: &id, CiphertextBlob: make([]byte, 256), EncryptionAlgorithm: &alg}
		}, "RSAES_OAEP_SHA_256", unknown},
		{"ReEncrypt", "source", kmsapi.UsageEncrypt, kmsapi.SpecSymmetric, func(id, alg string) any {
			return &kmsapi.ReEncryptInput{SourceKeyId: &id, CiphertextBlob: make([]byte, 256), SourceEncryptionAlgorithm: &alg, DestinationKeyId: &symmetric}
		}, "RSAES_OAEP_SHA_256", unknown},
		{"ReEncrypt", "destination", kmsapi.UsageEncrypt, kmsapi.SpecSymmetric, func(id, alg string) any {
			return &kmsapi.ReEncryptInput{CiphertextBlob: c.encrypt(symmetric, "x"), DestinationKeyId: &id, DestinationEncryptionAlgorithm: &alg}
		}, "RSAES_OAEP_SHA_256", unknown},
		{"GenerateDataKey", "", kmsapi.UsageEncrypt, "RSA_2048", func(id, _ string) any {
			return &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")}
		}, "the default", noDataKey},
		{"GenerateDataKeyWithoutPlaintext", "", kmsapi.UsageEncrypt, "RSA_2048", func(id, _ string) any {
			return &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: new("AES_256")}
		}, "the default", noDataKey},
		{"GenerateDataKeyPair", "", kmsapi.UsageEncrypt, "RSA_2048", func(id, _ string) any {
			return &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")}
		}, "the default", noDataKey},
		{"GenerateDataKeyPairWithoutPlaintext", "", kmsapi.UsageEncrypt, "RSA_2048", func(id, _ string) any {
			return &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")}
		}, "the default", noDataKey},
		{"Sign", "", kmsapi.UsageSign, "ECC_NIST_P256", func(id, alg string) any {
			return &kmsapi.SignInput{KeyId: &id, Message: some, SigningAlgorithm: &alg}
		}, "ECDSA_SHA_384", unknown},
		{"Verify", "", kmsapi.UsageSign, "ECC_NIST_P256", func(id, alg string) any {
			return &kmsapi.VerifyInput{KeyId: &id, Message: some, Signature: some, SigningAlgorithm: &alg}
		}, "ECDSA_SHA_384", unknown},
		{"GenerateMac", "", kmsapi.UsageMac, "HMAC_256", func(id, alg string) any {
			return &kmsapi.GenerateMacInput{KeyId: &id, Message: some, MacAlgorithm: &alg}
		}, "HMAC_SHA_512", unknown},
		{"VerifyMac", "", kmsapi.UsageMac, "HMAC_256", func(id, alg string) any {
			return &kmsapi.VerifyMacInput{KeyId: &id, Message: some, Mac: some, MacAlgorithm: &alg}
		}, "HMAC_SHA_512", unknown},
		{"DeriveSharedSecret", "", kmsapi.UsageAgree, "ECC_NIST_P256", func(id, alg string) any {
			return &kmsapi.DeriveSharedSecretInput{KeyId: &id, PublicKey: peer, KeyAgreementAlgorithm: &alg}
		}, "", ""},
		{"Encapsulate", "", kmsapi.UsageEncapsulate, "ML_KEM_768", func(id, _ string) any {
			return &kmsapi.EncapsulateInput{KeyId: &id, EncapsulationAlgorithm: new("ML_KEM")}
		}, "", ""},
		{"Decapsulate", "", kmsapi.UsageEncapsulate, "ML_KEM_768", func(id, _ string) any {
			return &kmsapi.DecapsulateInput{KeyId: &id, EncapsulationAlgorithm: new("ML_KEM"), SharedSecretCiphertextBlob: make([]byte, 1088)}
		}, "", ""},
	}
}

// TestOrderOfChecks checks, for every operation that uses a key and every state, that the key's
// usage is checked first, then its state, then the algorithm. So nobody learns the state of a
// key from an operation that the key is not for.
func TestOrderOfChecks(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	peerKey, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageAgree)
	rows := cryptoRows(c, c.publicKey(peerKey))
	wrong := map[string][2]string{ // for each usage, a key of another one
		kmsapi.UsageEncrypt: {"ECC_NIST_P256", kmsapi.UsageSign}, kmsapi.UsageSign: {"ECC_NIST_P256", kmsapi.UsageAgree},
		kmsapi.UsageMac: {kmsapi.SpecSymmetric, kmsapi.UsageEncrypt}, kmsapi.UsageAgree: {"ECC_NIST_P256", kmsapi.UsageSign}, kmsapi.UsageEncapsulate: {"ECC_NIST_P256", kmsapi.UsageSign},
	}
	covered := make(map[string]bool)
	for _, row := range rows {
		covered[row.op] = true
		for _, state := range keyStateColumns {
			if originOfState(state) == kmsapi.OriginImported && ops.Importable(row.spec) != nil {
				continue
			}
			t.Run(strings.Join([]string{row.op, row.side, ops.KeyStates[state]}, " "), func(t *testing.T) {
				c.t = t
				do := func(id string) error {
					algorithm := row.algorithm
					if algorithm == "" {
						algorithm = cryptops.AlgorithmECDH
					}
					_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, row.op), row.in(id, algorithm))
					return err
				}
				of := func(spec, usage string) *stateKey { return newKeyInState(c, spec, usage, originOfState(state), state) }
				other := of(wrong[row.usage][0], wrong[row.usage][1])
				wantError(t, do(other.id), kmsapi.ErrInvalidKeyUsage, other.arn+" key usage is "+wrong[row.usage][1]+" which is not valid for "+row.op+".")

				k := of(row.spec, row.usage)
				switch err := do(k.id); state {
				case fsmpb.KeyState_KEY_STATE_ENABLED:
					if row.algorithm == "" {
						return
					}
					if e, ok := err.(*kmsapi.Error); !ok || e.Code != kmsapi.ErrInvalidKeyUsage.Code || !strings.Contains(e.Message, row.message) {
						t.Errorf("got error %v, want %v: %s", err, kmsapi.ErrInvalidKeyUsage, row.message)
					}
				case fsmpb.KeyState_KEY_STATE_DISABLED:
					wantError(t, err, kmsapi.ErrDisabled, k.arn+" is disabled.")
				default:
					wantError(t, err, kmsapi.ErrInvalidState, k.arn+" is "+map[fsmpb.KeyState]string{
						fsmpb.KeyState_KEY_STATE_PENDING_DELETION:         "pending deletion",
						fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION: "pending replica deletion",
						fsmpb.KeyState_KEY_STATE_PENDING_IMPORT:           "pending import",
					}[state]+".")
				}
			})
		}
	}
	for _, op := range slices.Sorted(maps.Keys(request.UseNumber)) {
		if !covered[op] {
			t.Errorf("%s uses a key but is not tested", op)
		}
	}
}

// TestRotationStatusOfEachKind gets the rotation status of every kind of key in every state, and
// disables rotation that is not enabled.
func TestRotationStatusOfEachKind(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	for _, spec := range slices.Sorted(maps.Keys(ops.UsagesOf)) {
		if spec == kmsapi.SpecSM2 || spec == "RSA_3072" || spec == "RSA_4096" { // slow to make, and as RSA_2048
			continue
		}
		for _, usage := range ops.UsagesOf[spec] {
			for _, origin := range []string{kmsapi.OriginKMS, kmsapi.OriginImported} {
				if origin == kmsapi.OriginImported && strings.HasPrefix(spec, "ML_") {
					continue
				}
				t.Run(strings.Join([]string{spec, usage, origin}, " "), func(t *testing.T) {
					c.t = t
					in := func(state fsmpb.KeyState) *stateKey {
						return newKeyInState(c, spec, usage, origin, state)
					}
					for _, state := range keyStateColumns {
						if originOfState(state) == kmsapi.OriginImported && origin != kmsapi.OriginImported {
							continue
						}
						k := in(state)
						if s := c.rotationStatus(k.id); *s.KeyRotationEnabled || *s.KeyId != k.arn || s.RotationPeriodInDays != nil || s.NextRotationDate != nil {
							t.Errorf("%s: GetKeyRotationStatus returned %+v, want rotation disabled", ops.KeyStates[state], s)
						}
					}
					off := func(k *stateKey) error {
						_, err := call[request.None](c, "DisableKeyRotation", &kmsapi.DisableKeyRotationInput{KeyId: &k.id})
						return err
					}
					k := in(fsmpb.KeyState_KEY_STATE_ENABLED)
					if origin == kmsapi.OriginImported && spec == kmsapi.SpecSymmetric {
						wantError(t, off(k), kmsapi.ErrUnsupported, k.arn+" origin is EXTERNAL which is not valid for this operation.")
					} else if err := off(k); err != nil {
						t.Errorf("DisableKeyRotation without rotation: %v", err)
					}
					k = in(fsmpb.KeyState_KEY_STATE_DISABLED)
					wantError(t, off(k), kmsapi.ErrDisabled, k.arn+" is disabled.")
				})
			}
		}
	}
	c.t = t
	p := c.newProxy()
	id, _ := c.newStoreKey(p, c.newStore(p), "k")
	if *c.rotationStatus(id).KeyRotationEnabled {
		t.Error("rotation is enabled for a key in a custom key store")
	}
}

// originOfState returns an origin of keys that can be in a state.
func originOfState(state fsmpb.KeyState) string {
	if state == fsmpb.KeyState_KEY_STATE_PENDING_IMPORT {
		return kmsapi.OriginImported
	}
	return kmsapi.OriginKMS
}

// newKeyInState makes a key in a state. Only a multi-Region primary key can be pending replica
// deletion.
func newKeyInState(c *testCluster, spec, usage, origin string, state fsmpb.KeyState) *stateKey {
	c.t.Helper()
	multi := state == fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION
	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{KeySpec: &spec, KeyUsage: &usage, Origin: &origin, MultiRegion: &multi}).KeyMetadata
	k := &stateKey{testCluster: c, id: *m.KeyId, arn: *m.Arn, spec: spec, origin: origin}
	if origin == kmsapi.OriginImported {
		c.setMaterial(k.id, materialFor(c.t, spec))
	}
	k.enter(state)
	return k
}

// materialFor returns new material for keys of a spec.
func materialFor(t testing.TB, spec string) []byte {
	t.Helper()
	if spec == kmsapi.SpecSymmetric {
		return []byte(strings.Repeat("m", 32))
	}
	b, err := primitive.Generate(spec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
