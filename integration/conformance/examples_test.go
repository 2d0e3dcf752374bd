package conformance

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
)

// examples are the calls whose answers TestConformanceOutputs checks, in this order:
// what one makes the later ones use. An operation that is added needs an example
// here, and each member of optional a case that has it.
var examples = slices.Concat(keyExamples, cryptoExamples, enclaveExamples, materialExamples, regionExamples, grantExamples, storeExamples, lastExamples)

// Members of metadata that kinds of keys have.
var (
	ofSymmetric = []string{"KeyMetadata.CustomerMasterKeySpec", "KeyMetadata.EncryptionAlgorithms", "KeyMetadata.CurrentKeyMaterialId"}
	ofSigning   = []string{"KeyMetadata.CustomerMasterKeySpec", "KeyMetadata.SigningAlgorithms"}
	ofNewSpecs  = []string{"KeyMetadata.SigningAlgorithms"}
	ofRSA       = []string{"KeyMetadata.CustomerMasterKeySpec", "KeyMetadata.EncryptionAlgorithms"}
	ofAgreement = []string{"KeyMetadata.CustomerMasterKeySpec", "KeyMetadata.KeyAgreementAlgorithms"}
	ofKEM       = []string{"KeyMetadata.EncapsulationAlgorithms"}
	ofMAC       = []string{"KeyMetadata.CustomerMasterKeySpec", "KeyMetadata.MacAlgorithms"}
	ofSet       = append(slices.Clone(ofSymmetric), "KeyMetadata.MultiRegionConfiguration")
	ofAwaited   = []string{"KeyMetadata.CustomerMasterKeySpec", "KeyMetadata.EncryptionAlgorithms"} // no material yet
)

// given makes a request of members that depend on nothing.
func given(m harness.Members) func(*exampleWorld) harness.Members {
	return func(*exampleWorld) harness.Members { return m }
}

// on makes a request on a key, with more members.
func on(key string, more harness.Members) func(*exampleWorld) harness.Members {
	return func(w *exampleWorld) harness.Members {
		m := harness.Members{"KeyId": w.key(key)}
		for name, v := range more {
			m[name] = v
		}
		return m
	}
}

var keyExamples = []example{
	{op: "CreateKey", of: "symmetric", in: given(harness.Members{"Description": "x", "Tags": []any{harness.Members{"TagKey": "a", "TagValue": ""}}}), with: ofSymmetric},
	{op: "CreateKey", of: "second", with: ofSymmetric},
	{op: "CreateKey", of: "RSA", in: given(harness.Members{"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}), with: ofRSA},
	{op: "CreateKey", of: "signing", in: given(harness.Members{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}), with: ofSigning},
	{op: "CreateKey", of: "ML-DSA", in: given(harness.Members{"KeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY"}), with: ofNewSpecs},
	{op: "CreateKey", of: "Ed25519", in: given(harness.Members{"KeySpec": "ECC_NIST_EDWARDS25519", "KeyUsage": "SIGN_VERIFY"}), with: ofNewSpecs},
	{op: "CreateKey", of: "agreement", in: given(harness.Members{"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"}), with: ofAgreement},
	{op: "CreateKey", of: "HMAC", in: given(harness.Members{"KeySpec": "HMAC_224", "KeyUsage": "GENERATE_VERIFY_MAC"}), with: ofMAC},
	{op: "CreateKey", of: "ML-KEM", in: given(harness.Members{"KeySpec": "ML_KEM_768", "KeyUsage": "ENCAPSULATE_DECAPSULATE"}), with: ofKEM},
	{op: "CreateKey", of: "imported", in: given(harness.Members{"Origin": "EXTERNAL"}), with: ofAwaited},
	{op: "CreateKey", of: "imported HMAC", in: given(harness.Members{"Origin": "EXTERNAL", "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"}), with: ofMAC},
	{op: "CreateKey", of: "primary", in: given(harness.Members{"MultiRegion": true}), with: ofSet},

	{op: "DescribeKey", in: on("symmetric", nil), with: ofSymmetric},
	{op: "ListKeys", in: nil},
	{op: "ListKeys", of: "page", in: given(harness.Members{"Limit": 1}), with: []string{"ListKeysResponse.NextMarker"}},
	{op: "UpdateKeyDescription", in: on("symmetric", harness.Members{"Description": ""})},
	{op: "DisableKey", in: on("symmetric", nil)},
	{op: "EnableKey", in: on("symmetric", nil)},

	{op: "CreateAlias", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"AliasName": "alias/one", "TargetKeyId": w.key("symmetric")}
	}},
	{op: "CreateAlias", of: "second", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"AliasName": "alias/two", "TargetKeyId": w.key("symmetric")}
	}},
	{op: "UpdateAlias", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"AliasName": "alias/one", "TargetKeyId": w.key("second")}
	}},
	{op: "ListAliases"},
	{op: "ListAliases", of: "page", in: given(harness.Members{"Limit": 1}), with: []string{"ListAliasesResponse.NextMarker"}},
	{op: "DeleteAlias", in: given(harness.Members{"AliasName": "alias/one"})},

	{op: "TagResource", in: on("symmetric", harness.Members{"Tags": []any{harness.Members{"TagKey": "b", "TagValue": "x"}, harness.Members{"TagKey": "c", "TagValue": "x"}}})},
	{op: "ListResourceTags", in: on("symmetric", nil)},
	{op: "ListResourceTags", of: "page", in: on("symmetric", harness.Members{"Limit": 1}), with: []string{"ListResourceTagsResponse.NextMarker"}},
	{op: "UntagResource", in: on("symmetric", harness.Members{"TagKeys": []any{"b", "none"}})},

	{op: "GetKeyPolicy", in: on("symmetric", nil)},
	{op: "PutKeyPolicy", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"KeyId": w.key("symmetric"), "Policy": w.of("GetKeyPolicy", "Policy")}
	}},
	{op: "ListKeyPolicies", in: on("symmetric", nil)},

	{op: "GetKeyLastUsage", of: "unused", in: on("second", nil)},
	{op: "GetKeyRotationStatus", in: on("symmetric", nil)},
	{op: "EnableKeyRotation", in: on("symmetric", harness.Members{"RotationPeriodInDays": 90})},
	{op: "GetKeyRotationStatus", of: "enabled", in: on("symmetric", nil),
		with: []string{"GetKeyRotationStatusResponse.RotationPeriodInDays", "GetKeyRotationStatusResponse.NextRotationDate"}},
	{op: "DisableKeyRotation", in: on("symmetric", nil)},
	{op: "RotateKeyOnDemand", in: on("symmetric", nil)},
	{op: "RotateKeyOnDemand", of: "again", in: on("symmetric", nil)},
	{op: "ListKeyRotations", in: on("symmetric", nil), with: []string{"RotationsListEntry.RotationDate", "RotationsListEntry.RotationType"}},
	{op: "ListKeyRotations", of: "page", in: on("symmetric", harness.Members{"Limit": 1}),
		with: []string{"RotationsListEntry.RotationDate", "RotationsListEntry.RotationType", "ListKeyRotationsResponse.NextMarker"}},
	{op: "ListKeyRotations", of: "first", in: on("second", harness.Members{"IncludeKeyMaterial": "ALL_KEY_MATERIAL"})},
}

var (
	greeting = harness.Members{"who": "anybody"}
	message  = []byte("a message")
	noLetter = []string{"DecryptResponse.Plaintext", "DecryptResponse.KeyMaterialId"}
	wholeKey = []string{"GenerateDataKeyResponse.Plaintext", "GenerateDataKeyResponse.KeyMaterialId"}
)

var cryptoExamples = []example{
	{op: "Encrypt", in: on("symmetric", harness.Members{"Plaintext": message, "EncryptionContext": greeting})},
	{op: "Decrypt", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"CiphertextBlob": w.blob("Encrypt", "CiphertextBlob"), "EncryptionContext": greeting}
	}, with: noLetter},
	{op: "ReEncrypt", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"CiphertextBlob": w.blob("Encrypt", "CiphertextBlob"), "SourceEncryptionContext": greeting, "DestinationKeyId": w.key("second")}
	}, with: []string{"ReEncryptResponse.SourceKeyMaterialId", "ReEncryptResponse.DestinationKeyMaterialId"}},
	{op: "Encrypt", of: "RSA", in: on("RSA", harness.Members{"Plaintext": message, "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"})},
	{op: "Decrypt", of: "RSA", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"KeyId": w.key("RSA"), "CiphertextBlob": w.blob("Encrypt RSA", "CiphertextBlob"), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
	}, with: []string{"DecryptResponse.Plaintext"}},
	{op: "ReEncrypt", of: "from RSA", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"SourceKeyId": w.key("RSA"), "CiphertextBlob": w.blob("Encrypt RSA", "CiphertextBlob"),
			"SourceEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "DestinationKeyId": w.key("second")}
	}, with: []string{"ReEncryptResponse.DestinationKeyMaterialId"}},
	{op: "ReEncrypt", of: "to RSA", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"CiphertextBlob": w.blob("Encrypt", "CiphertextBlob"), "SourceEncryptionContext": greeting,
			"DestinationKeyId": w.key("RSA"), "DestinationEncryptionAlgorithm": "RSAES_OAEP_SHA_1"}
	}, with: []string{"ReEncryptResponse.SourceKeyMaterialId"}},
	{op: "GenerateDataKey", in: on("symmetric", harness.Members{"KeySpec": "AES_256"}), with: wholeKey},
	{op: "GenerateDataKeyWithoutPlaintext", in: on("symmetric", harness.Members{"NumberOfBytes": 1024})},
	{op: "GenerateDataKeyPair", in: on("symmetric", harness.Members{"KeyPairSpec": "ECC_NIST_P521"}),
		with: []string{"GenerateDataKeyPairResponse.PrivateKeyPlaintext", "GenerateDataKeyPairResponse.KeyMaterialId"}},
	{op: "GenerateDataKeyPairWithoutPlaintext", in: on("symmetric", harness.Members{"KeyPairSpec": "ECC_NIST_EDWARDS25519"})},
	{op: "GenerateDataKeyPairWithoutPlaintext", of: "ML-KEM", in: on("symmetric", harness.Members{"KeyPairSpec": "ML_KEM_1024"})},
	{op: "GenerateRandom", in: given(harness.Members{"NumberOfBytes": 32}), with: []string{"GenerateRandomResponse.Plaintext"}},
	{op: "GetKeyLastUsage", of: "used", in: on("symmetric", nil), with: []string{
		"KeyLastUsageData.Operation", "KeyLastUsageData.Timestamp", "KeyLastUsageData.CloudTrailEventId", "KeyLastUsageData.KmsRequestId"}},

	{op: "Sign", in: on("signing", harness.Members{"Message": message, "SigningAlgorithm": "ECDSA_SHA_256"})},
	{op: "Verify", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"KeyId": w.key("signing"), "Message": message, "Signature": w.blob("Sign", "Signature"), "SigningAlgorithm": "ECDSA_SHA_256"}
	}},
	{op: "Sign", of: "ML-DSA", in: on("ML-DSA", harness.Members{"Message": message, "SigningAlgorithm": "ML_DSA_SHAKE_256"})},
	{op: "GetPublicKey", of: "RSA", in: on("RSA", nil), with: []string{"GetPublicKeyResponse.CustomerMasterKeySpec", "GetPublicKeyResponse.EncryptionAlgorithms"}},
	{op: "GetPublicKey", of: "signing", in: on("signing", nil), with: []string{"GetPublicKeyResponse.CustomerMasterKeySpec", "GetPublicKeyResponse.SigningAlgorithms"}},
	{op: "GetPublicKey", of: "ML-DSA", in: on("ML-DSA", nil), with: []string{"GetPublicKeyResponse.SigningAlgorithms"}},
	{op: "GetPublicKey", of: "agreement", in: on("agreement", nil), with: []string{"GetPublicKeyResponse.CustomerMasterKeySpec", "GetPublicKeyResponse.KeyAgreementAlgorithms"}},
	{op: "GenerateMac", in: on("HMAC", harness.Members{"Message": message, "MacAlgorithm": "HMAC_SHA_224"})},
	{op: "VerifyMac", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"KeyId": w.key("HMAC"), "Message": message, "Mac": w.blob("GenerateMac", "Mac"), "MacAlgorithm": "HMAC_SHA_224"}
	}},
	{op: "Encapsulate", in: on("ML-KEM", harness.Members{"EncapsulationAlgorithm": "ML_KEM"})},
	{op: "Decapsulate", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"KeyId": w.key("ML-KEM"), "SharedSecretCiphertextBlob": w.blob("Encapsulate", "SharedSecretCiphertextBlob"), "EncapsulationAlgorithm": "ML_KEM"}
	}},
	{op: "GetPublicKey", of: "ML-KEM", in: on("ML-KEM", nil), with: []string{"GetPublicKeyResponse.EncapsulationAlgorithms"}},
	{op: "DeriveSharedSecret", in: agreement, with: []string{"DeriveSharedSecretResponse.SharedSecret"}},
}

// enclaveExamples have the caller in an enclave.
var enclaveExamples = []example{
	{op: "Decrypt", of: "for an enclave", in: forEnclave(func(w *exampleWorld) harness.Members {
		return harness.Members{"CiphertextBlob": w.blob("Encrypt", "CiphertextBlob"), "EncryptionContext": greeting}
	}), with: []string{"DecryptResponse.CiphertextForRecipient"}},
	{op: "GenerateDataKey", of: "for an enclave", in: forEnclave(on("symmetric", harness.Members{"KeySpec": "AES_256"})),
		with: []string{"GenerateDataKeyResponse.CiphertextForRecipient"}},
	{op: "GenerateDataKeyPair", of: "for an enclave", in: forEnclave(on("symmetric", harness.Members{"KeyPairSpec": "ECC_NIST_P256"})),
		with: []string{"GenerateDataKeyPairResponse.CiphertextForRecipient"}},
	{op: "GenerateRandom", of: "for an enclave", in: forEnclave(given(harness.Members{"NumberOfBytes": 32})),
		with: []string{"GenerateRandomResponse.CiphertextForRecipient"}},
	{op: "DeriveSharedSecret", of: "for an enclave", in: forEnclave(agreement), with: []string{"DeriveSharedSecretResponse.CiphertextForRecipient"}},
}

// forEnclave adds a Recipient to a request.
func forEnclave(in func(*exampleWorld) harness.Members) func(*exampleWorld) harness.Members {
	return func(w *exampleWorld) harness.Members {
		m := harness.Members{"Recipient": harness.Members{"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": w.enclave.Document(time.Now())}}
		for name, v := range in(w) {
			m[name] = v
		}
		return m
	}
}

// agreement makes a request that agrees on a secret with a new key.
func agreement(w *exampleWorld) harness.Members {
	w.t.Helper()
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(peer.PublicKey())
	if err != nil {
		w.t.Fatal(err)
	}
	return harness.Members{"KeyId": w.key("agreement"), "KeyAgreementAlgorithm": "ECDH", "PublicKey": spki}
}

var (
	wrapping       = harness.Members{"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
	ofImported     = append(slices.Clone(ofSymmetric), "KeyMetadata.ExpirationModel", "KeyMetadata.ValidTo")
	importedEntry  = []string{"RotationsListEntry.ImportState", "RotationsListEntry.ExpirationModel", "RotationsListEntry.ValidTo", "RotationsListEntry.KeyMaterialDescription"}
	materialIsTold = []string{"ImportKeyMaterialResponse.KeyMaterialId"}
)

var materialExamples = []example{
	{op: "GetParametersForImport", in: on("imported", wrapping)},
	{op: "ImportKeyMaterial", in: importing("imported", "GetParametersForImport", harness.Members{
		"ValidTo": float64(time.Now().Add(24 * time.Hour).Unix()), "KeyMaterialDescription": "from a test"}), with: materialIsTold},
	{op: "DescribeKey", of: "imported", in: on("imported", nil), with: ofImported},
	{op: "ListKeyRotations", of: "imported", in: on("imported", harness.Members{"IncludeKeyMaterial": "ALL_KEY_MATERIAL"}), with: importedEntry},
	{op: "DeleteImportedKeyMaterial", in: on("imported", nil), with: []string{"DeleteImportedKeyMaterialResponse.KeyMaterialId"}},
	{op: "DescribeKey", of: "without its material", in: on("imported", nil), with: ofSymmetric},
	{op: "GetParametersForImport", of: "HMAC", in: on("imported HMAC", wrapping)},
	{op: "ImportKeyMaterial", of: "HMAC", in: importing("imported HMAC", "GetParametersForImport HMAC", harness.Members{"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"})},
	{op: "DescribeKey", of: "HMAC", in: on("imported HMAC", nil), with: append(slices.Clone(ofMAC), "KeyMetadata.ExpirationModel")},
	{op: "DeleteImportedKeyMaterial", of: "HMAC", in: on("imported HMAC", nil)},
}

// importing makes a request that imports new random material, wrapped under what an
// example of GetParametersForImport gave.
func importing(key, params string, more harness.Members) func(*exampleWorld) harness.Members {
	return func(w *exampleWorld) harness.Members {
		w.t.Helper()
		material := make([]byte, 32)
		rand.Read(material)
		public, err := x509.ParsePKIXPublicKey(w.blob(params, "PublicKey"))
		if err != nil {
			w.t.Fatal(err)
		}
		wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), material, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		m := harness.Members{"ImportToken": w.blob(params, "ImportToken"), "EncryptedKeyMaterial": wrapped}
		for name, v := range more {
			m[name] = v
		}
		return on(key, m)(w)
	}
}

var regionExamples = []example{
	{op: "ReplicateKey", in: on("primary", harness.Members{"ReplicaRegion": harness.SecondRegion, "Tags": []any{harness.Members{"TagKey": "a", "TagValue": "b"}}}),
		with: []string{"KeyMetadata.CustomerMasterKeySpec", "KeyMetadata.EncryptionAlgorithms", "KeyMetadata.MultiRegionConfiguration", "ReplicateKeyResponse.ReplicaTags"}},
	{op: "DescribeKey", of: "replica", in: on("primary", nil), with: ofSet, region: harness.SecondRegion},
	{op: "UpdatePrimaryRegion", in: on("primary", harness.Members{"PrimaryRegion": harness.SecondRegion})},
	{op: "UpdatePrimaryRegion", of: "back", in: on("primary", harness.Members{"PrimaryRegion": harness.Region}), region: harness.SecondRegion},
	{op: "ScheduleKeyDeletion", of: "with replicas", in: on("primary", nil)},
	{op: "DescribeKey", of: "pending replica deletion", in: on("primary", nil), with: append(slices.Clone(ofSet), "KeyMetadata.PendingDeletionWindowInDays")},
}

var grantExamples = []example{
	{op: "CreateGrant", in: on("symmetric", harness.Members{
		"GranteePrincipal": testUser, "RetiringPrincipal": testRole, "Operations": []any{"Encrypt"}, "Name": "named",
		"Constraints": harness.Members{"EncryptionContextSubset": greeting}})},
	{op: "CreateGrant", of: "plain", in: on("symmetric", harness.Members{"GranteePrincipal": testUser, "Operations": []any{"Decrypt", "RetireGrant"}})},
	{op: "CreateGrant", of: "equals", in: on("second", harness.Members{
		"GranteePrincipal": testUser, "RetiringPrincipal": testUser, "Operations": []any{"Decrypt"},
		"Constraints": harness.Members{"EncryptionContextEquals": greeting}})},
	{op: "CreateGrant", of: "equals again", in: on("second", harness.Members{
		"GranteePrincipal": testRole, "RetiringPrincipal": testUser, "Operations": []any{"Decrypt"},
		"Constraints": harness.Members{"EncryptionContextEquals": greeting}})},
	{op: "ListGrants", in: on("symmetric", nil),
		with: []string{"GrantListEntry.GranteePrincipal", "GrantListEntry.RetiringPrincipal", "GrantListEntry.Constraints", "GrantConstraints.EncryptionContextSubset"}},
	{op: "ListGrants", of: "equals", in: on("second", nil),
		with: []string{"GrantListEntry.GranteePrincipal", "GrantListEntry.RetiringPrincipal", "GrantListEntry.Constraints", "GrantConstraints.EncryptionContextEquals"}},
	{op: "CreateGrant", of: "service", in: on("signing", harness.Members{
		"GranteeServicePrincipal": testService, "RetiringServicePrincipal": testService, "Operations": []any{"Sign"},
		"Constraints": harness.Members{"SourceArn": "arn:aws:dynamodb:" + harness.Region + ":" + harness.Account + ":table/some"}})},
	{op: "ListGrants", of: "service", in: on("signing", harness.Members{"GranteeServicePrincipal": testService}),
		with: []string{"GrantListEntry.GranteeServicePrincipal", "GrantListEntry.RetiringServicePrincipal", "GrantListEntry.Constraints", "GrantConstraints.SourceArn"}},
	{op: "ListRetirableGrants", in: given(harness.Members{"RetiringPrincipal": testUser, "Limit": 1}), with: []string{"ListGrantsResponse.NextMarker",
		"GrantListEntry.GranteePrincipal", "GrantListEntry.RetiringPrincipal", "GrantListEntry.Constraints", "GrantConstraints.EncryptionContextEquals"}},
	{op: "RetireGrant", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"GrantToken": w.of("CreateGrant plain", "GrantToken")}
	}},
	{op: "RevokeGrant", in: func(w *exampleWorld) harness.Members {
		return harness.Members{"KeyId": w.key("symmetric"), "GrantId": w.of("CreateGrant", "GrantId")}
	}},
}

const (
	testUser = "arn:aws:iam::" + harness.Account + ":user/somebody"
	testRole = "arn:aws:iam::" + harness.Account + ":role/some"

	testService = "backup." + harness.Region + ".example.com"
)

var lastExamples = []example{
	{op: "ScheduleKeyDeletion", in: on("second", harness.Members{"PendingWindowInDays": 7}), with: []string{"ScheduleKeyDeletionResponse.DeletionDate"}},
	{op: "DescribeKey", of: "pending deletion", in: on("second", nil), with: append(slices.Clone(ofSymmetric), "KeyMetadata.DeletionDate")},
	{op: "CancelKeyDeletion", in: on("second", nil)},
}
