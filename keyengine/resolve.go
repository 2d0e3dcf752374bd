package keyengine

import (
	"encoding/hex"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// target is a key that a request names.
type target struct {
	id  fsm.KeyID
	key *fsmpb.Key
	arn string
}

// forms says which ways of naming a key an operation takes.
type forms uint8

const (
	keyForms forms = iota // key id, key ARN
	anyForm               // also alias name, alias ARN
)

// resolve finds the key that a KeyId names, for an action. What it finds out
// depends on the key, and on the alias where it was named by one: both are noted.
func (ev *eval) resolve(given string, f forms, action string) (*target, error) {
	c := ev.cluster()
	name := given
	if strings.HasPrefix(given, "arn:") {
		arn, err := policy.ParseARN(given)
		if err != nil || arn.Service != "kms" || arn.Partition != c.Partition || arn.Account == "" || arn.Region == "" {
			return nil, kmsapi.Errorf(kmsapi.ErrInvalidArn, "Invalid arn %s", given)
		}
		if f == keyForms && strings.HasPrefix(arn.Resource, kmsapi.AliasPrefix) {
			return nil, errAlias
		}
		if arn.Region != ev.region() {
			return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "Invalid arn %s", arn.Region)
		}
		if arn.Account != c.Account {
			// Whether such a key exists is nobody's business here.
			return nil, ev.inaccessible(action, "on resource: "+given)
		}
		switch rest, isKey := strings.CutPrefix(arn.Resource, "key/"); {
		case isKey:
			if _, _, ok := parseKeyID(rest); !ok && !keyIDShaped(rest) {
				return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "Invalid keyId %s", rest) // in AWS's words: no quotes here
			}
			name = rest
		case strings.HasPrefix(arn.Resource, kmsapi.AliasPrefix):
			name = arn.Resource
		default:
			return nil, invalidKeyID(given)
		}
	}
	if strings.HasPrefix(name, kmsapi.AliasPrefix) {
		if f == keyForms {
			return nil, errAlias
		}
		a := ev.alias(ev.region(), name)
		if a == nil {
			return nil, aliasNotFound(ev, name)
		}
		ev.resource("AWS::KMS::Alias", aliasARN(ev, name))
		t := ev.target(fsm.KeyID{Account: fsm.Account(a.Account), Region: a.Region, ID: [16]byte(a.Key)})
		if t.key == nil {
			return nil, aliasNotFound(ev, name) // the key went, and its aliases with it
		}
		return t, nil
	}
	absent := func() error {
		return kmsapi.Errorf(kmsapi.ErrNotFound, "Key '%s' does not exist", keyARN(c, ev.region(), name))
	}
	id, multi, ok := parseKeyID(name)
	switch {
	case !ok && keyIDShaped(name):
		return nil, absent()
	case !ok:
		return nil, invalidKeyID(given)
	}
	t := ev.target(fsm.KeyID{Account: accountOf(ev), Region: ev.region(), ID: id})
	if t.key == nil || t.key.MultiRegion != multi {
		return nil, absent()
	}
	return t, nil
}

// errAlias answers an alias where only a key may stand. It is no NotFoundException:
// clients take that for a key that is gone.
var errAlias = kmsapi.Errorf(kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation.")

// target looks a key up by its id; its key is nil when there is none.
func (ev *eval) target(id fsm.KeyID) *target {
	t := &target{id: id, key: ev.key(id)}
	if t.key != nil {
		t.arn = keyARN(ev.cluster(), t.id.Region, t.name())
		ev.resource("AWS::KMS::Key", t.arn)
	}
	return t
}

// name is the bare key id.
func (t *target) name() string { return formatKeyID(t.id.ID, t.key.MultiRegion) }

func invalidKeyID(given string) error {
	return kmsapi.Errorf(kmsapi.ErrNotFound, "Invalid keyId '%s'", given)
}

func aliasNotFound(ev *eval, name string) error {
	return kmsapi.Errorf(kmsapi.ErrNotFound, "Alias %s is not found.", aliasARN(ev, name))
}

func aliasARN(ev *eval, name string) string {
	c := ev.cluster()
	return "arn:" + c.Partition + ":kms:" + ev.region() + ":" + c.Account + ":" + name
}

func keyARN(c *fsmpb.Cluster, region, name string) string {
	return "arn:" + c.Partition + ":kms:" + region + ":" + c.Account + ":key/" + name
}

const multiRegionPrefix = "mrk-"

// formatKeyID writes a key id as AWS does: a UUID, or mrk- and hex digits.
func formatKeyID(id [16]byte, multiRegion bool) string {
	if multiRegion {
		return multiRegionPrefix + hex.EncodeToString(id[:])
	}
	return formatUUID(id)
}

// keyIDShaped tells whether a text would be a key id with its letters in lower case.
// No key is called so, and AWS answers it as a key that does not exist.
func keyIDShaped(s string) bool {
	_, _, ok := parseKeyID(strings.ToLower(s))
	return ok
}

// parseKeyID reads a key id in the one spelling that formatKeyID gives it: two
// spellings of one key would be two names in a policy or a log.
func parseKeyID(s string) (id [16]byte, multiRegion, ok bool) {
	var digits [32]byte
	switch {
	case len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-':
		d := digits[:0]
		for _, part := range [...]string{s[:8], s[9:13], s[14:18], s[19:23], s[24:]} {
			d = append(d, part...)
		}
	case len(s) == 36 && strings.HasPrefix(s, multiRegionPrefix):
		multiRegion = true
		copy(digits[:], s[len(multiRegionPrefix):])
	default:
		return id, false, false
	}
	for _, c := range digits {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return id, false, false
		}
	}
	_, err := hex.Decode(id[:], digits[:])
	return id, multiRegion, err == nil
}

// rootARN is the ARN of an account's root user.
func rootARN(partition, account string) string {
	return "arn:" + partition + ":iam::" + account + ":root"
}

// wasKey tells whether an id is or was a key's in any of the cluster's Regions.
func wasKey(ev *eval, id [16]byte) bool {
	for _, r := range regions(ev.cluster()) {
		k := fsm.KeyID{Account: accountOf(ev), Region: r, ID: id}
		if ev.tombstone(k) != nil || ev.key(k) != nil {
			return true
		}
	}
	return false
}

// wrongOrigin refuses a key for where its material is from.
func wrongOrigin(t *target) error {
	return kmsapi.Errorf(kmsapi.ErrUnsupported, "%s origin is %s which is not valid for this operation.", t.arn, t.key.Origin)
}
