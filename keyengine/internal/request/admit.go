package request

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// newestState marks the context of an evaluation in ProposeExclusive, which holds up the
// log. A barrier would then wait for itself, and is not needed: no record can overtake the
// state.
type newestState struct{}

// WithNewestState marks the context of an evaluation in ProposeExclusive.
func WithNewestState(ctx context.Context) context.Context {
	return context.WithValue(ctx, newestState{}, true)
}

// Admit checks that the caller's identity is still valid on the evaluated state, and notes
// its credential as read. If it is not valid, Admit looks again on an up-to-date state,
// with which the evaluation then continues: a refusal must not rest on a state that is
// behind.
func (ev *Evaluation) Admit() error {
	o, err := ev.Vault.Current()
	if err != nil {
		return err
	}
	admit := func() error { return AdmitOn(ev, o) }
	if ev.Op != nil && ev.Op.Unsigned {
		if err := ev.Op.input.Validate(ev.Input); err != nil {
			return err
		}
		admit = func() error { return prove(ev) }
	}
	err = admit()
	behind := errors.Is(err, iam.ErrUnrecognized)
	if b, ok := errors.AsType[*behindError](err); ok {
		behind, err = true, b.error
	}
	if err == nil || !behind || ev.Ctx.Value(newestState{}) != nil {
		return err
	}
	fresh, ferr := ev.Authenticator.FreshState(ev.Ctx)
	if ferr != nil {
		return ferr
	}
	if fresh == ev.State {
		return err
	}
	ev.State, ev.Reads, ev.clusterRecord = fresh, nil, nil
	ev.NotBefore, ev.NotAfter = 0, 0
	err = admit()
	if b, ok := errors.AsType[*behindError](err); ok {
		err = b.error
	}
	return err
}

// behindError is an error that may be due to a state that is behind.
type behindError struct{ error }

// MayBeBehind returns err for Operation.Prove to return, if it may be due to a state that is
// behind: Admit then looks again on an up-to-date state.
func MayBeBehind(err error) error { return &behindError{err} }

// prove admits the caller of an operation whose input says who it is.
func prove(ev *Evaluation) (err error) {
	ev.who, err = ev.Op.Prove(ev, ev.Input)
	return err
}

// AdmitOn checks the caller's identity on the evaluated state only. It adds to the read set
// what the identity depends on: the credential, and what [iam.Entity.Reads] names.
func AdmitOn(ev *Evaluation, o *vault.Opened) error {
	id := &ev.Caller.Identity
	credential := id.Credential()
	if credential == "" {
		return iam.ErrUnrecognized
	}
	if cert := id.Mapped(); cert != nil {
		return admitMapped(ev, cert)
	}
	t := id.Temporary()
	if t != nil {
		credential = t.Parent
		ev.Within(0, t.Expires)
	}
	var c *fsmpb.Credential
	if credential != "" {
		c = ev.Credential(id.Account(), credential)
	}
	who, err := ev.Authenticator.Admit(o, ev.State, id, c)
	if err != nil {
		return err
	}
	ev.Within(0, who.BreakGlassUntil)
	who.Reads(ev.Note)
	ev.who = who
	return nil
}

// admitMapped admits a caller whose certificate is mapped to a user or a role. The trust policy
// of a role must allow the mapping to assume it, as for AWS's IAM Roles Anywhere, and is asked
// for each request: the session is of that request only. If it is not allowed, the caller is
// known all the same, and its refusal is recorded.
func admitMapped(ev *Evaluation, cert *iam.Certificate) error {
	who, bearer, err := iam.MappedBy(ev.State, cert, ev.Note)
	if err != nil {
		return err
	}
	ev.Within(0, cert.Expires())
	if who.Role == nil {
		ev.who = who
		return nil
	}
	ev.who = bearer
	arn := iam.RoleARN(ev.Cluster().GetPartition(), who.Role)
	conditions := map[string][]string{"sts:rolesessionname": {who.Session.Name}, "sts:sourceidentity": {who.Session.SourceIdentity}}
	before := len(ev.decisions)
	for _, action := range []string{"sts:AssumeRole", "sts:SetSourceIdentity"} {
		if err := ev.AuthoriseRole(who.Role, arn, action, &Conditions{More: conditions}); err != nil {
			return err
		}
	}
	// The record has the role and the mapped URI. These decisions are not about the request.
	ev.who, ev.ownRules, ev.decisions = who, nil, ev.decisions[:before]
	return nil
}

// Known reports whether err, of Admit, refuses a caller who was recognised. Such a refusal is
// recorded.
func (ev *Evaluation) Known(err error) bool { return ev.denied != nil && err == error(ev.denied) }
