package awsmodel

import "slices"

// What AWS's answers show of shapes that its model has otherwise: recorded from the
// service, and reported by those who compared. docs/compatibility.md says what is
// not known.

// answeredPatterns are patterns that the model does not have.
var answeredPatterns = map[string]string{
	"KeyIdType": `^\p{ASCII}+$`,
}

// answeredOrder is the order in which answers list the values of an enum. Values that
// came later follow in the model's order.
var answeredOrder = map[string][]string{
	"KeyUsageType": {"ENCRYPT_DECRYPT", "SIGN_VERIFY", "GENERATE_VERIFY_MAC"},
	"KeySpec": {"RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1",
		"ECC_NIST_EDWARDS25519", "SYMMETRIC_DEFAULT", "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2",
		"ML_DSA_44", "ML_DSA_65", "ML_DSA_87"},
	"EncryptionAlgorithmSpec": {"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE", "SYMMETRIC_DEFAULT"},
	"SigningAlgorithmSpec": {"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"ECDSA_SHA_256", "ECDSA_SHA_384", "ECDSA_SHA_512", "ED25519_SHA_512", "ED25519_PH_SHA_512", "SM2DSA", "ML_DSA_SHAKE_256"},
	"MacAlgorithmSpec": {"HMAC_SHA_384", "HMAC_SHA_256", "HMAC_SHA_224", "HMAC_SHA_512"},
}

// asAnswered puts into a shape of the model what AWS's answers show of it.
func (s *Shape) asAnswered() {
	if p, ok := answeredPatterns[s.Name]; ok {
		s.Pattern = p
	}
	order := answeredOrder[s.Name]
	slices.SortStableFunc(s.Enum, func(a, b string) int {
		i, j := slices.Index(order, a), slices.Index(order, b)
		if i < 0 {
			i = len(order)
		}
		if j < 0 {
			j = len(order)
		}
		return i - j
	})
}
