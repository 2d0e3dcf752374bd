package keyengine

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// newestState marks the context of an evaluation on a state that nothing can
// overtake: ProposeExclusive holds the log back meanwhile, and a barrier would
// wait for itself.
type newestState struct{}

func withNewestState(ctx context.Context) context.Context {
	return context.WithValue(ctx, newestState{}, true)
}

// admit decides whether the caller is still who it proved to be, on the state of
// the evaluation, and notes the credential. If not, it looks again on a fresh
// state, which the evaluation then continues with: a refusal must not rest on a
// state that is behind.
func (ev *eval) admit() error {
	o, err := ev.Vault.Current()
	if err != nil {
		return err
	}
	err = admitOn(ev, o)
	if err == nil || !errors.Is(err, errUnrecognized) || ev.ctx.Value(newestState{}) != nil {
		return err
	}
	fresh, ferr := ev.Authenticator.FreshState(ev.ctx)
	if ferr != nil {
		return ferr
	}
	if fresh == ev.state {
		return err
	}
	ev.state, ev.reads = fresh, nil
	return admitOn(ev, o)
}

func admitOn(ev *eval, o *vault.Opened) error {
	id := &ev.caller.Identity
	if id.Credential() == "" {
		return errUnrecognized
	}
	return ev.Authenticator.admit(o, id, ev.credential(id.Credential()))
}
