package docs

// What docs/compatibility.md says beyond AWS's model and the engine's table: the one
// place for each limit of an operation that the model does not have, and for each
// known difference from AWS. An operation without a row fails TestCompatibility.

// compatRow is what there is to say of an operation.
type compatRow struct {
	limits      string
	differences []string
}

// Differences that several operations have.
const (
	ownContext  = "The limit of the encryption context is Conclave's; AWS states none."
	forEnclaves = "Recipient: see [enclaves](#enclaves)."
	noSM2       = "SM2: UnsupportedOperationException."
	cutLimit    = "A larger Limit (up to 1000) is cut to that."
	onePolicy   = "more than 32,768 bytes of policy: LimitExceededException"
	ownText     = "Not every policy is taken: see [policies](#policies)."
)

var compatRows = map[string]compatRow{
	"CancelKeyDeletion":    {},
	"CreateAlias":          {limits: "50 aliases per key"},
	"UpdateAlias":          {limits: "50 aliases per key"},
	"DeleteAlias":          {},
	"DescribeKey":          {},
	"DisableKey":           {differences: []string{"Holds on every node when the call returns."}},
	"EnableKey":            {differences: []string{"Holds on every node when the call returns."}},
	"UpdateKeyDescription": {},
	"CreateKey": {limits: "100,000 keys per Region; 50 tags; " + onePolicy, differences: []string{
		noSM2,
		"ML-DSA and ML-KEM with Origin EXTERNAL: UnsupportedOperationException. AWS says so of ML-DSA, and of ML-KEM nothing.",
		"Keys made at the same time can exceed the quota by a few.",
		"CustomerMasterKeySpec is left out of answers for specs that its enum lacks (ML-DSA, ML-KEM, Ed25519).",
		ownText,
	}},
	"ListKeys":    {limits: "100 a page, at most 1000"},
	"ListAliases": {limits: "50 a page, at most 100", differences: []string{cutLimit, "There are no `alias/aws/…`."}},
	"ScheduleKeyDeletion": {limits: "default 30 days", differences: []string{
		"The window is never shorter than asked, by cluster time, which one wrong clock cannot move.",
	}},
	"GetKeyLastUsage": {differences: []string{
		"TrackingStartDate is the key's creation.",
		"CloudTrailEventId is the id of the record in the cluster's audit log.",
	}},

	"TagResource":      {limits: "50 tags per key", differences: []string{"A 51st tag is TagException."}},
	"UntagResource":    {},
	"ListResourceTags": {limits: "50 a page", differences: []string{cutLimit}},

	"GetKeyPolicy":    {differences: []string{"The policy is the text that was put, byte for byte."}},
	"PutKeyPolicy":    {limits: onePolicy, differences: []string{"Holds on every node when the call returns.", ownText}},
	"ListKeyPolicies": {limits: "100 a page, at most 1000"},

	"Encrypt": {limits: "RSA: 190 to 470 bytes, by spec and algorithm", differences: []string{ownContext, "Ciphertexts are Conclave's own: neither service opens the other's."}},
	"Decrypt": {differences: []string{ownContext, forEnclaves,
		"A dry run opens the ciphertext: else it could not say that the request would have succeeded.",
		"A ciphertext with the id of a key that never was is InvalidCiphertextException; of one that is gone, AccessDeniedException.",
	}},
	"ReEncrypt":                           {differences: []string{ownContext, "A dry run opens the ciphertext."}},
	"GenerateDataKey":                     {differences: []string{ownContext, forEnclaves}},
	"GenerateDataKeyWithoutPlaintext":     {differences: []string{ownContext}},
	"GenerateDataKeyPair":                 {differences: []string{ownContext, forEnclaves, noSM2}},
	"GenerateDataKeyPairWithoutPlaintext": {differences: []string{ownContext, noSM2}},
	"GenerateRandom":                      {differences: []string{forEnclaves}},

	"Sign": {limits: "digests as long as the algorithm's; EXTERNAL_MU 64 bytes", differences: []string{
		"SM2DSA: no key has it.",
		"Signatures under ECC_SECG_P256K1 are deterministic (RFC 6979), with the lower s.",
	}},
	"Verify":             {limits: "digests as long as the algorithm's; EXTERNAL_MU 64 bytes"},
	"GetPublicKey":       {differences: []string{"CustomerMasterKeySpec is left out for specs that its enum lacks (ML-DSA, ML-KEM, Ed25519)."}},
	"GenerateMac":        {},
	"VerifyMac":          {},
	"DeriveSharedSecret": {differences: []string{forEnclaves}},

	"Encapsulate": {},
	"Decapsulate": {limits: "ciphertexts of 768, 1088 or 1568 bytes, by spec", differences: []string{
		"A dry run sees the length of the ciphertext; nothing else of one can be wrong.",
	}},

	"CreateGrant": {limits: "50,000 grants per key; constraints of 1–8 pairs, values of 384 characters", differences: []string{
		"A grant counts everywhere when the call returns; its token adds nothing to that.",
		"Principals are ARNs of accounts, users, roles and sessions of roles of the cluster, and exist, else InvalidArnException; see [identities](#identities).",
		"A SourceArn constraint admits only requests that a service principal makes for that ARN, also in a grant to somebody else: see [grants to services](#grants-to-services).",
		"An EncryptionContextEquals without pairs, with none in EncryptionContextSubset either, is ValidationException.",
		"Keys of a constraint are compared without case in A to Z only.",
	}},
	"ListGrants":          {limits: "50 a page, at most 100", differences: []string{cutLimit, "GranteeServicePrincipal may be given by all who may list the key's grants."}},
	"ListRetirableGrants": {limits: "50 a page, at most 100", differences: []string{cutLimit, "RetiringServicePrincipal may be given by that service alone."}},
	"RetireGrant":         {differences: []string{"Holds on every node when the call returns."}},
	"RevokeGrant":         {differences: []string{"Holds on every node when the call returns."}},

	"EnableKeyRotation":    {limits: "default 365 days", differences: []string{"A rotation that was missed, as the key was disabled, is done once."}},
	"DisableKeyRotation":   {differences: []string{"Succeeds for keys of kinds that do not rotate: it is off."}},
	"GetKeyRotationStatus": {differences: []string{"OnDemandRotationStartDate is never there: a rotation takes no time."}},
	"ListKeyRotations":     {limits: "100 a page, at most 1000"},
	"RotateKeyOnDemand":    {limits: "25 per key", differences: []string{"Is done when the call returns."}},

	"GetParametersForImport": {limits: "token of 24 hours", differences: []string{
		"The token is good for one import; AWS's may be used again.",
		"RSAES_PKCS1_V1_5 (which AWS refuses since 2023) and SM2PKE: UnsupportedOperationException.",
	}},
	"ImportKeyMaterial": {limits: "ValidTo at most 365 days ahead", differences: []string{
		"The token is good for one import; a refused one does not use it up.",
		"Material of nothing but zeros is IncorrectKeyMaterialException.",
	}},
	"DeleteImportedKeyMaterial": {},

	"ReplicateKey": {limits: "50 tags; " + onePolicy, differences: []string{
		"ReplicaRegion is one of those that the cluster was founded with, else ValidationException.", "A set has keys in 12 Regions at most, else LimitExceededException.",
		"The replica is there when the call returns, though the answer says Creating as AWS's does.",
		"One record in the audit log stands for AWS's three.",
	}},
	"UpdatePrimaryRegion": {differences: []string{"Is done when the call returns; there is no state Updating."}},

	"CreateCustomKeyStore": {limits: "10 stores per Region", differences: []string{
		"AWS_CLOUDHSM is a token of a PKCS #11 module, in binaries built with the tag pkcs11, else UnsupportedOperationException: see [key stores](#key-stores).",
		"VPC_ENDPOINT_SERVICE: XksProxyVpcEndpointServiceNotFoundException.",
		"XksProxyUriEndpoint may have a port, and be private with `--xks-allow-private-endpoints`.",
	}},
	"ConnectCustomKeyStore":    {differences: []string{"Is done when the call returns: CONNECTING is never seen."}},
	"DescribeCustomKeyStores":  {limits: "100 a page, at most 1000"},
	"UpdateCustomKeyStore":     {differences: []string{"VPC_ENDPOINT_SERVICE: XksProxyVpcEndpointServiceNotFoundException."}},
	"DisconnectCustomKeyStore": {differences: []string{"Holds on every node when the call returns: DISCONNECTING is never seen."}},
	"DeleteCustomKeyStore":     {differences: []string{"The key in a PKCS #11 token stays there."}},
}

// specRow is what there is to say of a key spec.
type specRow struct{ spec, usages, notes string }

const notFIPS = "not in [FIPS mode](#fips-mode)"

// compatSpecs are AWS's key specs, with the usages that keys have here.
var compatSpecs = []specRow{
	{"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "AES-256-GCM under a key derived for each message"},
	{"RSA_2048", "ENCRYPT_DECRYPT, SIGN_VERIFY", ""},
	{"RSA_3072", "ENCRYPT_DECRYPT, SIGN_VERIFY", ""},
	{"RSA_4096", "ENCRYPT_DECRYPT, SIGN_VERIFY", ""},
	{"ECC_NIST_P256", "SIGN_VERIFY, KEY_AGREEMENT", ""},
	{"ECC_NIST_P384", "SIGN_VERIFY, KEY_AGREEMENT", ""},
	{"ECC_NIST_P521", "SIGN_VERIFY, KEY_AGREEMENT", ""},
	{"ECC_SECG_P256K1", "SIGN_VERIFY", notFIPS},
	{"ECC_NIST_EDWARDS25519", "SIGN_VERIFY", ""},
	{"ML_DSA_44", "SIGN_VERIFY", "not with Origin EXTERNAL; " + notFIPS},
	{"ML_DSA_65", "SIGN_VERIFY", "not with Origin EXTERNAL; " + notFIPS},
	{"ML_DSA_87", "SIGN_VERIFY", "not with Origin EXTERNAL; " + notFIPS},
	{"ML_KEM_512", "ENCAPSULATE_DECAPSULATE", "not with Origin EXTERNAL; " + notFIPS},
	{"ML_KEM_768", "ENCAPSULATE_DECAPSULATE", "not with Origin EXTERNAL"},
	{"ML_KEM_1024", "ENCAPSULATE_DECAPSULATE", "not with Origin EXTERNAL"},
	{"HMAC_224", "GENERATE_VERIFY_MAC", ""},
	{"HMAC_256", "GENERATE_VERIFY_MAC", ""},
	{"HMAC_384", "GENERATE_VERIFY_MAC", ""},
	{"HMAC_512", "GENERATE_VERIFY_MAC", ""},
	{"SM2", "–", "refused as in AWS's Regions outside of China: UnsupportedOperationException"},
}
