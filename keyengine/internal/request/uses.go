package request

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
)

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

// serviceNumber has the services that GetAccessKeyLastUsed names, with their numbers in the
// log, of which there can be 15. Numbers are never reused.
var serviceNumber = map[Service]uint32{KMS: 1, IAM: 2, STS: 3}

// serviceBits is how many bits of a number that the log has for the use of a credential are
// the number of the service. The others are the place of the Region in [Regions], which never
// changes.
const serviceBits = 4

// ServiceUsed returns the service and the Region of a use of a credential, by its number in
// the log.
func ServiceUsed(c *fsmpb.Cluster, number uint32) (service Service, region string) {
	for s, n := range serviceNumber {
		if n == number&(1<<serviceBits-1) {
			service = s
		}
	}
	if all, i := Regions(c), int(number>>serviceBits); i < len(all) {
		region = all[i]
	}
	return service, region
}

// allUses returns the uses of keys, with that of the caller's access key. It counts whatever
// the outcome is; a session has no access key that could be used without it.
func (ev *Attempt) allUses() []*fsmpb.Use {
	id := &ev.Caller.Identity
	if id.Temporary() != nil || !strings.HasPrefix(id.Credential(), string(accesskey.LongTerm)) {
		return ev.uses
	}
	// It is the first credential that an evaluation reads; see Admit.
	i := slices.IndexFunc(ev.Reads, func(r *fsmpb.Read) bool { return r.Kind == fsmpb.Kind_KIND_CREDENTIAL })
	if i < 0 {
		return ev.uses
	}
	u := take(&ev.freeUses)
	u.Read, u.Operation = uint32(i), serviceNumber[ev.Op.Service]
	if c, region := ev.Cluster(), ev.Region(); region != c.Region {
		u.Operation |= uint32(1+slices.Index(c.MoreRegions, region)) << serviceBits
	}
	return append(ev.uses, u)
}
