package request

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// newestState marks the context of an evaluation on a state that nothing can
// overtake: ProposeExclusive holds the log back meanwhile, and a barrier would
// wait for itself.
type newestState struct{}

func WithNewestState(ctx context.Context) context.Context {
	return context.WithValue(ctx, newestState{}, true)
}

// Admit decides whether the caller is still who it proved to be, on the state of
// the evaluation, and notes the credential. If not, it looks again on a fresh
// state, which the evaluation then continues with: a refusal must not rest on a
// state that is behind.
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

func AdmitOn(ev *Evaluation, o *vault.Opened) error {
	id := &ev.Caller.Identity
	if id.Credential() == "" {
		return iam.ErrUnrecognized
	}
	return ev.Authenticator.Admit(o, id, ev.Credential(id.Credential()))
}
