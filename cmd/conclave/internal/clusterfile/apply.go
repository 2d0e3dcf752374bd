package clusterfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// maxPages bounds the pages of a list. A page has 100 entries.
const maxPages = 100

// Apply makes what is missing of the accounts, principals, certificate mappings and keys of the
// file, with the credentials of the root user, and compares the rest. Access keys of accounts
// are written to files in dir. The items are those up to the first failure, if there is one.
func (f *File) Apply(ctx context.Context, a *cli.App, c *cli.Connection, dir string) ([]Item, error) {
	m := &maker{ctx: ctx, app: a, file: f, c: c, dir: dir}
	for _, step := range []func() error{m.root, m.accounts, m.policies, m.groups, m.users, m.roles, m.certificates, m.keys} {
		if err := step(); err != nil {
			return m.items, err
		}
	}
	return m.items, nil
}

// maker makes the objects of a file.
type maker struct {
	ctx   context.Context
	app   *cli.App
	file  *File
	c     *cli.Connection
	dir   string
	items []Item
}

// ask calls the server, and explains an error.
func ask[Req, Res any](m *maker, doing string, call func(context.Context, *Req, ...grpc.CallOption) (*Res, error), req *Req) (res *Res, err error) {
	err = m.app.Timed(m.ctx, func(ctx context.Context) (err error) {
		res, err = call(ctx, req)
		return err
	})
	return res, cli.Explain(doing, m.c.Address, err)
}

// look is ask for an object that may not exist. It is then nil.
func look[Req, Res any](m *maker, doing string, call func(context.Context, *Req, ...grpc.CallOption) (*Res, error), req *Req) (res *Res, err error) {
	err = m.app.Timed(m.ctx, func(ctx context.Context) (err error) {
		res, err = call(ctx, req)
		return err
	})
	if e, ok := client.FromError(err); ok && (e.Type == "NoSuchEntity" || e.Type == "NotFoundException") {
		return nil, nil
	}
	return res, cli.Explain(doing, m.c.Address, err)
}

// note adds an item.
func (m *maker) note(it Item) { m.items = append(m.items, it) }

// root compares the root user's certificate.
func (m *maker) root() error {
	want := m.file.RootCertificate
	if want == "" {
		return nil
	}
	it := Item{Kind: "root certificate", Name: want, State: Unchanged}
	var res *kmspb.ListCredentialsResponse
	err := m.app.Timed(m.ctx, func(ctx context.Context) (err error) {
		res, err = m.c.Credentials().List(ctx, &kmspb.ListCredentialsRequest{})
		return err
	})
	if e, ok := client.FromError(err); ok && e.Type == "AccessDeniedException" {
		it.State, it.Detail = Unchecked, "only the root user may see its credentials"
		m.note(it)
		return nil
	}
	if err != nil {
		return cli.Explain("listing the root user's credentials", m.c.Address, err)
	}
	if !slices.ContainsFunc(res.GetCredentials(), func(c *kmspb.Credential) bool { return c.GetId() == want }) {
		it.differ("it is not among the root user's credentials, to which none can be added after init")
	}
	m.note(it)
	return nil
}

func (m *maker) accounts() error {
	if len(m.file.Accounts) == 0 {
		return nil
	}
	res, err := ask(m, "listing accounts", m.c.Accounts().List, &kmspb.ListAccountsRequest{})
	if err != nil {
		return err
	}
	for _, want := range m.file.Accounts {
		it := Item{Kind: "account", Name: want.ID, State: Unchanged}
		if i := slices.IndexFunc(res.GetAccounts(), func(x *kmspb.AccountInfo) bool { return x.GetAccount() == want.ID }); i >= 0 {
			it.compare("name", res.GetAccounts()[i].GetName(), want.Name)
		} else if err := m.account(want, &it); err != nil {
			return err
		}
		m.note(it)
	}
	return nil
}

func (m *maker) account(want Account, it *Item) error {
	if m.dir == "" {
		return cli.Usagef("--shares-dir is needed: the directory for the access key of account %s", want.ID)
	}
	name := filepath.Join(m.dir, "account-"+want.ID+".env")
	out, err := cli.NewSecretFile(name)
	if err != nil {
		return err
	}
	defer out.Discard()
	return m.app.Timed(m.ctx, func(ctx context.Context) error {
		id, secret, err := client.CreateAccount(ctx, m.c.Accounts(), want.ID, want.Name)
		if err != nil {
			return cli.Explain("creating account "+want.ID, m.c.Address, err)
		}
		defer clear(secret)
		it.State, it.Detail = Created, "its root user's access key is in "+name
		if err := out.Store(&cli.AccessKey{AccessKeyID: id, SecretAccessKey: string(secret)}); err != nil {
			return fmt.Errorf("account %s was created, but access key %s of its root user could not be stored: `conclave operator break-glass` recovers access: %w", want.ID, id, err)
		}
		return nil
	})
}

func (m *maker) policies() error {
	for i := range m.file.Policies {
		want := &m.file.Policies[i]
		it := Item{Kind: "policy", Name: want.Name, State: Unchanged}
		arn := m.file.arn("policy", want.Path, want.Name)
		doing := "making policy " + want.Name
		got, err := look(m, doing, m.c.IAM().GetPolicy, &iampb.GetPolicyRequest{PolicyArn: &arn})
		if err != nil {
			return err
		}
		if got == nil {
			doc := string(want.Document)
			req := &iampb.CreatePolicyRequest{PolicyName: &want.Name, Path: &want.Path, PolicyDocument: &doc, Description: want.Description, Tags: tagsOf(want.Tags)}
			if _, err := ask(m, doing, m.c.IAM().CreatePolicy, req); err != nil {
				return err
			}
			it.State = Created
		} else {
			p := got.GetPolicy()
			v, err := ask(m, doing, m.c.IAM().GetPolicyVersion, &iampb.GetPolicyVersionRequest{PolicyArn: &arn, VersionId: p.DefaultVersionId})
			if err != nil {
				return err
			}
			it.compareDocument("document", v.GetPolicyVersion().GetDocument(), want.Document)
			it.compareText("description", p.GetDescription(), want.Description)
			it.compareTags(textTags(p.GetTags()), want.Tags)
		}
		m.note(it)
	}
	return nil
}

func (m *maker) groups() error {
	for i := range m.file.Groups {
		want := &m.file.Groups[i]
		it := Item{Kind: "group", Name: want.Name, State: Unchanged}
		doing := "making group " + want.Name
		got, err := look(m, doing, m.c.IAM().GetGroup, &iampb.GetGroupRequest{GroupName: &want.Name})
		if err != nil {
			return err
		}
		if got == nil {
			if _, err := ask(m, doing, m.c.IAM().CreateGroup, &iampb.CreateGroupRequest{GroupName: &want.Name, Path: &want.Path}); err != nil {
				return err
			}
			it.State = Created
		} else {
			it.compare("path", got.GetGroup().GetPath(), want.Path)
		}
		m.note(it)
		if err := m.hold(groupCalls(m), &want.Holder); err != nil {
			return err
		}
	}
	return nil
}

func (m *maker) users() error {
	for i := range m.file.Users {
		want := &m.file.Users[i]
		it := Item{Kind: "user", Name: want.Name, State: Unchanged}
		doing := "making user " + want.Name
		got, err := look(m, doing, m.c.IAM().GetUser, &iampb.GetUserRequest{UserName: &want.Name})
		if err != nil {
			return err
		}
		if got == nil {
			if _, err := ask(m, doing, m.c.IAM().CreateUser, &iampb.CreateUserRequest{UserName: &want.Name, Path: &want.Path, Tags: tagsOf(want.Tags)}); err != nil {
				return err
			}
			it.State = Created
		} else {
			it.compare("path", got.GetUser().GetPath(), want.Path)
			it.compareTags(textTags(got.GetUser().GetTags()), want.Tags)
		}
		m.note(it)
		if err := m.join(want); err != nil {
			return err
		}
		if err := m.hold(userCalls(m), &want.Holder); err != nil {
			return err
		}
	}
	return nil
}

// join makes a user a member of its groups.
func (m *maker) join(want *User) error {
	if len(want.Groups) == 0 {
		return nil
	}
	doing := "adding user " + want.Name + " to its groups"
	var groups []string
	err := pages(func(marker *string) (*string, error) {
		res, err := ask(m, doing, m.c.IAM().ListGroupsForUser, &iampb.ListGroupsForUserRequest{UserName: &want.Name, Marker: marker})
		for _, g := range res.GetGroups() {
			groups = append(groups, g.GetGroupName())
		}
		return optional(res.GetMarker()), err
	})
	if err != nil {
		return err
	}
	for _, name := range want.Groups {
		it := Item{Kind: "membership", Name: want.Name + " in " + name, State: Unchanged}
		if !slices.Contains(groups, name) {
			if _, err := ask(m, doing, m.c.IAM().AddUserToGroup, &iampb.AddUserToGroupRequest{UserName: &want.Name, GroupName: &name}); err != nil {
				return err
			}
			it.State = Created
		}
		m.note(it)
	}
	return nil
}

func (m *maker) roles() error {
	for i := range m.file.Roles {
		want := &m.file.Roles[i]
		it := Item{Kind: "role", Name: want.Name, State: Unchanged}
		doing := "making role " + want.Name
		got, err := look(m, doing, m.c.IAM().GetRole, &iampb.GetRoleRequest{RoleName: &want.Name})
		if err != nil {
			return err
		}
		if got == nil {
			trust := string(want.Trust)
			req := &iampb.CreateRoleRequest{
				RoleName: &want.Name, Path: &want.Path, AssumeRolePolicyDocument: &trust, Description: want.Description, MaxSessionDuration: want.maxSession(), Tags: tagsOf(want.Tags),
			}
			if _, err := ask(m, doing, m.c.IAM().CreateRole, req); err != nil {
				return err
			}
			it.State = Created
		} else {
			r := got.GetRole()
			it.compare("path", r.GetPath(), want.Path)
			it.compareDocument("trust", r.GetAssumeRolePolicyDocument(), want.Trust)
			it.compareText("description", r.GetDescription(), want.Description)
			if want.MaxSession != 0 {
				it.compare("max_session", r.GetMaxSessionDuration(), want.MaxSession)
			}
			it.compareTags(textTags(r.GetTags()), want.Tags)
		}
		m.note(it)
		if err := m.hold(roleCalls(m), &want.Holder); err != nil {
			return err
		}
	}
	return nil
}

func (m *maker) certificates() error {
	if len(m.file.Certificates) == 0 {
		return nil
	}
	res, err := ask(m, "listing certificate mappings", m.c.CertificateMappings().List, &kmspb.ListCertificateMappingsRequest{})
	if err != nil {
		return err
	}
	for _, want := range m.file.Certificates {
		it := Item{Kind: "certificate", Name: want.URI, State: Unchanged}
		arn := m.file.principalARN(want.Principal)
		if i := slices.IndexFunc(res.GetMappings(), func(x *kmspb.CertificateMapping) bool { return x.GetPattern() == want.URI }); i >= 0 {
			it.compare("principal", res.GetMappings()[i].GetPrincipal(), arn)
		} else {
			if _, err := ask(m, "mapping certificates "+want.URI, m.c.CertificateMappings().Create, &kmspb.CreateCertificateMappingRequest{Pattern: want.URI, Principal: arn}); err != nil {
				return err
			}
			it.State = Created
		}
		m.note(it)
	}
	return nil
}

// pages gets the pages of a list.
func pages(get func(marker *string) (next *string, err error)) error {
	var marker *string
	for range maxPages {
		next, err := get(marker)
		if err != nil || next == nil || *next == "" {
			return err
		}
		marker = next
	}
	return errors.New("the server's list has no end")
}

func tagsOf(tags map[string]string) (list []*iampb.Tag) {
	for _, k := range sortedKeys(tags) {
		list = append(list, &iampb.Tag{Key: &k, Value: new(tags[k])})
	}
	return list
}

func textTags(tags []*iampb.Tag) map[string]string {
	m := make(map[string]string)
	for _, t := range tags {
		m[t.GetKey()] = t.GetValue()
	}
	return m
}

// compareText compares a text that the file may leave out.
func (it *Item) compareText(what, is string, want *string) {
	if want != nil && is != *want {
		it.differ("%s is %q, and the file says %q", what, is, *want)
	}
}

// compareTags compares tags, which the file may leave out.
func (it *Item) compareTags(is, want map[string]string) {
	for _, k := range sortedKeys(want) {
		if v, ok := is[k]; !ok || v != want[k] {
			it.differ("tag %s is %q, and the file says %q", k, v, want[k])
		}
	}
	for _, k := range sortedKeys(is) {
		if _, ok := want[k]; want != nil && !ok {
			it.differ("tag %s is not in the file", k)
		}
	}
}

// compareDocument compares policies by what they say, whatever their white space and the order
// of their members.
func (it *Item) compareDocument(what, is string, want Document) {
	if !sameJSON([]byte(is), []byte(want)) {
		it.differ("%s is not that of the file", what)
	}
}

func sameJSON(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, okX := anyJSON(a)
	y, okY := anyJSON(b)
	return okX && okY && reflect.DeepEqual(x, y)
}

// anyJSON decodes a document, with numbers as they are written.
func anyJSON(doc []byte) (v any, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	err := dec.Decode(&v)
	return v, err == nil
}

// shortPolicy returns the name of a policy for people.
func shortPolicy(name string) string { return name[strings.LastIndex(name, "/")+1:] }
