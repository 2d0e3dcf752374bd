package keyengine

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// asymmetricReadCases are the cases of operations on keys that are not symmetric.
func asymmetricReadCases() (cases []readCase) {
	const all, aliased = "KEY KEY_POLICY CREDENTIAL", "KEY KEY_POLICY ALIAS CREDENTIAL"
	used := func(f *readFixture) []byte { return f.keyBytes(f.used) }
	alias := func(*readFixture) []byte { return fsm.AliasID(testAccountNumber, testRegion, "alias/used") }
	credential := func(f *readFixture) []byte { return fsm.CredentialID(testAccountNumber, f.alice.Credential()) }
	disable := func(f *readFixture) {
		f.modifyKey(f.used, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
	}
	removeAlias := func(f *readFixture) {
		f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(testAccountNumber), Name: "alias/used", Region: testRegion}}})
	}
	for _, op := range []string{
		"Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "DeriveSharedSecret", "Encapsulate", "Decapsulate", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
	} {
		byID := func(f *readFixture) any { return f.using(op, "") }
		byAlias := func(f *readFixture) any { return f.using(op, "alias/used") }
		cases = append(cases,
			readCase{op + ", key disabled", op, byID, fsmpb.Kind_KIND_KEY, used, disable, "ok", "DisabledException", all, false, false},
			readCase{op + ", permission withdrawn", op, byID, fsmpb.Kind_KIND_KEY_POLICY, used, func(f *readFixture) { f.deny(f.used) }, "ok", "AccessDeniedException", all, false, false},
			readCase{op + ", credential revoked", op, byID, fsmpb.Kind_KIND_CREDENTIAL, credential, func(f *readFixture) { f.revoke(f.alice) }, "ok", "UnrecognizedClientException", all, false, false},
			readCase{op + " by alias, alias deleted", op, byAlias, fsmpb.Kind_KIND_ALIAS, alias, removeAlias, "ok", "NotFoundException", aliased, false, false},
		)
	}
	return append(cases,
		readCase{"Decrypt with an RSA key, key disabled", "Decrypt", func(f *readFixture) any { return f.using("Decrypt", "") },
			fsmpb.Kind_KIND_KEY, used, disable, "ok", "DisabledException", all, false, false},
		readCase{"Verify, no signature", "Verify", func(f *readFixture) any {
			in := f.using("Verify", "").(*kmsapi.VerifyInput)
			in.Signature = []byte("none")
			return in
		}, fsmpb.Kind_KIND_KEY, used, disable, "KMSInvalidSignatureException", "DisabledException", all, false, false},
		readCase{"VerifyMac, no MAC", "VerifyMac", func(f *readFixture) any {
			in := f.using("VerifyMac", "").(*kmsapi.VerifyMacInput)
			in.Mac = []byte("none")
			return in
		}, fsmpb.Kind_KIND_KEY, used, disable, "KMSInvalidMacException", "DisabledException", all, false, false},
	)
}

// using creates a key with an alias, with which alice may do everything, and returns a
// request to use it by a name, or by its id if name is empty.
func (f *readFixture) using(op, name string) any {
	f.t.Helper()
	kind := map[string][2]string{
		"Sign": {"ECC_NIST_P256", kmsapi.UsageSign}, "Verify": {"ECC_NIST_P256", kmsapi.UsageSign}, "GetPublicKey": {"ECC_NIST_P256", kmsapi.UsageSign},
		"GenerateMac": {"HMAC_256", kmsapi.UsageMac}, "VerifyMac": {"HMAC_256", kmsapi.UsageMac}, "DeriveSharedSecret": {"ECC_NIST_P256", kmsapi.UsageAgree},
		"Encapsulate": {"ML_KEM_768", kmsapi.UsageEncapsulate}, "Decapsulate": {"ML_KEM_768", kmsapi.UsageEncapsulate},
		"GenerateDataKeyPair": {kmsapi.SpecSymmetric, kmsapi.UsageEncrypt}, "GenerateDataKeyPairWithoutPlaintext": {kmsapi.SpecSymmetric, kmsapi.UsageEncrypt},
		"Decrypt": {"RSA_2048", kmsapi.UsageEncrypt},
	}[op]
	f.used, _ = f.newKeyOf(kind[0], kind[1])
	f.setPolicy(f.used, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*")))
	must[request.None](f.testCluster, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/used"), TargetKeyId: &f.used})
	id := &f.used
	if name != "" {
		id = &name
	}
	curve, message := new("ECC_NIST_P256"), []byte("m")
	switch op {
	case "Sign":
		return f.signInput(*id)
	case "Verify":
		return &kmsapi.VerifyInput{KeyId: id, Message: message, Signature: f.sign(f.used, "ECDSA_SHA_256", "RAW", message), SigningAlgorithm: new("ECDSA_SHA_256")}
	case "GetPublicKey":
		return &kmsapi.GetPublicKeyInput{KeyId: id}
	case "GenerateMac":
		return f.macInput(*id)
	case "VerifyMac":
		mac := must[kmsapi.GenerateMacOutput](f.testCluster, "GenerateMac", f.macInput(f.used)).Mac
		return &kmsapi.VerifyMacInput{KeyId: id, Message: message, Mac: mac, MacAlgorithm: new("HMAC_SHA_256")}
	case "DeriveSharedSecret":
		return &kmsapi.DeriveSharedSecretInput{KeyId: id, KeyAgreementAlgorithm: new(cryptops.AlgorithmECDH), PublicKey: f.publicKey(f.used)}
	case "Encapsulate":
		return encapsulateInput(*id)
	case "Decapsulate":
		return decapsulateInput(*id, f.encapsulate(f.used).SharedSecretCiphertextBlob)
	case "GenerateDataKeyPair":
		return &kmsapi.GenerateDataKeyPairInput{KeyId: id, KeyPairSpec: curve}
	case "GenerateDataKeyPairWithoutPlaintext":
		return &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: id, KeyPairSpec: curve}
	}
	return &kmsapi.DecryptInput{KeyId: id, CiphertextBlob: f.encryptRSA(f.used, oaepSHA256, message), EncryptionAlgorithm: new(oaepSHA256)}
}
