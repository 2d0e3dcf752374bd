package request

import (
	"encoding/hex"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Target is a key that a request names.
type Target struct {
	ID  fsm.KeyID
	Key *fsmpb.Key
	ARN string

	alias string // by which the request names it, or ""
}

// Forms says how a key may be named in a request.
type Forms uint8

const (
	KeyForms Forms = iota // key id or key ARN
	AnyForm               // also alias name or alias ARN
)

// Resolve finds the key that a KeyId names, for an action. The key, and the alias if it was
// named by one, are added to the read set.
func (ev *Evaluation) Resolve(given string, f Forms, action string) (*Target, error) {
	c := ev.Cluster()
	name, account := given, AccountOf(ev)
	if strings.HasPrefix(given, "arn:") {
		arn, err := policy.ParseARN(given)
		if err != nil || arn.Service != "kms" || arn.Partition != c.Partition || arn.Account == "" || arn.Region == "" {
			return nil, kmsapi.Errorf(kmsapi.ErrInvalidArn, "Invalid arn %s", given)
		}
		if f == KeyForms && strings.HasPrefix(arn.Resource, kmsapi.AliasPrefix) {
			return nil, errAlias
		}
		if arn.Region != ev.Region() {
			return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "Invalid arn %s", arn.Region)
		}
		if of, ok := fsm.ParseAccount(arn.Account); !ok || of != account {
			if !ok || !ev.Op.CrossAccount {
				return nil, inaccessible(ev, action, "on resource: "+given)
			}
			account = of
		}
		switch rest, isKey := strings.CutPrefix(arn.Resource, "key/"); {
		case isKey:
			if _, _, ok := ParseKeyID(rest); !ok && !keyIDShaped(rest) {
				return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "Invalid keyId %s", rest) // AWS has no quotes in this message
			}
			name = rest
		case strings.HasPrefix(arn.Resource, kmsapi.AliasPrefix):
			name = arn.Resource
		default:
			return nil, invalidKeyID(given)
		}
	}
	absent := func(err error) error {
		if account != AccountOf(ev) {
			// The caller must not learn whether such a key exists.
			return inaccessible(ev, action, "on resource: "+given)
		}
		return err
	}
	if strings.HasPrefix(name, kmsapi.AliasPrefix) {
		if f == KeyForms {
			return nil, errAlias
		}
		a := ev.Alias(account, ev.Region(), name)
		if a == nil {
			return nil, absent(AliasNotFound(ev, account, name))
		}
		ev.Resource("AWS::KMS::Alias", AliasARN(ev, account, name))
		t := ev.Target(fsm.KeyID{Account: fsm.Account(a.Account), Region: a.Region, ID: [16]byte(a.Key)})
		if t.Key == nil {
			return nil, absent(AliasNotFound(ev, account, name)) // the key was deleted with its aliases
		}
		t.alias = name
		return t, nil
	}
	noKey := func() error {
		return absent(kmsapi.Errorf(kmsapi.ErrNotFound, "Key '%s' does not exist", KeyARN(c, account, ev.Region(), name)))
	}
	id, multi, ok := ParseKeyID(name)
	switch {
	case !ok && keyIDShaped(name):
		return nil, noKey()
	case !ok:
		return nil, invalidKeyID(given)
	}
	t := ev.Target(fsm.KeyID{Account: account, Region: ev.Region(), ID: id})
	if t.Key == nil || t.Key.MultiRegion != multi {
		return nil, noKey()
	}
	return t, nil
}

// errAlias is the error for an alias where only a key is allowed. It is not a
// NotFoundException because clients take that to mean that the key is gone.
var errAlias = kmsapi.Errorf(kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation.")

// Target looks up a key by its id. If it does not exist, the target's Key is nil.
func (ev *Evaluation) Target(id fsm.KeyID) *Target {
	t := &Target{ID: id, Key: ev.Key(id)}
	if t.Key != nil {
		t.ARN = KeyARN(ev.Cluster(), t.ID.Account, t.ID.Region, t.Name())
		ev.Resource("AWS::KMS::Key", t.ARN)
	}
	return t
}

// Name returns the key id without the ARN.
func (t *Target) Name() string { return FormatKeyID(t.ID.ID, t.Key.MultiRegion) }

func invalidKeyID(given string) error {
	return kmsapi.Errorf(kmsapi.ErrNotFound, "Invalid keyId '%s'", given)
}

// AliasNotFound returns the error for an alias that does not exist.
func AliasNotFound(ev *Evaluation, account fsm.Account, name string) error {
	return kmsapi.Errorf(kmsapi.ErrNotFound, "Alias %s is not found.", AliasARN(ev, account, name))
}

// AliasARN returns the ARN of an alias in the Region of the request.
func AliasARN(ev *Evaluation, account fsm.Account, name string) string {
	return "arn:" + ev.Cluster().Partition + ":kms:" + ev.Region() + ":" + account.String() + ":" + name
}

// KeyARN returns the ARN of a key.
func KeyARN(c *fsmpb.Cluster, account fsm.Account, region, name string) string {
	return "arn:" + c.Partition + ":kms:" + region + ":" + account.String() + ":key/" + name
}

const multiRegionPrefix = "mrk-"

// FormatKeyID formats a key id as AWS does: as a UUID, or as mrk- and 32 hexadecimal
// digits.
func FormatKeyID(id [16]byte, multiRegion bool) string {
	if multiRegion {
		return multiRegionPrefix + hex.EncodeToString(id[:])
	}
	return record.UUID(id)
}

// keyIDShaped reports whether a text would be a key id in lower case. No key has such an
// id, and AWS answers that the key does not exist.
func keyIDShaped(s string) bool {
	_, _, ok := ParseKeyID(strings.ToLower(s))
	return ok
}

// ParseKeyID parses a key id. It accepts only the spelling of FormatKeyID: with two
// spellings, a key would have two names in policies and logs.
func ParseKeyID(s string) (id [16]byte, multiRegion, ok bool) {
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

// RootARN returns the ARN of an account's root user.
func RootARN(partition, account string) string {
	return "arn:" + partition + ":iam::" + account + ":root"
}

// KeyOfCiphertext returns the key that a ciphertext names by its id, in the Region of the
// request and whichever account it belongs to. If there is none, the target has no key, and
// known says whether the id is or was that of a key of the cluster.
//
// An id that is unknown can only be looked for in every account, of which there may be more
// than a read set has room for, and an account may be one that this node has not heard of yet.
// So an id is called unknown only on a state with everything that was committed before the
// call. Ids are random and never used again, so that was true at that moment whatever comes
// afterwards, and is not in the read set.
func KeyOfCiphertext(ev *Evaluation, id [16]byte) (t *Target, known bool, err error) {
	t, known = keyOfID(ev, id)
	if known || ev.Ctx.Value(newestState{}) != nil {
		return t, known, nil
	}
	// What was read so far is in the read set with its versions, so it may be from another
	// state.
	if ev.State, err = ev.Authenticator.FreshState(ev.Ctx); err != nil {
		return nil, false, err
	}
	t, known = keyOfID(ev, id)
	return t, known, nil
}

// keyOfID is KeyOfCiphertext on one state. An id that is known stays known, with a tombstone
// once its keys are gone, so the read set has only the key in the Region of the request.
func keyOfID(ev *Evaluation, id [16]byte) (t *Target, known bool) {
	for a := range fsm.Accounts(ev.State) {
		for _, r := range Regions(ev.Cluster()) {
			k := fsm.KeyID{Account: a, Region: r, ID: id}
			alive, _ := ev.State.Key(k)
			dead, _ := ev.State.Tombstone(k)
			if alive != nil || dead != nil {
				// Ids are random, so no other account has a key with this one.
				return ev.Target(fsm.KeyID{Account: a, Region: ev.Region(), ID: id}), true
			}
		}
	}
	return &Target{}, false
}

// WrongOrigin returns the error for a key whose origin does not fit the operation.
func WrongOrigin(t *Target) error {
	return kmsapi.Errorf(kmsapi.ErrUnsupported, "%s origin is %s which is not valid for this operation.", t.ARN, t.Key.Origin)
}
