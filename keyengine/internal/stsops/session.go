package stsops

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/accesskey"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

const (
	// maxPolicies is the number of managed policies that can be passed for a session.
	maxPolicies = 10
	// maxPolicy is the length of the policies that can be passed for a session, the inline
	// one and the ARNs of the managed ones, in characters.
	maxPolicy = 2048
	// maxPacked is how much of a session token policies and tags may take, in bytes. The
	// token must fit into the headers of requests, whatever the rest of it is.
	maxPacked = 4096
	// maxTags is the number of session tags, those that are inherited included.
	maxTags = 50
)

// passed are the restrictions and tags that a request passes for a new session.
type passed struct {
	policy     *string
	policyARNs []iamapi.PolicyDescriptorType
	tags       []iamapi.Tag
	transitive []string
}

// restrict sets the session policies of a session of a principal of an account. They can
// only take permissions away.
func (p *passed) restrict(ev *request.Evaluation, account fsm.Account, s *iampb.Session) error {
	length := 0
	if p.policy != nil {
		if _, err := policy.Parse(policy.SessionPolicy, []byte(*p.policy)); err != nil {
			return request.MalformedDocument(err)
		}
		s.Policy, length = *p.policy, utf8.RuneCountInString(*p.policy)
	}
	if len(p.policyARNs) > maxPolicies {
		return kmsapi.Errorf(kmsapi.ErrValidation, "1 validation error detected: Value at 'policyArns' failed to satisfy constraint: "+
			"Member must have length less than or equal to %d", maxPolicies)
	}
	for _, d := range p.policyARNs {
		if d.Arn == nil {
			return kmsapi.Errorf(kmsapi.ErrValidation, "1 validation error detected: Value null at 'policyArns' failed to satisfy constraint: Member must not be null")
		}
		arn := *d.Arn
		if _, ok := policy.AWSManaged(arn); !ok {
			m := request.ManagedPolicy(ev, arn)
			if m == nil || fsm.Account(m.Account) != account {
				return kmsapi.Errorf(kmsapi.ErrValidation, "The managed policy %s does not exist in the account of the session.", arn)
			}
		}
		if !slices.Contains(s.Policies, arn) {
			s.Policies, length = append(s.Policies, arn), length+len(arn)
		}
	}
	if length > maxPolicy {
		return kmsapi.Errorf(iamapi.ErrPackedPolicyTooLarge, "The session policies have %d characters, and at most %d are allowed.", length, maxPolicy)
	}
	return nil
}

// tag sets the tags of a session: those that are passed, and the transitive tags of the
// session that it is opened with, nil if none, which stay transitive.
func (p *passed) tag(from, s *iampb.Session) error {
	byKey := make(map[string]*iampb.Tag)
	transitive := make(map[string]bool)
	for _, t := range from.GetTags() {
		if slices.Contains(from.Transitive, t.Key) {
			key := fsm.EntityName(t.Key)
			byKey[key], transitive[key] = t, true
		}
	}
	inherited := len(byKey)
	for _, t := range p.tags {
		if t.Key == nil || t.Value == nil {
			return kmsapi.Errorf(kmsapi.ErrValidation, "1 validation error detected: Value null at 'tags' failed to satisfy constraint: Member must not be null")
		}
		key := fsm.EntityName(*t.Key)
		switch {
		case strings.HasPrefix(key, "aws:"):
			return kmsapi.Errorf(kmsapi.ErrValidation, "Tag keys that begin with 'aws:' are reserved for system use.")
		case transitive[key]:
			return kmsapi.Errorf(kmsapi.ErrValidation, "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.")
		case byKey[key] != nil:
			return kmsapi.Errorf(kmsapi.ErrValidation, "Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		byKey[key] = &iampb.Tag{Key: *t.Key, Value: *t.Value}
	}
	for _, k := range p.transitive {
		key := fsm.EntityName(k)
		if byKey[key] == nil {
			return kmsapi.Errorf(kmsapi.ErrValidation, "The specified transitive tag key must be included in the requested tags.")
		}
		transitive[key] = true
	}
	if len(byKey) > maxTags {
		return kmsapi.Errorf(kmsapi.ErrValidation, "The session has %d tags, %d of them inherited, and at most %d are allowed.", len(byKey), inherited, maxTags)
	}
	for key, t := range byKey {
		s.Tags = append(s.Tags, t)
		if transitive[key] {
			s.Transitive = append(s.Transitive, t.Key)
		}
	}
	slices.SortFunc(s.Tags, func(a, b *iampb.Tag) int { return strings.Compare(a.Key, b.Key) })
	slices.Sort(s.Transitive)
	return nil
}

// packed returns how much of the space for policies and tags a session takes, in percent.
func packed(s *iampb.Session) (*int32, error) {
	n := proto.Size(&iampb.Session{Policy: s.Policy, Policies: s.Policies, Tags: s.Tags, Transitive: s.Transitive})
	percent := (n*100 + maxPacked - 1) / maxPacked
	if percent > 100 {
		return nil, kmsapi.Errorf(iamapi.ErrPackedPolicyTooLarge, "Packed size of session tags consumes %d%% of allotted space.", percent)
	}
	return new(int32(percent)), nil
}

// begin sets when a session begins and ends. It is of a role, or role is nil, and opened with
// an identity of a provider, or provider is nil.
//
// The beginning is compared to the time before which sessions are revoked, which comes from
// the clock of another node. So it is the cluster time of the evaluated state, which no
// session that is recorded before a revocation can be ahead of, whatever the clock of its
// node. A session that is recorded after a revocation has read it, and says so, since it may
// begin before the revocation's time and is not ended by it.
func begin(ev *request.Evaluation, s *iampb.Session, life time.Duration, role *fsmpb.Role, provider *fsmpb.OidcProvider) {
	s.Issued = ev.State.Time()
	// In whole seconds, as the answer has it.
	s.Expires = ev.Now().Add(life).Truncate(time.Second).UnixNano()
	switch {
	case role == nil:
	case ev.State.Level() < levelRevocable:
		// A release that does not know the fields takes the later time for the beginning, and
		// so a session outlives a revocation of its provider that a node whose clock is behind
		// makes within seconds of one of its role.
		s.Issued = max(s.Issued, role.RevokedBefore, role.Created, provider.GetRevokedBefore(), provider.GetCreated())
	default:
		s.RoleThen = &iampb.Revocable{Created: role.Created, RevokedBefore: role.RevokedBefore}
		if provider != nil {
			s.ProviderThen = &iampb.Revocable{Created: provider.Created, RevokedBefore: provider.RevokedBefore}
		}
	}
}

// levelRevocable is the feature level from which sessions name the revocations that they have
// read.
const levelRevocable = 2

// credentials makes the credentials of a session.
func credentials(ev *request.Evaluation, s *iampb.Session) (*iamapi.Credentials, error) {
	o, err := ev.Vault.Current()
	if err != nil {
		return nil, err
	}
	var noise [accesskey.Noise]byte
	_, _ = rand.Read(noise[:]) // never fails: crypto/rand ends the process instead
	s.AccessKey = accesskey.ID(accesskey.Session, fsm.Account(s.Account), noise)
	contents, err := proto.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("session of %s: %w", s.AccessKey, err)
	}
	token, err := o.SealTemporary(s.AccessKey, contents)
	if err != nil {
		return nil, err
	}
	c := &iamapi.Credentials{AccessKeyId: &s.AccessKey, SessionToken: &token, Expiration: new(time.Unix(0, s.Expires).UTC())}
	err = o.WithTemporarySecret(s.AccessKey, token, func(secret []byte) error {
		c.SecretAccessKey = new(string(secret))
		return nil
	})
	return c, err
}

// roleOf returns the role with an ARN, or nil if there is none, and adds what says so to the
// read set. It fails for what is not the ARN of a role.
func roleOf(ev *request.Evaluation, arn string) (*fsmpb.Role, error) {
	p, err := policy.ParsePrincipal(arn)
	if err != nil || p.Kind != policy.KindRole || p.ARN == "" {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "%s is invalid", arn)
	}
	account, ok := fsm.ParseAccount(p.Account)
	if !ok || !request.Exists(ev, p) {
		return nil, nil
	}
	return request.Read[*fsmpb.Role](ev, fsm.EntityID(account, p.Name)), nil
}

// recordCredentials returns what records have of the credentials in an answer: neither the
// secret nor the token.
func recordCredentials(c *iamapi.Credentials) *auditpb.Field {
	return auditfield.TextMap("credentials", map[string]string{
		"accessKeyId": *c.AccessKeyId, "expiration": c.Expiration.Format(time.RFC3339),
	})
}
