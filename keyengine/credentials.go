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
	"github.com/conclavekms/conclave/keyengine/internal/iamops"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// byRoot carries out a request that AWS does not have and that only the account's root user
// may make; see requested.
func (e *Engine) byRoot(ctx context.Context, c *iam.Caller, name, what string, ask record.Event, act func(*request.Evaluation, *record.Event) error) error {
	return e.requested(ctx, c, name, ask, func(ev *request.Evaluation, done *record.Event) error {
		if err := mustBeRoot(ev, what); err != nil || act == nil {
			return err
		}
		return act(ev, done)
	})
}

// requested carries out a request that AWS does not have. act authorises the caller and
// evaluates the request on a state; what it reads is the record's read set, and what it
// changes goes into the record. Refusals are recorded too. Nothing takes effect, and the
// caller gets no answer, before the record is committed.
func (e *Engine) requested(ctx context.Context, c *iam.Caller, name string, ask record.Event, act func(*request.Evaluation, *record.Event) error) error {
	if err := e.limits.allow(c); err != nil {
		return err
	}
	var done record.Event
	d, err := e.events.CommitEvent(ctx, func(s *fsm.State) (record.Event, error) {
		ev := &request.Evaluation{Ctx: ctx, Services: e.services, State: s, Caller: c}
		admitted := ev.Admit()
		if admitted != nil && !ev.Known(admitted) {
			return done, admitted
		}
		done = ask
		done.Name, done.Kind, done.RequestID = name, record.KindConclave, c.RequestID
		done.Account, done.Identity = ev.Principal().Account, new(auditpb.Identity)
		ev.Who().Record(done.Identity, c.Identity.Credential())
		done.SourceIP, done.UserAgent, done.Transport, done.TLS = c.SourceIP, c.UserAgent, c.Transport, c.TLS.Recorded()
		if done.Err = admitted; done.Err == nil {
			done.Err = act(ev, &done)
		}
		if done.Err != nil {
			if _, ok := errors.AsType[*kmsapi.Error](done.Err); !ok {
				return done, done.Err // an internal error, which is not recorded
			}
			done.Response, ev.Changes = nil, nil
		}
		done.Reads, done.NotBefore, done.NotAfter, done.Changes = ev.Reads, ev.NotBefore, ev.NotAfter, ev.Changes
		return done, nil
	})
	c.Record = d.Record
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
		// Wait, so that the caller reads its own write on this node.
		if err := e.replica.WaitApplied(ctx, d.Index); err != nil {
			e.log.Warn("the change is committed, but this node is behind", "event", name, "err", err)
		}
	}
	return nil
}

// mustBeRoot refuses callers other than the root user of an account.
func mustBeRoot(ev *request.Evaluation, what string) error {
	p, c := ev.Principal(), ev.Cluster()
	if c != nil && p.Kind == policy.KindRoot && p.Partition == c.Partition {
		return mustNotBeSession(ev, what)
	}
	return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to %s: only the account's root user is", p, what)
}

// mustNotBeSession refuses temporary credentials of GetSessionToken, as IAM does. Whoever has
// got hold of them could make credentials that last otherwise.
func mustNotBeSession(ev *request.Evaluation, what string) error {
	if ev.Who().Session.GetParent() == "" {
		return nil
	}
	return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to %s with session credentials", ev.Principal(), what)
}

// mustAdminister refuses callers who are not allowed an action of Conclave's own. What such
// an action concerns belongs to all accounts, so the caller must belong to the account that
// the cluster was initialised with.
func mustAdminister(ev *request.Evaluation, action string) error {
	if ev.Who().Account != fsm.AccountOf(ev.State) {
		return kmsapi.Errorf(kmsapi.ErrAccessDenied, "User: %s is not authorized to perform: %s: it does not belong to the account that administers the cluster", ev.Principal(), action)
	}
	return ev.AuthoriseAccount(action, "*")
}

// CredentialInfo describes a credential to the root user.
type CredentialInfo struct {
	// ID is an access key id, or the URI of a client certificate.
	ID string
	// Certificate is true for a client certificate, false for an access key.
	Certificate bool
	Principal   string
	Created     time.Time
	// Expires is when a break-glass access key ends; zero for others, which have no end.
	Expires time.Time
}

// Credentials returns the active credentials of the caller, who must be root, ordered by id.
// Errors: ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) Credentials(ctx context.Context, c *iam.Caller) (list []CredentialInfo, err error) {
	// Include a credential that another node has just created.
	if _, err := e.FreshState(ctx); err != nil {
		return nil, err
	}
	err = e.byRoot(ctx, c, "ListCredentials", "list credentials", record.Event{ReadOnly: true}, func(ev *request.Evaluation, _ *record.Event) error {
		own, err := iamops.RootOf(ev).Credentials(ev)
		list = nil
		for _, c := range own {
			if !c.Active {
				continue
			}
			info := CredentialInfo{
				ID: c.Id, Certificate: c.Kind == fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: c.Principal, Created: time.Unix(0, c.Created),
			}
			if c.BreakGlassUntil != 0 {
				info.Expires = time.Unix(0, c.BreakGlassUntil)
			}
			list = append(list, info)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// CreateAccessKey creates an access key for the caller, who must be root. The secret is
// returned encrypted to answerKey (see keymat.SealTo); the caller gets no other copy.
// Errors: ErrValidation, LimitExceeded for a third access key, ErrAccessDenied,
// ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) CreateAccessKey(ctx context.Context, c *iam.Caller, answerKey []byte) (id string, sealed []byte, err error) {
	return e.newAccessKey(answerKey, func(handOver handOver) error {
		return e.byRoot(ctx, c, "CreateAccessKey", "create access keys", record.Event{}, func(ev *request.Evaluation, done *record.Event) error {
			return iamops.RootOf(ev).NewKey(ev, handOver(done))
		})
	})
}

// handOver returns the function that takes a new access key with its secret, and notes the
// key in the record.
type handOver func(done *record.Event) func(made *fsmpb.Credential, secret []byte) error

// newAccessKey has create make an access key, and returns its secret encrypted to answerKey.
func (e *Engine) newAccessKey(answerKey []byte, create func(handOver) error) (id string, sealed []byte, err error) {
	if err := e.hasRoom(); err != nil {
		return "", nil, err
	}
	if err := iam.CheckAnswerKey(answerKey); err != nil {
		return "", nil, err
	}
	err = create(func(done *record.Event) func(*fsmpb.Credential, []byte) error {
		return func(made *fsmpb.Credential, secret []byte) (err error) {
			id = made.Id
			done.Response = []*auditpb.Field{auditfield.Text("accessKeyId", id)}
			sealed, err = keymat.SealTo(answerKey, iam.SecretInfo(id), secret)
			return err
		}
	})
	if err != nil {
		return "", nil, err
	}
	return id, sealed, nil
}

// DeleteCredential deletes a credential of the caller, who must be root: an access key, or
// the entry that lets a client certificate with a certain URI act as root. Once it has
// returned, no node answers a request that is received with the credential or with a
// session opened with it. Errors: NoSuchEntity, ErrAccessDenied,
// ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) DeleteCredential(ctx context.Context, c *iam.Caller, id string) error {
	if id == "" || len(id) > vault.MaxCredentialID {
		return kmsapi.Errorf(kmsapi.ErrValidation, "A credential is named by an access key id or the URI of a certificate.")
	}
	ask := record.Event{Parameters: []*auditpb.Field{auditfield.Text("credential", id)}}
	return e.byRoot(ctx, c, "DeleteCredential", "delete credentials", ask, func(ev *request.Evaluation, _ *record.Event) error {
		return iamops.RootOf(ev).Delete(ev, id)
	})
}

// RevokeSessions ends every session of the caller's principal, who must be root, by raising
// the epoch of each of its access keys. Once it has returned, no node answers a request
// that is received with one of these sessions. Errors: ErrAccessDenied,
// ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) RevokeSessions(ctx context.Context, c *iam.Caller) error {
	return e.byRoot(ctx, c, "RevokeSessions", "revoke sessions", record.Event{}, func(ev *request.Evaluation, done *record.Event) error {
		o, err := e.vault.Current()
		if err != nil {
			return err
		}
		own, err := iamops.RootOf(ev).Credentials(ev)
		if err != nil {
			return err
		}
		var keys []string
		for _, c := range own {
			if c.Kind != fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY {
				continue // a certificate opens no sessions
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
