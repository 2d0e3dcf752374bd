package ops

import (
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func createAlias(ev *request.Evaluation, in *kmsapi.CreateAliasInput) (*request.None, error) {
	name := *in.AliasName
	if err := aliasMembers(name, *in.TargetKeyId); err != nil {
		return nil, err
	}
	t, err := ev.Resolve(*in.TargetKeyId, request.KeyForms, ev.Op.Action())
	if err != nil {
		return nil, err
	}
	if err := authoriseAlias(ev, name, t); err != nil {
		return nil, err
	}
	if err := ev.Op.States.Check(t.ARN, t.Key.State); err != nil {
		return nil, err
	}
	if ev.Alias(t.ID.Account, t.ID.Region, name) != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrAlreadyExists, "An alias with the name %s already exists", request.AliasARN(ev, request.AccountOf(ev), name))
	}
	if err := roomForAlias(ev, t); err != nil {
		return nil, err
	}
	now := ev.Now().UnixNano()
	putAlias(ev, &fsmpb.Alias{Account: uint64(t.ID.Account), Name: name, Region: t.ID.Region, Key: t.ID.ID[:], Created: now, Updated: now})
	return &request.None{}, nil
}

func updateAlias(ev *request.Evaluation, in *kmsapi.UpdateAliasInput) (*request.None, error) {
	name := *in.AliasName
	if err := aliasMembers(name, *in.TargetKeyId); err != nil {
		return nil, err
	}
	a, old, err := existingAlias(ev, name)
	if err != nil {
		return nil, err
	}
	t, err := ev.Resolve(*in.TargetKeyId, request.KeyForms, ev.Op.Action())
	if err != nil {
		return nil, err
	}
	if err := authoriseAlias(ev, name, old, t); err != nil {
		return nil, err
	}
	if err := ev.Op.States.Check(t.ARN, t.Key.State); err != nil {
		return nil, err
	}
	if kindOf(old.Key) != kindOf(t.Key) || old.Key.Usage != t.Key.Usage {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "The alias %s cannot be moved from %s to %s: the keys differ in type or usage.", request.AliasARN(ev, request.AccountOf(ev), name), old.ARN, t.ARN)
	}
	if old.ID != t.ID {
		if err := roomForAlias(ev, t); err != nil {
			return nil, err
		}
	}
	putAlias(ev, &fsmpb.Alias{Account: uint64(t.ID.Account), Name: name, Region: t.ID.Region, Key: t.ID.ID[:], Created: a.Created, Updated: ev.Now().UnixNano()})
	return &request.None{}, nil
}

func deleteAlias(ev *request.Evaluation, in *kmsapi.DeleteAliasInput) (*request.None, error) {
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
	if err := ev.Op.States.Check(t.ARN, t.Key.State); err != nil {
		return nil, err
	}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(t.ID.Account), Name: name, Region: t.ID.Region}}})
	return &request.None{}, nil
}

// aliasMembers validates the members of CreateAlias and UpdateAlias.
func aliasMembers(name, targetKeyID string) error {
	if err := aliasName(name); err != nil {
		return err
	}
	if strings.HasPrefix(targetKeyID, kmsapi.AliasPrefix) || strings.Contains(targetKeyID, ":"+kmsapi.AliasPrefix) {
		return kmsapi.Errorf(kmsapi.ErrValidation, "Aliases must refer to keys. Not aliases")
	}
	return nil
}

// aliasName rejects names that the service model's pattern allows and AWS does not.
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

// existingAlias returns an alias and its key.
func existingAlias(ev *request.Evaluation, name string) (*fsmpb.Alias, *request.Target, error) {
	a := ev.Alias(request.AccountOf(ev), ev.Region(), name)
	if a == nil {
		return nil, nil, request.AliasNotFound(ev, request.AccountOf(ev), name)
	}
	t := ev.Target(fsm.KeyID{Account: fsm.Account(a.Account), Region: a.Region, ID: [16]byte(a.Key)})
	if t.Key == nil {
		return nil, nil, request.AliasNotFound(ev, request.AccountOf(ev), name) // the key was deleted with its aliases
	}
	return a, t, nil
}

// kindOf returns the kind of a key. An alias can only be moved to a key of the same kind.
func kindOf(k *fsmpb.Key) string {
	switch {
	case k.Spec == kmsapi.SpecSymmetric:
		return "symmetric"
	case strings.HasPrefix(k.Spec, "HMAC_"):
		return "HMAC"
	}
	return "asymmetric"
}

// authoriseAlias checks that the caller may perform the operation on the alias and on the
// keys.
func authoriseAlias(ev *request.Evaluation, name string, keys ...*request.Target) error {
	arn := request.AliasARN(ev, request.AccountOf(ev), name)
	ev.Resource("AWS::KMS::Alias", arn)
	if err := ev.AuthoriseAccount(ev.Op.Action(), arn); err != nil {
		return err
	}
	for _, t := range keys {
		if err := ev.Authorise(t, ev.Op.Action(), nil); err != nil {
			return err
		}
	}
	return nil
}

func roomForAlias(ev *request.Evaluation, t *request.Target) error {
	if n, most := ev.KeyAliases(t.ID), ev.Quotas.Aliases; int(n.GetCount()) >= most {
		return kmsapi.Errorf(kmsapi.ErrLimitExceeded, "%s has %d aliases and cannot have more.", t.ARN, n.GetCount())
	}
	return nil
}

func putAlias(ev *request.Evaluation, a *fsmpb.Alias) {
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: a}})
}
