package request

import (
	"context"
	"errors"

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
	err = AdmitOn(ev, o)
	if err == nil || !errors.Is(err, iam.ErrUnrecognized) || ev.Ctx.Value(newestState{}) != nil {
		return err
	}
	fresh, ferr := ev.Authenticator.FreshState(ev.Ctx)
	if ferr != nil {
		return ferr
	}
	if fresh == ev.State {
		return err
	}
	ev.State, ev.Reads = fresh, nil
	return AdmitOn(ev, o)
}

// AdmitOn checks the caller's identity on the evaluated state only.
func AdmitOn(ev *Evaluation, o *vault.Opened) error {
	id := &ev.Caller.Identity
	if id.Credential() == "" {
		return iam.ErrUnrecognized
	}
	return ev.Authenticator.Admit(o, id, ev.Credential(id.Credential()))
}
