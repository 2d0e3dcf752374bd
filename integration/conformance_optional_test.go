package integration

// optional are members of answers that are there in some cases only, by the shape
// that has them, with the cases. All others are in every answer.
var optional = map[string]string{
	"ListKeysResponse.NextMarker":                more,
	"ListAliasesResponse.NextMarker":             more,
	"ListGrantsResponse.NextMarker":              more,
	"ListKeyPoliciesResponse.NextMarker":         more,
	"ListKeyRotationsResponse.NextMarker":        more,
	"ListResourceTagsResponse.NextMarker":        more,
	"DescribeCustomKeyStoresResponse.NextMarker": more,

	"KeyMetadata.DeletionDate":                "of keys that wait for their deletion",
	"KeyMetadata.PendingDeletionWindowInDays": "of primary keys whose deletion waits for that of their replicas",
	"KeyMetadata.ValidTo":                     "with imported material that expires",
	"KeyMetadata.ExpirationModel":             "with imported material",
	"KeyMetadata.CustomKeyStoreId":            "of keys in a custom key store",
	"KeyMetadata.CloudHsmClusterId":           "of keys in a CloudHSM cluster, which Conclave does not have",
	"KeyMetadata.XksKeyConfiguration":         "of keys in an external key store",
	"KeyMetadata.CustomerMasterKeySpec":       "of the specs that the older member knows",
	"KeyMetadata.EncryptionAlgorithms":        "of keys that encrypt",
	"KeyMetadata.SigningAlgorithms":           "of keys that sign",
	"KeyMetadata.MacAlgorithms":               "of HMAC keys",
	"KeyMetadata.KeyAgreementAlgorithms":      "of keys that agree on secrets",
	"KeyMetadata.MultiRegionConfiguration":    "of multi-Region keys",
	"KeyMetadata.CurrentKeyMaterialId":        "of symmetric keys that have material, and not in a custom key store",

	"GetPublicKeyResponse.CustomerMasterKeySpec":  "of the specs that the older member knows",
	"GetPublicKeyResponse.EncryptionAlgorithms":   "of keys that encrypt",
	"GetPublicKeyResponse.SigningAlgorithms":      "of keys that sign",
	"GetPublicKeyResponse.KeyAgreementAlgorithms": "of keys that agree on secrets",

	"DecryptResponse.Plaintext":                              noEnclave,
	"DecryptResponse.CiphertextForRecipient":                 enclave,
	"DecryptResponse.KeyMaterialId":                          "of symmetric keys, without a Recipient",
	"DeriveSharedSecretResponse.SharedSecret":                noEnclave,
	"DeriveSharedSecretResponse.CiphertextForRecipient":      enclave,
	"GenerateDataKeyResponse.Plaintext":                      noEnclave,
	"GenerateDataKeyResponse.CiphertextForRecipient":         enclave,
	"GenerateDataKeyResponse.KeyMaterialId":                  noEnclave,
	"GenerateDataKeyPairResponse.PrivateKeyPlaintext":        noEnclave,
	"GenerateDataKeyPairResponse.CiphertextForRecipient":     enclave,
	"GenerateDataKeyPairResponse.KeyMaterialId":              noEnclave,
	"GenerateRandomResponse.Plaintext":                       noEnclave,
	"GenerateRandomResponse.CiphertextForRecipient":          enclave,
	"ReEncryptResponse.SourceKeyMaterialId":                  "of symmetric keys",
	"ReEncryptResponse.DestinationKeyMaterialId":             "of symmetric keys",
	"ImportKeyMaterialResponse.KeyMaterialId":                "of symmetric keys",
	"DeleteImportedKeyMaterialResponse.KeyMaterialId":        "of symmetric keys",
	"ScheduleKeyDeletionResponse.DeletionDate":               "not of primary keys whose deletion waits for that of their replicas",
	"ReplicateKeyResponse.ReplicaTags":                       "when tags were given",
	"GetKeyRotationStatusResponse.RotationPeriodInDays":      "of keys that rotate by themselves",
	"GetKeyRotationStatusResponse.NextRotationDate":          "of keys that rotate by themselves",
	"GetKeyRotationStatusResponse.OnDemandRotationStartDate": "while a rotation on demand is under way, which here takes no time",

	"KeyLastUsageData.Operation":         "of keys that were used",
	"KeyLastUsageData.Timestamp":         "of keys that were used",
	"KeyLastUsageData.CloudTrailEventId": "of keys that were used",
	"KeyLastUsageData.KmsRequestId":      "of keys that were used",

	"RotationsListEntry.KeyMaterialDescription": "of imported material that was described",
	"RotationsListEntry.ImportState":            "of imported material",
	"RotationsListEntry.ExpirationModel":        "of imported material that is there",
	"RotationsListEntry.ValidTo":                "of imported material that expires",
	"RotationsListEntry.RotationDate":           "of material that a rotation brought",
	"RotationsListEntry.RotationType":           "of material that a rotation brought",

	"GrantListEntry.RetiringPrincipal":         "when one was given",
	"GrantListEntry.Constraints":               "when some were given",
	"GrantConstraints.EncryptionContextSubset": "either of the two",
	"GrantConstraints.EncryptionContextEquals": "either of the two",

	"CustomKeyStoresListEntry.CloudHsmClusterId":        "of CloudHSM key stores, which Conclave does not have",
	"CustomKeyStoresListEntry.TrustAnchorCertificate":   "of CloudHSM key stores, which Conclave does not have",
	"CustomKeyStoresListEntry.ConnectionErrorCode":      "when connecting failed",
	"CustomKeyStoresListEntry.XksProxyConfiguration":    "of external key stores",
	"XksProxyConfigurationType.VpcEndpointServiceName":  "of proxies behind an endpoint service",
	"XksProxyConfigurationType.VpcEndpointServiceOwner": "of proxies behind an endpoint service",
}

const (
	more      = "when there is more"
	enclave   = "with a Recipient"
	noEnclave = "without a Recipient"
)

// freeTexts are texts of answers that AWS itself does not hold to its model: grants
// without a name have the name "".
var freeTexts = []string{".Grants[].Name"}

// never are members of answers that no case of Conclave's has.
var never = []string{
	"ListKeyPoliciesResponse.NextMarker", // a key has one policy
	"KeyMetadata.CloudHsmClusterId", "CustomKeyStoresListEntry.CloudHsmClusterId", "CustomKeyStoresListEntry.TrustAnchorCertificate",
	"GetKeyRotationStatusResponse.OnDemandRotationStartDate", // a rotation takes no time
}
