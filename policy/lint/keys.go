package lint

import "strconv"

// ConditionKeys returns the condition keys that requests to Conclave can have, for Known.Keys,
// and those of AWS KMS and of AWS's global ones that no request here has, as no service of AWS
// sends any. Keys of identity providers, which begin with the issuer's name,
// are not among them.
func ConditionKeys() []Key {
	keys := append([]Key(nil), conditionKeys...)
	for n := range 32 {
		keys = append(keys, Key{Name: "kms:RecipientAttestation:PCR" + strconv.Itoa(n), Type: TypeString})
	}
	for n := range 24 {
		keys = append(keys, Key{Name: "kms:RecipientAttestation:NitroTPMPCR" + strconv.Itoa(n), Type: TypeString})
	}
	return keys
}

var conditionKeys = []Key{
	{Name: "aws:CalledVia", Type: TypeString, Multivalued: true}, {Name: "aws:CalledViaFirst", Type: TypeString}, {Name: "aws:CalledViaLast", Type: TypeString},
	{Name: "aws:CurrentTime", Type: TypeDate}, {Name: "aws:EpochTime", Type: TypeDate},
	{Name: "aws:FederatedProvider", Type: TypeString},
	{Name: "aws:MultiFactorAuthAge", Type: TypeNumeric}, {Name: "aws:MultiFactorAuthPresent", Type: TypeBool},
	{Name: "aws:PrincipalAccount", Type: TypeString}, {Name: "aws:PrincipalArn", Type: TypeARN}, {Name: "aws:PrincipalIsAWSService", Type: TypeBool},
	{Name: "aws:PrincipalServiceName", Type: TypeString}, {Name: "aws:PrincipalTag/", Type: TypeString}, {Name: "aws:PrincipalType", Type: TypeString},
	{Name: "aws:RequestTag/", Type: TypeString}, {Name: "aws:RequestedRegion", Type: TypeString},
	{Name: "aws:ResourceAccount", Type: TypeString}, {Name: "aws:ResourceTag/", Type: TypeString}, {Name: "aws:SecureTransport", Type: TypeBool},
	{Name: "aws:SourceAccount", Type: TypeString}, {Name: "aws:SourceArn", Type: TypeARN}, {Name: "aws:SourceIdentity", Type: TypeString}, {Name: "aws:SourceIp", Type: TypeIP},
	{Name: "aws:TagKeys", Type: TypeString, Multivalued: true}, {Name: "aws:TokenIssueTime", Type: TypeDate}, {Name: "aws:UserAgent", Type: TypeString},
	{Name: "aws:ViaAWSService", Type: TypeBool}, {Name: "aws:userid", Type: TypeString}, {Name: "aws:username", Type: TypeString},

	{Name: "conclave:CertificateUri", Type: TypeString},
	{Name: "iam:PermissionsBoundary", Type: TypeARN}, {Name: "iam:PolicyARN", Type: TypeARN}, {Name: "iam:ResourceTag/", Type: TypeString},
	{Name: "sts:ExternalId", Type: TypeString}, {Name: "sts:RoleSessionName", Type: TypeString}, {Name: "sts:SourceIdentity", Type: TypeString},
	{Name: "sts:TransitiveTagKeys", Type: TypeString, Multivalued: true},

	{Name: "kms:BypassPolicyLockoutSafetyCheck", Type: TypeBool}, {Name: "kms:CallerAccount", Type: TypeString},
	{Name: "kms:CustomerMasterKeySpec", Type: TypeString}, {Name: "kms:CustomerMasterKeyUsage", Type: TypeString}, {Name: "kms:DataKeyPairSpec", Type: TypeString},
	{Name: "kms:EncryptionAlgorithm", Type: TypeString}, {Name: "kms:EncryptionContext:", Type: TypeString}, {Name: "kms:EncryptionContextKeys", Type: TypeString, Multivalued: true},
	{Name: "kms:ExpirationModel", Type: TypeString}, {Name: "kms:GrantConstraintSourceArn", Type: TypeARN}, {Name: "kms:GrantConstraintType", Type: TypeString},
	{Name: "kms:GrantIsForAWSResource", Type: TypeBool}, {Name: "kms:GrantOperations", Type: TypeString, Multivalued: true},
	{Name: "kms:GranteePrincipal", Type: TypeString}, {Name: "kms:GranteeServicePrincipal", Type: TypeString}, {Name: "kms:KeyAgreementAlgorithm", Type: TypeString},
	{Name: "kms:KeyOrigin", Type: TypeString}, {Name: "kms:KeySpec", Type: TypeString}, {Name: "kms:KeyUsage", Type: TypeString}, {Name: "kms:MacAlgorithm", Type: TypeString},
	{Name: "kms:MessageType", Type: TypeString}, {Name: "kms:MultiRegion", Type: TypeBool}, {Name: "kms:MultiRegionKeyType", Type: TypeString}, {Name: "kms:PrimaryRegion", Type: TypeString},
	{Name: "kms:ReEncryptOnSameKey", Type: TypeBool}, {Name: "kms:RecipientAttestation:ImageSha384", Type: TypeString}, {Name: "kms:ReplicaRegion", Type: TypeString},
	{Name: "kms:RequestAlias", Type: TypeString}, {Name: "kms:ResourceAliases", Type: TypeString, Multivalued: true},
	{Name: "kms:RetiringPrincipal", Type: TypeString}, {Name: "kms:RetiringServicePrincipal", Type: TypeString}, {Name: "kms:RotationPeriodInDays", Type: TypeNumeric},
	{Name: "kms:ScheduleKeyDeletionPendingWindowInDays", Type: TypeNumeric}, {Name: "kms:SigningAlgorithm", Type: TypeString},
	{Name: "kms:TrailingDaysWithoutKeyUsage", Type: TypeNumeric},
	// As AWS's documentation has it, in seconds since 1970: numbers and dates.
	{Name: "kms:ValidTo", Type: TypeUnknown},
	{Name: "kms:ViaService", Type: TypeString}, {Name: "kms:WrappingAlgorithm", Type: TypeString}, {Name: "kms:WrappingKeySpec", Type: TypeString},
}
