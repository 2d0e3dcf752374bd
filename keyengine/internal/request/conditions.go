package request

import (
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/policy"
)

// Conditions gives the values of condition keys to the evaluation of policies. What it reads
// from the state is added to the read set, so that a decision depends on a tag, for example,
// only if a condition asked for it.
type Conditions struct {
	ev *Evaluation
	// action is what the caller wants to do, and resource the ARN of what with.
	action, resource string
	// target is the key that the request is about, or nil.
	target *Target
	// encryption is the encryption context of the request, or of the grant's constraint.
	encryption map[string]string
	// grant is the grant that the request creates or retires, or nil.
	grant *fsmpb.Grant
	// New is the key that the request is to create, or nil. It has the tags of the request.
	New *fsmpb.Key
	// Tags are the tags of the resource if it is not a key.
	Tags []*fsmpb.Tag
	// More has further values, by key in lower case, which come first.
	More map[string][]string
}

// Values implements policy.Context.
func (c *Conditions) Values(key string) []string {
	if v, ok := c.More[key]; ok {
		return v
	}
	if key == "conclave:certificateuri" {
		return one(c.ev.who.CertificateURI)
	}
	if name, ok := strings.CutPrefix(key, "kms:"); ok {
		return c.kmsValues(name)
	}
	if tag, ok := strings.CutPrefix(key, "iam:resourcetag/"); ok {
		return tagValue(c.Tags, tag)
	}
	name, ok := strings.CutPrefix(key, "aws:")
	if !ok {
		return webValues(c.ev.Who().Session, key)
	}
	if v := CallerValues(c.ev.Who(), name); v != nil {
		return v
	}
	return c.requestValues(name)
}

// CallerValues returns the values of the global condition keys that describe a caller; name is
// without "aws:" and in lower case.
func CallerValues(who *iam.Entity, name string) []string {
	switch name {
	case "principalarn":
		if who.Principal.Role != "" {
			return one(who.Principal.Role)
		}
		return one(who.Principal.ARN)
	case "principalaccount":
		return one(who.Principal.Account)
	case "principaltype":
		return one(who.Kind.String())
	case "principalisawsservice":
		return flag(who.Kind == policy.KindService)
	case "principalservicename":
		if who.Kind == policy.KindService {
			return one(who.Name)
		}
		return nil
	case "userid":
		return one(who.ID)
	case "username":
		if who.User != nil {
			return one(who.User.Name)
		}
		return nil
	case "sourceidentity":
		return one(who.Session.GetSourceIdentity())
	case "federatedprovider":
		return one(who.Session.GetProvider())
	case "tokenissuetime":
		if who.Session.GetIssued() != 0 { // which sessions of certificates have none of
			return one(time.Unix(0, who.Session.Issued).UTC().Format(time.RFC3339))
		}
		return nil
	case "multifactorauthpresent":
		// As in AWS, requests with long-term credentials do not have the key.
		if who.Session != nil {
			return flag(false)
		}
		return nil
	}
	if tag, ok := strings.CutPrefix(name, "principaltag/"); ok {
		for _, t := range who.Session.GetTags() {
			if sameTag(t.Key, tag) {
				return []string{t.Value}
			}
		}
		if who.User != nil {
			return tagValue(who.User.Tags, tag)
		}
		return tagValue(who.Role.GetTags(), tag)
	}
	return nil
}

// requestValues returns the values of the global condition keys that describe the request
// and its resource.
func (c *Conditions) requestValues(name string) []string {
	caller := c.ev.Caller
	switch name {
	case "sourceip":
		return one(caller.SourceIP)
	case "useragent":
		return one(caller.UserAgent)
	case "securetransport":
		return flag(caller.TLS.Version != "")
	case "requestedregion":
		return one(c.ev.Region())
	case "viaawsservice":
		return flag(false)
	case "sourcearn":
		return one(caller.SourceArn)
	case "sourceaccount":
		if a, err := policy.ParseARN(caller.SourceArn); err == nil {
			return one(a.Account)
		}
		return nil
	case "resourceaccount":
		if c.target != nil {
			return one(c.target.ID.Account.String())
		}
		if a, err := policy.ParseARN(c.resource); err == nil {
			return one(a.Account)
		}
		return one(AccountOf(c.ev).String())
	case "tagkeys":
		tags, ok := requestTags(c.ev.Input)
		if !ok {
			return nil
		}
		keys := make([]string, 0, len(tags))
		for _, t := range tags {
			keys = append(keys, t.Key)
		}
		return keys
	}
	if tag, ok := strings.CutPrefix(name, "requesttag/"); ok {
		tags, _ := requestTags(c.ev.Input)
		return tagValue(tags, tag)
	}
	if tag, ok := strings.CutPrefix(name, "resourcetag/"); ok {
		if c.target != nil {
			return tagValue(c.ev.KeyTags(c.target.ID).GetTags(), tag)
		}
		if c.New != nil {
			tags, _ := requestTags(c.ev.Input)
			return tagValue(tags, tag)
		}
		return tagValue(c.Tags, tag)
	}
	return nil
}

// Now implements policy.Context: it is cluster time, or this node's clock if that is later.
func (c *Conditions) Now() time.Time { return c.ev.Now() }

// Holds implements policy.Context: the record is accepted only in this range of cluster
// time.
func (c *Conditions) Holds(from, to time.Time) {
	var a, b int64
	if !from.IsZero() {
		a = from.UnixNano()
	}
	if !to.IsZero() {
		b = to.UnixNano()
	}
	c.ev.Within(a, b)
}

// webValues returns the values of the condition keys that a session keeps of the web identity
// that has opened it.
func webValues(s *iampb.Session, key string) []string {
	issuer := s.GetIssuer()
	if issuer == "" {
		return nil
	}
	switch name, ok := strings.CutPrefix(key, fsm.EntityName(issuer)+":"); {
	case ok && name == "sub":
		return one(s.Subject)
	case ok && name == "aud":
		return one(s.Audience)
	}
	return nil
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func flag(b bool) []string { return []string{strconv.FormatBool(b)} }

// sameTag compares a tag's key with that in a condition key, whose case does not count.
func sameTag(key, lower string) bool { return fsm.EntityName(key) == lower }

func tagValue(tags []*fsmpb.Tag, lower string) []string {
	for _, t := range tags {
		if sameTag(t.Key, lower) {
			return []string{t.Value}
		}
	}
	return nil
}
