package request

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// kmsValues returns the values of a condition key of AWS KMS, given without "kms:" and in
// lower case. Keys that are not here and not in requestKeys, such as kms:ViaService, are absent
// from all requests, since no service of AWS sends any.
func (c *Conditions) kmsValues(name string) []string {
	if op := c.ev.Op; op != nil {
		if v, ok := op.requestKeys[actionKey{c.action, name}]; ok {
			return v.in(c.ev.Input)
		}
	}
	switch name {
	case "calleraccount":
		if c.key() != nil || strings.Contains(c.action, "CustomKeyStore") {
			return one(c.ev.Principal().Account)
		}
		return nil
	case "encryptioncontextkeys":
		keys := make([]string, 0, len(c.encryption))
		for k := range c.encryption {
			keys = append(keys, k)
		}
		return keys
	case "grantconstrainttype":
		switch {
		case c.grant.GetContextEquals() != nil:
			return one("EncryptionContextEquals")
		case c.grant.GetContextSubset() != nil:
			return one("EncryptionContextSubset")
		}
		return nil
	case "grantconstraintsourcearn":
		if c.action == ActionCreateGrant {
			return one(c.grant.GetSourceArn())
		}
		return nil
	case "reencryptonsamekey":
		return c.onSameKey()
	case "requestalias":
		if c.target != nil {
			return one(c.target.alias)
		}
		return nil
	case "resourcealiases":
		return c.aliases()
	case "trailingdayswithoutkeyusage":
		return c.daysWithoutUse()
	}
	if pair, ok := strings.CutPrefix(name, "encryptioncontext:"); ok {
		for k, v := range c.encryption {
			if sameTag(k, pair) {
				return []string{v}
			}
		}
		return nil
	}
	if measurement, ok := strings.CutPrefix(name, "recipientattestation:"); ok {
		return c.measured(measurement)
	}
	if k := c.key(); k != nil {
		return keyValues(k, name)
	}
	return nil
}

// key returns the key that the request is about, or that it is to create; nil if it is about
// none.
func (c *Conditions) key() *fsmpb.Key {
	if c.target != nil {
		return c.target.Key
	}
	return c.New
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

// aliases returns the names of the key's aliases. It adds the set of them to the read set,
// whose version changes with each alias that is given to the key or taken from it, so that the
// aliases themselves need not be in there.
func (c *Conditions) aliases() []string {
	if c.target == nil {
		return nil
	}
	c.ev.KeyAliases(c.target.ID)
	var names []string
	for a := range c.ev.State.AliasesOf(c.target.ID) {
		names = append(names, a.Name)
	}
	return names
}

// onSameKey says whether ReEncrypt encrypts under the key that it decrypts with. The
// destination is found for the decision about the source already; if there is none, the
// request fails anyway.
func (c *Conditions) onSameKey() []string {
	in, ok := c.ev.Input.(*kmsapi.ReEncryptInput)
	if !ok || c.target == nil {
		return nil
	}
	other := c.ev.Source // set once the source is authorised
	if other == nil {
		var err error
		if other, err = c.ev.Resolve(*in.DestinationKeyId, AnyForm, c.action); err != nil {
			return flag(false)
		}
	}
	return flag(other.ID == c.target.ID)
}

// daysWithoutUse returns how many whole days ago a key that is to be disabled or deleted was
// last used, or created if it was never used.
//
// The number changes with time, and with each use. Once it is 1 or more, the next use makes it
// 0, so the decision depends on which use is the newest: it is added to the read set. As long
// as it is 0, further uses do not change it, and only the end of the first day does. A key
// that is in constant use thus causes no conflicts.
func (c *Conditions) daysWithoutUse() []string {
	if c.target == nil || c.action != "kms:ScheduleKeyDeletion" && c.action != "kms:DisableKey" {
		return nil
	}
	last := fsm.LastUse(c.ev.State, c.target.ID)
	from := time.Unix(0, max(last, c.target.Key.Created, c.ev.Cluster().Created))
	const day = 24 * time.Hour
	days := max(0, c.Now().Sub(from)/day)
	if days == 0 {
		c.Holds(time.Time{}, from.Add(day))
	} else {
		c.ev.Note(fsmpb.Kind_KIND_KEY_USE, bytesOf(c.ev, c.target.ID), fsm.Version(last))
		c.Holds(from.Add(days*day), from.Add((days+1)*day))
	}
	return one(strconv.FormatInt(int64(days), 10))
}

// measured returns a measurement of the enclave or instance that the answer is for, in
// hexadecimal. An attestation document that cannot be verified has none; the request is refused
// because of it later on.
func (c *Conditions) measured(name string) []string {
	a, err := Attested(c.ev)
	if err != nil || a == nil {
		return nil
	}
	if name == "imagesha384" {
		name = "pcr0"
	}
	registers := a.PCRs
	number, ok := strings.CutPrefix(name, "pcr")
	if !ok {
		registers = a.TPM
		number, ok = strings.CutPrefix(name, "nitrotpmpcr")
	}
	n, err := strconv.Atoi(number)
	if !ok || err != nil || strconv.Itoa(n) != number {
		return nil
	}
	return one(hex.EncodeToString(registers[n]))
}
