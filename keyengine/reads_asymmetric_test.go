package keyengine

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// asymmetricReadCases are those of operations on keys that are not symmetric, each
// with the whole of what it reads: the key, by an alias, its policy, the credential.
func asymmetricReadCases() (cases []readCase) {
	const all, aliased = "KEY KEY_POLICY CREDENTIAL", "KEY KEY_POLICY ALIAS CREDENTIAL"
	used := func(w *readWorld) []byte { return w.keyBytes(w.used) }
	alias := func(*readWorld) []byte { return fsm.AliasID(testAccountNumber, testRegion, "alias/used") }
	credential := func(w *readWorld) []byte { return fsm.CredentialID(testAccountNumber, w.alice.Credential()) }
	disable := func(w *readWorld) {
		w.mangle(w.used, func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED })
	}
	removeAlias := func(w *readWorld) {
		w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(testAccountNumber), Name: "alias/used", Region: testRegion}}})
	}
	for _, op := range []string{
		"Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "DeriveSharedSecret", "Encapsulate", "Decapsulate", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
	} {
		byID := func(w *readWorld) any { return w.using(op, "") }
		byAlias := func(w *readWorld) any { return w.using(op, "alias/used") }
		cases = append(cases,
			readCase{op + ", key disabled", op, byID, fsmpb.Kind_KIND_KEY, used, disable, "ok", "DisabledException", all, false, false},
			readCase{op + ", permission withdrawn", op, byID, fsmpb.Kind_KIND_KEY_POLICY, used, func(w *readWorld) { w.deny(w.used) }, "ok", "AccessDeniedException", all, false, false},
			readCase{op + ", credential revoked", op, byID, fsmpb.Kind_KIND_CREDENTIAL, credential, func(w *readWorld) { w.revoke(w.alice) }, "ok", "UnrecognizedClientException", all, false, false},
			readCase{op + " by alias, alias deleted", op, byAlias, fsmpb.Kind_KIND_ALIAS, alias, removeAlias, "ok", "NotFoundException", aliased, false, false},
		)
	}
	return append(cases,
		readCase{"Decrypt with an RSA key, key disabled", "Decrypt", func(w *readWorld) any { return w.using("Decrypt", "") },
			fsmpb.Kind_KIND_KEY, used, disable, "ok", "DisabledException", all, false, false},
		readCase{"Verify, no signature", "Verify", func(w *readWorld) any {
			in := w.using("Verify", "").(*kmsapi.VerifyInput)
			in.Signature = []byte("none")
			return in
		}, fsmpb.Kind_KIND_KEY, used, disable, "KMSInvalidSignatureException", "DisabledException", all, false, false},
		readCase{"VerifyMac, no MAC", "VerifyMac", func(w *readWorld) any {
			in := w.using("VerifyMac", "").(*kmsapi.VerifyMacInput)
			in.Mac = []byte("none")
			return in
		}, fsmpb.Kind_KIND_KEY, used, disable, "KMSInvalidMacException", "DisabledException", all, false, false},
	)
}

// using makes a key that alice may do everything with, with an alias, and a request
// to use it by a name; "" for its id.
func (w *readWorld) using(op, name string) any {
	w.t.Helper()
	kind := map[string][2]string{
		"Sign": {"ECC_NIST_P256", kmsapi.UsageSign}, "Verify": {"ECC_NIST_P256", kmsapi.UsageSign}, "GetPublicKey": {"ECC_NIST_P256", kmsapi.UsageSign},
		"GenerateMac": {"HMAC_256", kmsapi.UsageMac}, "VerifyMac": {"HMAC_256", kmsapi.UsageMac}, "DeriveSharedSecret": {"ECC_NIST_P256", kmsapi.UsageAgree},
		"Encapsulate": {"ML_KEM_768", kmsapi.UsageEncapsulate}, "Decapsulate": {"ML_KEM_768", kmsapi.UsageEncapsulate},
		"GenerateDataKeyPair": {kmsapi.SpecSymmetric, kmsapi.UsageEncrypt}, "GenerateDataKeyPairWithoutPlaintext": {kmsapi.SpecSymmetric, kmsapi.UsageEncrypt},
		"Decrypt": {"RSA_2048", kmsapi.UsageEncrypt},
	}[op]
	w.used, _ = w.newKeyOf(kind[0], kind[1])
	w.setPolicy(w.used, w.policyFor(rootStatement, statement("Allow", aliceARN, "kms:*")))
	must[request.None](w.room, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/used"), TargetKeyId: &w.used})
	id := &w.used
	if name != "" {
		id = &name
	}
	curve, message := new("ECC_NIST_P256"), []byte("m")
	switch op {
	case "Sign":
		return w.signInput(*id)
	case "Verify":
		return &kmsapi.VerifyInput{KeyId: id, Message: message, Signature: w.signs(w.used, "ECDSA_SHA_256", "RAW", message), SigningAlgorithm: new("ECDSA_SHA_256")}
	case "GetPublicKey":
		return &kmsapi.GetPublicKeyInput{KeyId: id}
	case "GenerateMac":
		return w.macInput(*id)
	case "VerifyMac":
		mac := must[kmsapi.GenerateMacOutput](w.room, "GenerateMac", w.macInput(w.used)).Mac
		return &kmsapi.VerifyMacInput{KeyId: id, Message: message, Mac: mac, MacAlgorithm: new("HMAC_SHA_256")}
	case "DeriveSharedSecret":
		return &kmsapi.DeriveSharedSecretInput{KeyId: id, KeyAgreementAlgorithm: new(cryptops.AlgorithmECDH), PublicKey: w.publicKey(w.used)}
	case "Encapsulate":
		return encapsulateInput(*id)
	case "Decapsulate":
		return decapsulateInput(*id, w.encapsulates(w.used).SharedSecretCiphertextBlob)
	case "GenerateDataKeyPair":
		return &kmsapi.GenerateDataKeyPairInput{KeyId: id, KeyPairSpec: curve}
	case "GenerateDataKeyPairWithoutPlaintext":
		return &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: id, KeyPairSpec: curve}
	}
	return &kmsapi.DecryptInput{KeyId: id, CiphertextBlob: w.encryptRSA(w.used, oaepSHA256, message), EncryptionAlgorithm: new(oaepSHA256)}
}
