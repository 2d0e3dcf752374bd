package request

// UseNumber has the operations that GetKeyLastUsage counts, with their numbers in the log.
// Numbers are never reused.
var UseNumber = map[string]uint32{
	"Decrypt":                             1,
	"DeriveSharedSecret":                  2,
	"Encrypt":                             3,
	"GenerateDataKey":                     4,
	"GenerateDataKeyPair":                 5,
	"GenerateDataKeyPairWithoutPlaintext": 6,
	"GenerateDataKeyWithoutPlaintext":     7,
	"GenerateMac":                         8,
	"ReEncrypt":                           9,
	"Sign":                                10,
	"Verify":                              11,
	"VerifyMac":                           12,
	"Encapsulate":                         13,
	"Decapsulate":                         14,
}
