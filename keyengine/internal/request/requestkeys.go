package request

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A requestKey is a condition key of AWS KMS whose value is a member of the request.
type requestKey struct {
	name   string // in policies, in lower case and without "kms:"
	member string // of the input; empty for a key that always has its default
	// absent is the value if the request does not have the member; empty for none. It is the
	// member's default, except where AWS's documentation tells authors to find out with Null
	// whether the request has the member.
	absent string
	// actions are those for which the key exists, without "kms:".
	actions string
}

// requestKeys are the condition keys that describe requests. What a new key will be is not
// among them: it is described as if it existed already, see Conditions.New.
var requestKeys = []requestKey{
	{"bypasspolicylockoutsafetycheck", "BypassPolicyLockoutSafetyCheck", "", "CreateKey PutKeyPolicy"},
	{"datakeypairspec", "KeyPairSpec", "", "GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext"},
	{"encryptionalgorithm", "EncryptionAlgorithm", kmsapi.AlgorithmSymmetric, "Encrypt Decrypt"},
	{"encryptionalgorithm", "SourceEncryptionAlgorithm", kmsapi.AlgorithmSymmetric, "ReEncryptFrom"},
	{"encryptionalgorithm", "DestinationEncryptionAlgorithm", kmsapi.AlgorithmSymmetric, "ReEncryptTo"},
	{"encryptionalgorithm", "", kmsapi.AlgorithmSymmetric,
		"GenerateDataKey GenerateDataKeyWithoutPlaintext GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext"},
	{"expirationmodel", "ExpirationModel", "", "ImportKeyMaterial"},
	{"granteeprincipal", "GranteePrincipal", "", "CreateGrant"},
	{"granteeserviceprincipal", "GranteeServicePrincipal", "", "CreateGrant"},
	// No service of AWS asks on behalf of somebody else here.
	{"grantisforawsresource", "", "false", "CreateGrant ListGrants RevokeGrant"},
	{"grantoperations", "Operations", "", "CreateGrant"},
	{"keyagreementalgorithm", "KeyAgreementAlgorithm", "", "DeriveSharedSecret"},
	{"macalgorithm", "MacAlgorithm", "", "GenerateMac VerifyMac"},
	{"messagetype", "MessageType", "RAW", "Sign Verify"},
	{"primaryregion", "PrimaryRegion", "", "UpdatePrimaryRegion"},
	{"replicaregion", "ReplicaRegion", "", "ReplicateKey"},
	{"retiringprincipal", "RetiringPrincipal", "", "CreateGrant"},
	{"retiringserviceprincipal", "RetiringServicePrincipal", "", "CreateGrant"},
	{"rotationperiodindays", "RotationPeriodInDays", "365", "EnableKeyRotation"},
	{"schedulekeydeletionpendingwindowindays", "PendingWindowInDays", "30", "ScheduleKeyDeletion"},
	{"signingalgorithm", "SigningAlgorithm", "", "Sign Verify"},
	{"validto", "ValidTo", "", "ImportKeyMaterial"},
	{"wrappingalgorithm", "WrappingAlgorithm", "", "GetParametersForImport"},
	{"wrappingkeyspec", "WrappingKeySpec", "", "GetParametersForImport"},
}

// actionKey is a condition key in the context of an action.
type actionKey struct{ action, name string }

// valueOf says where the value of a condition key is in an input.
type valueOf struct {
	field  int // of the input, or negative
	kind   kmsapi.Kind
	absent []string
}

// requestKeysOf finds the condition keys of the operation in its input. It also finds those of
// other actions that the operation may need, such as CreateKey for ReplicateKey: their keys
// are in members of the same name.
func requestKeysOf(op *Operation) map[actionKey]valueOf {
	if op.Service != KMS {
		return nil
	}
	keys := make(map[actionKey]valueOf)
	for _, k := range requestKeys {
		field, ok := op.input.Index([]byte(k.member))
		for action := range strings.SplitSeq(k.actions, " ") {
			action = string(KMS) + ":" + action
			v := valueOf{field: -1, absent: one(k.absent)}
			if k.member == "" && !slices.Contains(op.Actions, action) || k.member != "" && !ok {
				continue
			}
			if ok {
				v.field, v.kind = field, op.input.Members[field].Kind
			}
			keys[actionKey{action, k.name}] = v
		}
	}
	return keys
}

// in returns the values of the condition key for an input.
func (v valueOf) in(input any) []string {
	if v.field < 0 {
		return v.absent
	}
	f := reflect.ValueOf(input).Elem().Field(v.field)
	if f.IsNil() {
		return v.absent
	}
	switch v.kind {
	case kmsapi.KindText:
		return one(f.Elem().String())
	case kmsapi.KindNumber:
		return one(strconv.FormatInt(f.Elem().Int(), 10))
	case kmsapi.KindFlag:
		return flag(f.Elem().Bool())
	case kmsapi.KindTextList:
		return f.Interface().([]string)
	case kmsapi.KindTime:
		return one(unixSeconds(*f.Interface().(*time.Time)))
	}
	return nil
}

// unixSeconds returns a time as AWS has it in conditions: as a number of seconds since 1970,
// which the operators for numbers and those for dates understand. A fraction is dropped, as
// dates have none.
func unixSeconds(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
