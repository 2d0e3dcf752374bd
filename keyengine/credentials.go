package keyengine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// maxAccessKeys is how many access keys a principal can have: one in use, and the
// one that is to take its place.
const maxAccessKeys = 2

// byRoot carries out what only the account's root user may do and AWS does not have.
// act decides on a state, what it reads of which is the record's precondition, and
// says what is changed. Nothing is changed or told before the record, of a refusal
// too, is committed.
func (e *Engine) byRoot(ctx context.Context, c *iam.Caller, name, what string, ask record.Event, act func(*request.Evaluation, *record.Event) error) error {
	if err := e.limits.allow(c); err != nil {
		return err
	}
	var done record.Event
	d, err := e.events.CommitEvent(ctx, func(s *fsm.State) (record.Event, error) {
		ev := &request.Evaluation{Ctx: ctx, Services: e.services, State: s, Caller: c}
		if err := ev.Admit(); err != nil {
			return done, err
		}
		done = ask
		done.Name, done.Kind, done.RequestID = name, record.KindConclave, c.RequestID
		done.Identity = record.IdentityOf(c.Identity.Principal(), c.Identity.Credential())
		done.SourceIP, done.UserAgent, done.Transport, done.TLS = c.SourceIP, c.UserAgent, c.Transport, c.TLS.Recorded()
		done.Err = mustBeRoot(ev, what)
		if done.Err == nil && act != nil {
			done.Err = act(ev, &done)
		}
		if done.Err != nil {
			if _, ok := errors.AsType[*kmsapi.Error](done.Err); !ok {
				return done, done.Err // of this node's
			}
			done.Response, ev.Changes = nil, nil
		}
		done.Reads, done.Changes = ev.Reads, ev.Changes
		return done, nil
	})
	switch {
	case err == record.ErrConflict:
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "What the request depends on keeps changing. Try again.")
	case err != nil:
		return err
	case len(done.Changes) == 0 && d.TooLate():
		return e.withheld.Withhold(c.RequestID, name)
	case done.Err != nil:
		e.limits.refused(c, done.Err)
		return done.Err
	}
	if len(done.Changes) > 0 {
		// So that the caller reads its own write here without a second try.
		if err := e.replica.WaitApplied(ctx, d.Index); err != nil {
			e.log.Warn("the change is committed, but this node is behind", "event", name, "err", err)
		}
	}
	return nil
}

// mustBeRoot decides: what concerns every principal is the account's own business.
func mustBeRoot(ev *request.Evaluation, what string) error {
	p, c := ev.Caller.Identity.Principal(), ev.Cluster()
	if c != nil && p.Kind == policy.KindRoot && p.Account == c.Account && p.Partition == c.Partition {
		return nil
	}
	return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to %s: only the account's root user is", p, what)
}

// CredentialInfo is what root may know of a credential.
type CredentialInfo struct {
	// ID is an access key id, or the URI of a client certificate.
	ID string
	// Certificate says that it is a certificate's.
	Certificate bool
	Principal   string
	Created     time.Time
}

// credentialsOfCaller are the good credentials of the caller's principal on the state of the
// evaluation, all of them noted as read. One that no unsealed node wrote is none.
func credentialsOfCaller(ev *request.Evaluation) (list []*fsmpb.Credential, err error) {
	o, err := ev.Vault.Current()
	if err != nil {
		return nil, err
	}
	for c := range ev.State.Credentials(request.AccountOf(ev)) {
		if c.Principal != ev.Caller.Identity.Principal().ARN || !c.Active {
			continue
		}
		switch _, err := ev.Authenticator.Identify(o, c); {
		case errors.Is(err, iam.ErrUnrecognized):
			continue
		case err != nil:
			return nil, err
		}
		ev.Credential(c.Id)
		list = append(list, c)
	}
	return list, nil
}

// Credentials are the caller's credentials by id, who must be root. Errors:
// ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) Credentials(ctx context.Context, c *iam.Caller) (list []CredentialInfo, err error) {
	// One that was made on another node just before must be there.
	if _, err := e.FreshState(ctx); err != nil {
		return nil, err
	}
	err = e.byRoot(ctx, c, "ListCredentials", "list credentials", record.Event{ReadOnly: true}, func(ev *request.Evaluation, _ *record.Event) error {
		own, err := credentialsOfCaller(ev)
		list = nil
		for _, c := range own {
			list = append(list, CredentialInfo{
				ID: c.Id, Certificate: c.Kind == fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: c.Principal, Created: time.Unix(0, c.Created),
			})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// accessKeyInfo binds the encrypted secret of an access key to its id.
func accessKeyInfo(id string) []byte { return []byte("conclave access key v1\x00" + id) }

// CreateAccessKey makes another access key for the caller, who must be root. Its
// secret is encrypted to answerKey, see keymat.SealTo, and stored nowhere else.
// Errors: ErrValidation, ErrLimitExceeded for a third access key, ErrAccessDenied,
// ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) CreateAccessKey(ctx context.Context, c *iam.Caller, answerKey []byte) (id string, sealed []byte, err error) {
	if err := e.hasRoom(); err != nil {
		return "", nil, err
	}
	if _, err := keymat.SealTo(answerKey, nil, nil); err != nil {
		return "", nil, kmsapi.Errorf(kmsapi.ErrValidation, "The answer key must be an uncompressed point on P-256.")
	}
	err = e.byRoot(ctx, c, "CreateAccessKey", "create access keys", record.Event{}, func(ev *request.Evaluation, done *record.Event) error {
		o, err := e.vault.Current()
		if err != nil {
			return err
		}
		own, err := credentialsOfCaller(ev)
		if err != nil {
			return err
		}
		keys := 0
		for _, c := range own {
			if c.Kind == fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY {
				keys++
			}
		}
		// It bounds what is left lying about. Two calls at once can go beyond it.
		if keys >= maxAccessKeys {
			return kmsapi.Errorf(kmsapi.ErrLimitExceeded, "There are %d access keys already. Delete one that is not in use.", keys)
		}
		var made *fsmpb.Credential
		keymat.Scrub(func() {
			var secret *keymat.Secret
			made, secret, err = iam.NewAccessKey(e.vault.Arena(), o, request.AccountOf(ev), ev.Caller.Identity.Principal().ARN, record.Now(ev.State, e.clock).UnixNano())
			if err != nil {
				return
			}
			defer secret.Destroy()
			err = secret.With(func(b []byte) error {
				sealed, err = keymat.SealTo(answerKey, accessKeyInfo(made.Id), b)
				return err
			})
		})
		if err != nil {
			return vault.Gone(err)
		}
		id = made.Id
		done.Response = []*auditpb.Field{auditfield.Text("accessKeyId", id)}
		ev.Credential(id) // which must not be there
		ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: made}})
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	return id, sealed, nil
}

// DeleteCredential deletes a credential of the caller's, who must be root: an access
// key, or what makes the client certificate of a URI root's. When it returns, no node
// answers a request received afterwards on it, or on a session of it. Errors:
// ErrNotFound, ErrInvalidState for the last one, ErrAccessDenied, ErrUnrecognizedClient,
// ErrUnavailable.
func (e *Engine) DeleteCredential(ctx context.Context, c *iam.Caller, id string) error {
	if id == "" || len(id) > vault.MaxCredentialID {
		return kmsapi.Errorf(kmsapi.ErrValidation, "A credential is named by an access key id or the URI of a certificate.")
	}
	ask := record.Event{Parameters: []*auditpb.Field{auditfield.Text("credential", id)}}
	return e.byRoot(ctx, c, "DeleteCredential", "delete credentials", ask, func(ev *request.Evaluation, _ *record.Event) error {
		// What others there are is read as well: of two calls that would delete each
		// the other's last one, one comes to nothing.
		own, err := credentialsOfCaller(ev)
		if err != nil {
			return err
		}
		found := false
		for _, c := range own {
			found = found || c.Id == id
		}
		switch {
		case !found:
			ev.Credential(id)
			return kmsapi.Errorf(kmsapi.ErrNotFound, "Root has no credential %s.", id)
		case len(own) == 1:
			return kmsapi.Errorf(kmsapi.ErrInvalidState, "This is the last credential of the account's root user. Create an access key first, and delete this one with that.")
		}
		ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteCredential{DeleteCredential: &fsmpb.CredentialID{Account: uint64(request.AccountOf(ev)), Id: id}}})
		return nil
	})
}

// RevokeSessions ends every session of the caller's principal, who must be root: the
// epoch of each of its access keys is raised. When it returns, no node answers a
// request received afterwards on one of them. Errors: ErrAccessDenied,
// ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) RevokeSessions(ctx context.Context, c *iam.Caller) error {
	return e.byRoot(ctx, c, "RevokeSessions", "revoke sessions", record.Event{}, func(ev *request.Evaluation, done *record.Event) error {
		o, err := e.vault.Current()
		if err != nil {
			return err
		}
		own, err := credentialsOfCaller(ev)
		if err != nil {
			return err
		}
		var keys []string
		for _, c := range own {
			if c.Kind != fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY {
				continue // opens no sessions
			}
			next := proto.CloneOf(c)
			if next.SessionEpoch == math.MaxUint32 {
				return fmt.Errorf("the sessions of %s were revoked too often", c.Id)
			}
			next.SessionEpoch++
			if err := o.SignCredential(next); err != nil {
				return err
			}
			ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: next}})
			keys = append(keys, c.Id)
		}
		done.Response = []*auditpb.Field{auditfield.TextList("accessKeyIds", keys)}
		return nil
	})
}
