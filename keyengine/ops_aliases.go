package keyengine

import (
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func createAlias(ev *eval, in *kmsapi.CreateAliasInput) (*none, error) {
	name := *in.AliasName
	if err := aliasMembers(name, *in.TargetKeyId); err != nil {
		return nil, err
	}
	t, err := ev.resolve(*in.TargetKeyId, keyForms, ev.op.action())
	if err != nil {
		return nil, err
	}
	if err := authoriseAlias(ev, name, t); err != nil {
		return nil, err
	}
	if err := ev.op.states.check(t.arn, t.key.State); err != nil {
		return nil, err
	}
	if ev.alias(t.id.Region, name) != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrAlreadyExists, "An alias with the name %s already exists", aliasARN(ev, name))
	}
	if err := roomForAlias(ev, t); err != nil {
		return nil, err
	}
	now := ev.now().UnixNano()
	putAlias(ev, &fsmpb.Alias{Account: uint64(t.id.Account), Name: name, Region: t.id.Region, Key: t.id.ID[:], Created: now, Updated: now})
	return &none{}, nil
}

func updateAlias(ev *eval, in *kmsapi.UpdateAliasInput) (*none, error) {
	name := *in.AliasName
	if err := aliasMembers(name, *in.TargetKeyId); err != nil {
		return nil, err
	}
	a, old, err := existingAlias(ev, name)
	if err != nil {
		return nil, err
	}
	t, err := ev.resolve(*in.TargetKeyId, keyForms, ev.op.action())
	if err != nil {
		return nil, err
	}
	if err := authoriseAlias(ev, name, old, t); err != nil {
		return nil, err
	}
	if err := ev.op.states.check(t.arn, t.key.State); err != nil {
		return nil, err
	}
	if kindOf(old.key) != kindOf(t.key) || old.key.Usage != t.key.Usage {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "The alias %s cannot be moved from %s to %s: the keys differ in type or usage.", aliasARN(ev, name), old.arn, t.arn)
	}
	if old.id != t.id {
		if err := roomForAlias(ev, t); err != nil {
			return nil, err
		}
	}
	putAlias(ev, &fsmpb.Alias{Account: uint64(t.id.Account), Name: name, Region: t.id.Region, Key: t.id.ID[:], Created: a.Created, Updated: ev.now().UnixNano()})
	return &none{}, nil
}

func deleteAlias(ev *eval, in *kmsapi.DeleteAliasInput) (*none, error) {
	name := *in.AliasName
	if err := aliasName(name); err != nil {
		return nil, err
	}
	_, t, err := existingAlias(ev, name)
	if err != nil {
		return nil, err
	}
	if err := authoriseAlias(ev, name, t); err != nil {
		return nil, err
	}
	if err := ev.op.states.check(t.arn, t.key.State); err != nil {
		return nil, err
	}
	ev.change(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(t.id.Account), Name: name, Region: t.id.Region}}})
	return &none{}, nil
}

// aliasMembers checks the members of CreateAlias and UpdateAlias.
func aliasMembers(name, targetKeyID string) error {
	if err := aliasName(name); err != nil {
		return err
	}
	if strings.HasPrefix(targetKeyID, kmsapi.AliasPrefix) || strings.Contains(targetKeyID, ":"+kmsapi.AliasPrefix) {
		return kmsapi.Errorf(kmsapi.ErrValidation, "Aliases must refer to keys. Not aliases")
	}
	return nil
}

// aliasName checks what the pattern of the service model lets pass.
func aliasName(name string) error {
	rest, ok := strings.CutPrefix(name, kmsapi.AliasPrefix)
	switch {
	case !ok:
		return kmsapi.Errorf(kmsapi.ErrValidation, `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`)
	case strings.HasPrefix(name, kmsapi.AWSAliasPrefix):
		return kmsapi.ErrNotAuthorized
	case rest == "" || strings.Contains(rest, ":"):
		return kmsapi.Errorf(kmsapi.ErrValidation, "%s contains invalid characters for an alias", name)
	}
	return nil
}

// existingAlias is an alias with the key that it names.
func existingAlias(ev *eval, name string) (*fsmpb.Alias, *target, error) {
	a := ev.alias(ev.region(), name)
	if a == nil {
		return nil, nil, aliasNotFound(ev, name)
	}
	t := ev.target(fsm.KeyID{Account: fsm.Account(a.Account), Region: a.Region, ID: [16]byte(a.Key)})
	if t.key == nil {
		return nil, nil, aliasNotFound(ev, name) // the key went, and its aliases with it
	}
	return a, t, nil
}

// kindOf tells apart what an alias may not move between.
func kindOf(k *fsmpb.Key) string {
	switch {
	case k.Spec == kmsapi.SpecSymmetric:
		return "symmetric"
	case strings.HasPrefix(k.Spec, "HMAC_"):
		return "HMAC"
	}
	return "asymmetric"
}

// authoriseAlias asks for the operation's action on the alias and on the keys.
func authoriseAlias(ev *eval, name string, keys ...*target) error {
	arn := aliasARN(ev, name)
	ev.resource("AWS::KMS::Alias", arn)
	if err := ev.authoriseAccount(ev.op.action(), arn); err != nil {
		return err
	}
	for _, t := range keys {
		if err := ev.authorise(t, ev.op.action(), nil); err != nil {
			return err
		}
	}
	return nil
}

func roomForAlias(ev *eval, t *target) error {
	if n, most := ev.keyAliases(t.id), ev.Quotas.Aliases; int(n.GetCount()) >= most {
		return kmsapi.Errorf(kmsapi.ErrLimitExceeded, "%s has %d aliases and cannot have more.", t.arn, n.GetCount())
	}
	return nil
}

func putAlias(ev *eval, a *fsmpb.Alias) {
	ev.change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: a}})
}
