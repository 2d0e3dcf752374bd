package request

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/fsm"
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
	ev.State, ev.Reads, ev.clusterRecord = fresh, nil, nil
	return AdmitOn(ev, o)
}

// AdmitOn checks the caller's identity on the evaluated state only. It adds to the read set
// what the identity depends on: the credential, the user, the role of a session, and the identity
// provider of a session that a web identity has opened.
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
	// The state finds users and roles by their unique ids, which are never used again. What
	// can change is the object with the name.
	if who.User != nil {
		ev.Note(fsmpb.Kind_KIND_USER, fsm.EntityID(who.Account, who.User.Name), who.User.Version)
	}
	if who.Role != nil {
		ev.Note(fsmpb.Kind_KIND_ROLE, fsm.EntityID(who.Account, who.Role.Name), who.Role.Version)
	}
	if p := who.Provider; p != nil {
		ev.Note(fsmpb.Kind_KIND_OIDC_PROVIDER, fsm.OidcProviderID(who.Account, p.Url), p.Version)
	}
	ev.who = who
	return nil
}
