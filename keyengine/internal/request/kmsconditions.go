package request

import (
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// kmsValues returns the values of a condition key of AWS KMS, given without "kms:" and in
// lower case.
func kmsValues(c *Conditions, name string) []string {
	switch name {
	case "calleraccount":
		return one(c.ev.Principal().Account)
	case "encryptioncontextkeys":
		if c.encryption == nil {
			return nil
		}
		keys := make([]string, 0, len(c.encryption))
		for k := range c.encryption {
			keys = append(keys, k)
		}
		return keys
	}
	if pair, ok := strings.CutPrefix(name, "encryptioncontext:"); ok {
		for k, v := range c.encryption {
			if sameTag(k, pair) {
				return []string{v}
			}
		}
		return nil
	}
	if c.target != nil {
		return keyValues(c.target.Key, name)
	}
	return nil
}

// keyValues returns the values of condition keys that describe a key.
func keyValues(k *fsmpb.Key, name string) []string {
	switch name {
	case "keyspec", "customermasterkeyspec":
		return one(k.Spec)
	case "keyusage", "customermasterkeyusage":
		return one(k.Usage)
	case "keyorigin":
		return one(k.Origin)
	case "multiregion":
		return flag(k.MultiRegion)
	case "multiregionkeytype":
		switch {
		case !k.MultiRegion:
			return nil
		case k.PrimaryRegion == k.Region:
			return one("PRIMARY")
		}
		return one("REPLICA")
	}
	return nil
}
