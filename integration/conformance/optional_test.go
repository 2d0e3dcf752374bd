package conformance

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
	"KeyMetadata.CloudHsmClusterId":           "of keys in a PKCS #11 token, which builds with a tag have",
	"KeyMetadata.XksKeyConfiguration":         "of keys in an external key store",
	"KeyMetadata.CustomerMasterKeySpec":       "of the specs that the older member knows",
	"KeyMetadata.EncryptionAlgorithms":        "of keys that encrypt",
	"KeyMetadata.SigningAlgorithms":           "of keys that sign",
	"KeyMetadata.MacAlgorithms":               "of HMAC keys",
	"KeyMetadata.KeyAgreementAlgorithms":      "of keys that agree on secrets",
	"KeyMetadata.EncapsulationAlgorithms":     "of keys that encapsulate secrets",
	"KeyMetadata.MultiRegionConfiguration":    "of multi-Region keys",
	"KeyMetadata.CurrentKeyMaterialId":        "of symmetric keys that have material, and not in a custom key store",

	"GetPublicKeyResponse.CustomerMasterKeySpec":   "of the specs that the older member knows",
	"GetPublicKeyResponse.EncryptionAlgorithms":    "of keys that encrypt",
	"GetPublicKeyResponse.SigningAlgorithms":       "of keys that sign",
	"GetPublicKeyResponse.KeyAgreementAlgorithms":  "of keys that agree on secrets",
	"GetPublicKeyResponse.EncapsulationAlgorithms": "of keys that encapsulate secrets",

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

	"GrantListEntry.GranteePrincipal":          "when no service was given",
	"GrantListEntry.GranteeServicePrincipal":   "when a service was given",
	"GrantListEntry.RetiringPrincipal":         "when one was given",
	"GrantListEntry.RetiringServicePrincipal":  "when a service was given",
	"GrantConstraints.SourceArn":               "when one was given",
	"GrantListEntry.Constraints":               "when some were given",
	"GrantConstraints.EncryptionContextSubset": "either of the two",
	"GrantConstraints.EncryptionContextEquals": "either of the two",

	"CustomKeyStoresListEntry.CloudHsmClusterId":        "of key stores in PKCS #11 tokens, which builds with a tag have",
	"CustomKeyStoresListEntry.TrustAnchorCertificate":   "of key stores in PKCS #11 tokens, which builds with a tag have",
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

// freeTexts are texts of answers that are not held to the model: AWS itself shows
// grants without a name with the name "", and endpoints may have a port here.
var freeTexts = []string{".Grants[].Name", ".CustomKeyStores[].XksProxyConfiguration.UriEndpoint"}

// never are members of answers that no case of Conclave's has, in a build without tags.
var never = []string{
	"ListKeyPoliciesResponse.NextMarker", // a key has one policy
	"KeyMetadata.CloudHsmClusterId", "CustomKeyStoresListEntry.CloudHsmClusterId", "CustomKeyStoresListEntry.TrustAnchorCertificate",
	"XksProxyConfigurationType.VpcEndpointServiceName", "XksProxyConfigurationType.VpcEndpointServiceOwner", // there are no such services
	"GetKeyRotationStatusResponse.OnDemandRotationStartDate", // a rotation takes no time
}
