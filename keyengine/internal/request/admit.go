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
