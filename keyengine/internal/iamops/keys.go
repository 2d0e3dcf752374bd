package iamops

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Owner is whose access keys a request is about: a user, or the root user of the caller's
// account.
//
// A user lists its access keys, so two requests cannot both add the last one that the quota
// allows. The root user is no object. Its keys are found among the credentials of the account,
// and each request that adds or removes one changes the account, for the same reason.
type Owner struct {
	account fsm.Account
	user    *fsmpb.User // nil for the root user
	root    string      // ARN of the root user
}

// RootOf returns the owner of the credentials of the account's root user.
func RootOf(ev *request.Evaluation) *Owner { return rootOf(ev, request.AccountOf(ev)) }

func rootOf(ev *request.Evaluation, a fsm.Account) *Owner {
	return &Owner{account: a, root: request.RootARN(partition(ev), a.String())}
}

// ownerNamed authorises the operation on the user with a name, or on the caller if there is
// none.
func ownerNamed(ev *request.Evaluation, name *string) (*Owner, error) {
	if name == nil {
		own, err := ownName(ev)
		if err != nil {
			return nil, err
		}
		if own == "" {
			o := RootOf(ev)
			return o, ev.AuthoriseAccount(ev.Op.Action(), o.root)
		}
		name = &own
	}
	u, err := users.find(ev, *name, nil)
	return &Owner{account: request.AccountOf(ev), user: u}, err
}

// principal is what the credentials of an owner have as their principal.
func (o *Owner) principal() string {
	if o.user != nil {
		return o.user.Id
	}
	return o.root
}

// name is the owner's name in answers; the root user has none.
func (o *Owner) name() *string {
	if o.user == nil {
		return nil
	}
	return &o.user.Name
}

// Credentials returns the credentials of an owner in the evaluated state, whether active or
// not, and adds them to the read set: the access keys of a user, and those of the root user
// with the client certificates that let somebody act as root. It skips credentials that no
// unsealed node wrote.
func (o *Owner) Credentials(ev *request.Evaluation) (list []*fsmpb.Credential, err error) {
	opened, err := ev.Vault.Current()
	if err != nil {
		return nil, err
	}
	a := o.account
	if o.user != nil {
		for _, id := range o.user.AccessKeys {
			if c := ev.Credential(a, id); c != nil {
				list = append(list, c)
			}
		}
	} else {
		request.Read[*fsmpb.Account](ev, fsm.AccountID(a))
		list = slices.Collect(fsm.Having[*fsmpb.Credential](ev.State, a, o.root, ""))
	}
	genuine := list[:0]
	for _, c := range list {
		_, err := ev.Authenticator.Identify(opened, c)
		switch {
		case err == nil:
			ev.Credential(a, c.Id)
			genuine = append(genuine, c)
		case err != iam.ErrUnrecognized:
			return nil, err
		}
	}
	return genuine, nil
}

// keys returns the access keys of an owner, the oldest first.
func (o *Owner) keys(ev *request.Evaluation) ([]*fsmpb.Credential, error) {
	list, err := o.Credentials(ev)
	list = slices.DeleteFunc(list, func(c *fsmpb.Credential) bool { return !isKey(c) })
	slices.SortFunc(list, func(a, b *fsmpb.Credential) int { return strings.Compare(placeOfKey(a), placeOfKey(b)) })
	return list, err
}

// placeOfKey is the place of an access key in lists, which are in the order of creation.
func placeOfKey(c *fsmpb.Credential) string { return fmt.Sprintf("%019d %s", c.Created, c.Id) }

func isKey(c *fsmpb.Credential) bool {
	return c.Kind == fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY
}

// relist adds to the record the change of the owner's list of access keys.
func (o *Owner) relist(ev *request.Evaluation, edit func(ids []string) []string) {
	if o.user != nil {
		next := proto.CloneOf(o.user)
		next.AccessKeys = edit(next.AccessKeys)
		ev.Change(users.put(next))
		return
	}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAccount{PutAccount: proto.CloneOf(accountObject(ev, o.account))}})
}

// NewKey adds a new access key of the owner to the record, and calls use with its secret.
func (o *Owner) NewKey(ev *request.Evaluation, use func(c *fsmpb.Credential, secret []byte) error) error {
	had, err := o.keys(ev)
	if err != nil {
		return err
	}
	// A break-glass access key must not be in the way of the access key that it is for.
	had = slices.DeleteFunc(had, func(c *fsmpb.Credential) bool { return c.BreakGlassUntil != 0 })
	if quota := ev.Quotas.AccessKeys; len(had) >= quota {
		return quotaExceeded("AccessKeysPerUser", quota)
	}
	made, err := o.makeKey(ev, 0, use)
	if err != nil {
		return err
	}
	o.relist(ev, func(ids []string) []string { return append(ids, made.Id) })
	return nil
}

// NewBreakGlassKey adds to the record an access key for the root user of an account, which ends
// at until, in Unix nanoseconds of cluster time, and calls use with its secret. It replaces the
// account's earlier break-glass access keys.
func NewBreakGlassKey(ev *request.Evaluation, a fsm.Account, until int64, use func(c *fsmpb.Credential, secret []byte) error) error {
	o := rootOf(ev, a)
	had, err := o.keys(ev)
	if err != nil {
		return err
	}
	for _, c := range had {
		if c.BreakGlassUntil != 0 {
			ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteCredential{DeleteCredential: &fsmpb.CredentialID{Account: c.Account, Id: c.Id}}})
		}
	}
	if _, err := o.makeKey(ev, until, use); err != nil {
		return err
	}
	o.relist(ev, nil)
	return nil
}

// makeKey is NewKey without the quota and the owner's list. until is when a break-glass access
// key ends, and 0 for all others.
func (o *Owner) makeKey(ev *request.Evaluation, until int64, use func(c *fsmpb.Credential, secret []byte) error) (made *fsmpb.Credential, err error) {
	opened, err := ev.Vault.Current()
	if err != nil {
		return nil, err
	}
	keymat.Scrub(func() {
		var secret *keymat.Secret
		// A key that is older than its user is refused, and the user may have been made by a node
		// whose clock is ahead of this one's.
		created := max(ev.Now().UnixNano(), o.user.GetCreated())
		if made, secret, err = iam.NewAccessKey(ev.Vault.Arena(), opened, o.account, o.principal(), created, until); err != nil {
			return
		}
		defer secret.Destroy()
		err = secret.With(func(b []byte) error { return use(made, b) })
	})
	if err != nil {
		return nil, vault.Gone(err)
	}
	ev.Credential(o.account, made.Id) // the record requires that the id is not in use
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: made}})
	return made, nil
}

// find returns the access key of an owner with an id.
func (o *Owner) find(ev *request.Evaluation, id string) (*fsmpb.Credential, error) {
	list, err := o.Credentials(ev)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(list, func(c *fsmpb.Credential) bool { return c.Id == id }); i >= 0 {
		return list[i], nil
	}
	ev.Credential(o.account, id)
	return nil, noSuch("The Access Key with id %s cannot be found.", id)
}

// Delete adds to the record the deletion of a credential of the owner. It may be the root user's
// last one: the custodians can let the root user in again.
func (o *Owner) Delete(ev *request.Evaluation, id string) error {
	if _, err := o.find(ev, id); err != nil {
		return err
	}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteCredential{DeleteCredential: &fsmpb.CredentialID{Account: account(ev), Id: id}}})
	o.relist(ev, func(ids []string) []string {
		return slices.DeleteFunc(ids, func(other string) bool { return other == id })
	})
	return nil
}

func statusOf(c *fsmpb.Credential) *string {
	if c.Active {
		return new(statusActive)
	}
	return new(statusInactive)
}

// The values of Status.
const (
	statusActive   = "Active"
	statusInactive = "Inactive"
)

// createAccessKey returns the only copy of the secret outside of the vault.
func createAccessKey(ev *request.Evaluation, in *iamapi.CreateAccessKeyInput) (*iamapi.CreateAccessKeyOutput, error) {
	o, err := ownerNamed(ev, in.UserName)
	if err != nil {
		return nil, err
	}
	var out iamapi.CreateAccessKeyOutput
	err = o.NewKey(ev, func(c *fsmpb.Credential, secret []byte) error {
		out.AccessKey = &iamapi.AccessKey{
			UserName: o.name(), AccessKeyId: &c.Id, Status: statusOf(c), SecretAccessKey: new(string(secret)), CreateDate: timeOf(c.Created),
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

func listAccessKeys(ev *request.Evaluation, in *iamapi.ListAccessKeysInput) (*iamapi.ListAccessKeysOutput, error) {
	o, err := ownerNamed(ev, in.UserName)
	if err != nil {
		return nil, err
	}
	list, err := o.keys(ev)
	if err != nil {
		return nil, err
	}
	p, err := paging{in.MaxItems, in.Marker}.page(ev, o.principal())
	if err != nil {
		return nil, err
	}
	out := &iamapi.ListAccessKeysOutput{AccessKeyMetadata: []iamapi.AccessKeyMetadata{}}
	out.Marker, out.IsTruncated, err = request.Fill(p, slices.Values(list), placeOfKey, func(c *fsmpb.Credential) {
		out.AccessKeyMetadata = append(out.AccessKeyMetadata, iamapi.AccessKeyMetadata{
			UserName: o.name(), AccessKeyId: &c.Id, Status: statusOf(c), CreateDate: timeOf(c.Created),
		})
	})
	return out, err
}

// updateAccessKey makes an access key active or inactive. Once it has returned, no node answers
// a request that is received with an inactive key or with a session opened with it.
func updateAccessKey(ev *request.Evaluation, in *iamapi.UpdateAccessKeyInput) error {
	o, err := ownerNamed(ev, in.UserName)
	if err != nil {
		return err
	}
	c, err := o.find(ev, *in.AccessKeyId)
	if err != nil {
		return err
	}
	var active bool
	switch *in.Status {
	case statusActive:
		active = true
	case statusInactive:
	default:
		return kmsapi.Errorf(kmsapi.ErrValidation, "The status of an access key is set to %s or %s.", statusActive, statusInactive)
	}
	if active == c.Active {
		return nil
	}
	opened, err := ev.Vault.Current()
	if err != nil {
		return err
	}
	next := proto.CloneOf(c)
	next.Active = active
	if err := opened.SignCredential(next); err != nil {
		return err
	}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: next}})
	if o.user == nil {
		o.relist(ev, nil)
	}
	return nil
}

// getAccessKeyLastUsed says when an access key was last used, also if the request was refused,
// and for which service. The answer may be newer than the decision. A denial tells neither whether
// there is such an access key nor whose it is.
func getAccessKeyLastUsed(ev *request.Evaluation, in *iamapi.GetAccessKeyLastUsedInput) (*iamapi.GetAccessKeyLastUsedOutput, error) {
	a, id := request.AccountOf(ev), *in.AccessKeyId
	c := ev.Credential(a, id)
	if c == nil || !isKey(c) {
		if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
			return nil, err
		}
		return nil, noSuch("The Access Key with id %s cannot be found.", id)
	}
	var out iamapi.GetAccessKeyLastUsedOutput
	if u := fsm.UserByID(ev.State, a, c.Principal); u != nil {
		ev.Note(fsmpb.Kind_KIND_USER, fsm.EntityID(a, u.Name), u.Version)
		if err := users.authoriseNamed(ev, users.arn(ev, u), users.parts(u), nil, "*"); err != nil {
			return nil, err
		}
		out.UserName = &u.Name
	} else if err := ev.AuthoriseNamed(ev.Op.Action(), c.Principal, &request.Conditions{}, "*", &request.Conditions{}); err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out.AccessKeyLastUsed = &iamapi.AccessKeyLastUsed{ServiceName: new("N/A"), Region: new("N/A")}
		if use := fsm.CredentialUse(s, a, id); use != nil {
			service, region := request.ServiceUsed(ev.Cluster(), use.Operation)
			out.AccessKeyLastUsed = &iamapi.AccessKeyLastUsed{LastUsedDate: timeOf(use.Time), ServiceName: new(string(service)), Region: &region}
		}
		return &out, nil
	}
	return nil, nil
}

func deleteAccessKey(ev *request.Evaluation, in *iamapi.DeleteAccessKeyInput) error {
	o, err := ownerNamed(ev, in.UserName)
	if err != nil {
		return err
	}
	return o.Delete(ev, *in.AccessKeyId)
}
