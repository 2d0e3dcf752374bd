package clusterfile

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

const (
	defaultPartition = "aws"
	defaultPath      = "/"
	defaultSpec      = "SYMMETRIC_DEFAULT"
	maxShares        = 16
)

var accountID = regexp.MustCompile(`^[0-9]{12}$`)

// faults collects what is wrong with a file.
type faults struct {
	list []string
	at   string // the object that is being checked
	seen map[string]bool
}

func (f *faults) add(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if f.at != "" {
		text = f.at + ": " + text
	}
	f.list = append(f.list, text)
}

// object begins an object of a list, whose names must differ, and not only in case.
func (f *faults) object(list string, i int, name string) {
	f.named(list, i, name, strings.ToLower(name))
}

// named is object for a list whose ids must differ.
func (f *faults) named(list string, i int, name, id string) {
	f.at = fmt.Sprintf("%s[%d] %q", list, i, name)
	if id = list + "\x00" + id; f.seen[id] {
		f.add("another one has this name")
	} else {
		f.seen[id] = true
	}
}

// valid checks an input by the rules of the server.
func valid[In any](f *faults, in *In) {
	if err := kmsapi.InputSchema[In]().Validate(in); err != nil {
		f.add("%v", err)
	}
}

func (f *faults) document(what string, kind policy.Kind, d Document) {
	if _, err := policy.Parse(kind, []byte(d)); err != nil {
		f.add("%s: %v", what, err)
	}
}

// optional returns nil for "".
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// check sets what is left out and returns everything that is wrong. dir is that of the file.
func (f *File) check(dir string) []string {
	bad := &faults{seen: make(map[string]bool)}
	f.checkCluster(bad, dir)
	for i := range f.Accounts {
		a := &f.Accounts[i]
		bad.object("accounts", i, a.ID)
		if !accountID.MatchString(a.ID) || a.ID == f.Account {
			bad.add("the id must have 12 digits, and differ from that of the first account")
		}
		if a.Name == "" {
			bad.add("it has no name")
		}
	}
	for i := range f.Policies {
		p := &f.Policies[i]
		bad.object("policies", i, p.Name)
		setPath(&p.Path)
		valid(bad, &iamapi.CreatePolicyInput{PolicyName: &p.Name, Path: &p.Path, PolicyDocument: optional(string(p.Document)), Description: p.Description, Tags: iamTags(p.Tags)})
		bad.document("document", policy.IdentityPolicy, p.Document)
	}
	for i := range f.Groups {
		g := &f.Groups[i]
		bad.object("groups", i, g.Name)
		setPath(&g.Path)
		valid(bad, &iamapi.CreateGroupInput{GroupName: &g.Name, Path: &g.Path})
		f.checkHolder(bad, &g.Holder)
	}
	for i := range f.Users {
		u := &f.Users[i]
		bad.object("users", i, u.Name)
		setPath(&u.Path)
		valid(bad, &iamapi.CreateUserInput{UserName: &u.Name, Path: &u.Path, Tags: iamTags(u.Tags)})
		f.checkHolder(bad, &u.Holder)
		for _, name := range u.Groups {
			if !slices.ContainsFunc(f.Groups, func(g Group) bool { return g.Name == name }) {
				bad.add("it is in the group %q, which is not in the file", name)
			}
		}
	}
	for i := range f.Roles {
		r := &f.Roles[i]
		bad.object("roles", i, r.Name)
		setPath(&r.Path)
		valid(bad, &iamapi.CreateRoleInput{
			RoleName: &r.Name, Path: &r.Path, AssumeRolePolicyDocument: optional(string(r.Trust)), Description: r.Description, MaxSessionDuration: r.maxSession(), Tags: iamTags(r.Tags),
		})
		bad.document("trust", policy.TrustPolicy, r.Trust)
		f.checkHolder(bad, &r.Holder)
	}
	for i := range f.Certificates {
		c := &f.Certificates[i]
		bad.object("certificates", i, c.URI)
		arn := f.principalARN(c.Principal)
		if p, err := policy.ParsePrincipal(arn); err != nil || p.Kind != policy.KindUser && p.Kind != policy.KindRole {
			bad.add("the principal %q is neither user/NAME nor role/NAME, nor the ARN of a user or a role", c.Principal)
		}
	}
	for i := range f.Keys {
		f.checkKey(bad, i)
	}
	return bad.list
}

func setPath(path *string) {
	if *path == "" {
		*path = defaultPath
	}
}

func (r *Role) maxSession() *int32 {
	if r.MaxSession == 0 {
		return nil
	}
	return &r.MaxSession
}

func iamTags(tags map[string]string) (list []iamapi.Tag) {
	for _, k := range sortedKeys(tags) {
		v := tags[k]
		list = append(list, iamapi.Tag{Key: &k, Value: &v})
	}
	return list
}

func (f *File) checkCluster(bad *faults, dir string) {
	if !accountID.MatchString(f.Account) {
		bad.add("account must be given, with 12 digits; in quotation marks if it begins with 0")
	}
	if len(f.Regions) == 0 {
		bad.add("regions must be given, the default one first")
	}
	for i, r := range f.Regions {
		if slices.Contains(f.Regions[:i], r) {
			bad.add("regions has %q twice", r)
		}
		if len(f.Regions) > 1 && !kmsapi.PatternOf("region").Match(r) {
			bad.add("regions: one of several must have a name like eu-west-1, unlike %q", r)
		}
	}
	if f.Partition == "" {
		f.Partition = defaultPartition
	}
	if _, err := policy.ParsePrincipal("arn:" + f.Partition + ":iam::000000000000:root"); err != nil {
		bad.add("partition must be aws or begin with aws-")
	}
	shares := f.Shares
	if len(f.Custodians) > 0 {
		if f.Shares != 0 && f.Shares != len(f.Custodians) {
			bad.add("shares is the number of custodians: leave it out")
		}
		shares = len(f.Custodians)
	}
	switch {
	case shares < 1 || shares > maxShares:
		bad.add("there must be 1 to %d custodians, or shares", maxShares)
	case f.Threshold < 1 || f.Threshold > shares:
		bad.add("threshold must be 1 to the number of custodians")
	case f.Threshold == 1 && shares > 1:
		bad.add("a threshold of 1 with several custodians gives each of them the whole key")
	}
	f.checkCustodians(bad, dir)
}

func (f *File) checkCustodians(bad *faults, dir string) {
	var all []custodian.Custodian
	for i := range f.Custodians {
		c := &f.Custodians[i]
		bad.object("custodians", i, c.Name)
		c.raw = []byte(c.Key)
		switch {
		case (c.Key == "") == (c.KeyFile == ""):
			bad.add("it needs a key or a key_file")
			continue
		case c.KeyFile != "":
			name := c.KeyFile
			if !filepath.IsAbs(name) {
				name = filepath.Join(dir, name)
			}
			var err error
			if c.raw, err = files.Read(name, custodian.MaxKey); err != nil {
				bad.add("%v", err)
				continue
			}
		}
		var err error
		if c.parsed, err = custodian.Parse(c.raw, time.Now()); err != nil {
			bad.add("%v", err)
			continue
		}
		all = append(all, custodian.Custodian{Name: c.Name, Key: c.parsed})
	}
	bad.at = ""
	if err := custodian.Check(all); err != nil {
		bad.add("custodians: %v", err)
	}
}

func (f *File) checkHolder(bad *faults, h *Holder) {
	for _, name := range h.Policies {
		if f.policyARN(name) == "" {
			bad.add("it has the policy %q, which is neither in the file, nor an ARN, nor one of AWS's", name)
		}
	}
	for _, name := range sortedKeys(h.Inline) {
		valid(bad, &iamapi.PutUserPolicyInput{UserName: &h.Name, PolicyName: &name, PolicyDocument: optional(string(h.Inline[name]))})
		bad.document("inline policy "+name, policy.IdentityPolicy, h.Inline[name])
	}
}

func (f *File) checkKey(bad *faults, i int) {
	k := &f.Keys[i]
	if len(k.Aliases) == 0 {
		bad.at = fmt.Sprintf("keys[%d]", i)
		bad.add("it has no aliases: the first one says which key it is")
		return
	}
	if k.Region == "" && len(f.Regions) > 0 {
		k.Region = f.Regions[0]
	}
	for j, name := range k.Aliases {
		if !strings.HasPrefix(name, "alias/") {
			name = "alias/" + name
			k.Aliases[j] = name
		}
		bad.named("keys in "+k.Region, i, name, name)
		valid(bad, &kmsapi.CreateAliasInput{AliasName: &name, TargetKeyId: new("00000000-0000-0000-0000-000000000000")})
	}
	bad.at = fmt.Sprintf("keys[%d] %q", i, k.Aliases[0])
	if !slices.Contains(f.Regions, k.Region) {
		bad.add("the cluster has no region %q", k.Region)
	}
	if k.Spec == "" {
		k.Spec = defaultSpec
	}
	in := &kmsapi.CreateKeyInput{KeySpec: &k.Spec, KeyUsage: optional(k.Usage), Description: k.Description, Policy: optional(string(k.Policy)), MultiRegion: k.MultiRegion}
	for _, key := range sortedKeys(k.Tags) {
		v := k.Tags[key]
		in.Tags = append(in.Tags, kmsapi.Tag{TagKey: &key, TagValue: &v})
	}
	valid(bad, in)
	if k.Policy != "" {
		bad.document("policy", policy.KeyPolicy, k.Policy)
	}
}

// policyARN returns the ARN of a managed policy; "" if it is not known.
func (f *File) policyARN(name string) string {
	if strings.HasPrefix(name, "arn:") {
		return name
	}
	for _, p := range f.Policies {
		if p.Name == name {
			return f.arn("policy", p.Path, name)
		}
	}
	if arn := "arn:" + f.Partition + ":iam::aws:policy/" + name; isManaged(arn) {
		return arn
	}
	return ""
}

func isManaged(arn string) bool {
	_, ok := policy.AWSManaged(arn)
	return ok
}

// arn returns the ARN of an object of IAM in the first account.
func (f *File) arn(kind, path, name string) string {
	return "arn:" + f.Partition + ":iam::" + f.Account + ":" + kind + path + name
}

// principalARN returns the ARN of a user or a role, with the path that it has in the file.
func (f *File) principalARN(principal string) string {
	kind, name, _ := strings.Cut(principal, "/")
	switch kind {
	case "user":
		for _, u := range f.Users {
			if u.Name == name {
				return f.arn(kind, u.Path, name)
			}
		}
		return f.arn(kind, defaultPath, name)
	case "role":
		for _, r := range f.Roles {
			if r.Name == name {
				return f.arn(kind, r.Path, name)
			}
		}
		return f.arn(kind, defaultPath, name)
	}
	return principal
}
