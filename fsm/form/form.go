// Package form has rules that a message keeps or breaks by itself, or compared with the one
// that it replaces. They are part of the rules of package fsm, which has those that depend on
// the state, and which applies both.
//
// The messages come from a node that may have a bug or may have been taken over. A function
// whose result is called broken returns the rule that a message breaks, as a sentence for
// people, or "".
package form

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Limits are the bounds of an object of IAM.
type Limits struct {
	Policy int // of a policy's document, in bytes, as in package policy
	Object int // of the whole message, in bytes
	List   int // of each list in it
}

const (
	// MaxName is the longest name of a user, group, role or policy in IAM, in bytes.
	MaxName = 128
	// MaxURL is the longest URL of an identity provider in IAM, in bytes.
	MaxURL = 255

	maxPath      = 512
	maxPrincipal = maxPath + 2*MaxName // of the ARN of a principal, or of a session
	minUniqueID  = 16
	maxUniqueID  = 128
	maxAccount   = 255 // of what operators call an account
	maxAlias     = 63
	lettersLower = "abcdefghijklmnopqrstuvwxyz"
	lettersUpper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits       = "0123456789"
)

// only reports whether a text consists of some characters.
func only(s, chars string) bool { return strings.Trim(s, chars) == "" }

// IsName reports whether a text consists of the characters that IAM accepts in names. None
// of them has a meaning in an id or in an ARN.
func IsName(s string) bool { return only(s, lettersLower+lettersUpper+digits+"_+=,.@-") }

// AppendLower appends a text with the letters A to Z in lower case.
func AppendLower(b []byte, s string) []byte {
	b = slices.Grow(b, len(s))
	for _, c := range []byte(s) {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

// IsVisible reports whether a text consists of the characters that IAM accepts in paths,
// which are those of ASCII but spaces and most control characters.
func IsVisible(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < '!' || r > '\x7f' }) < 0
}

// IsPolicy reports whether a document is a JSON object of at most that many bytes.
func IsPolicy(doc string, most int) bool {
	return len(doc) <= most && json.Valid([]byte(doc)) && strings.TrimLeft(doc, " \t\r\n")[0] == '{'
}

// CutPolicyARN returns the account in the ARN of a managed policy, which is "aws" for one
// of AWS's own, and the policy's path and name without the first slash. The name is what
// follows the last slash, as no valid name has one.
func CutPolicyARN(arn string) (account, path, name string, ok bool) {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[2] != "iam" || parts[3] != "" {
		return "", "", "", false
	}
	path, ok = strings.CutPrefix(parts[5], "policy/")
	return parts[4], path, path[strings.LastIndexByte(path, '/')+1:], ok && len(path) < maxPath+MaxName && IsVisible(path)
}

// Entity is a user, group, role or policy.
type Entity interface {
	proto.Message
	GetPath() string
	GetId() string
}

// CheckEntity checks what all entities have. The unique ids of the kind begin with prefix.
func CheckEntity(m Entity, prefix string, most Limits) (broken string) {
	id, path := m.GetId(), m.GetPath()
	switch {
	case proto.Size(m) > most.Object:
		return fmt.Sprintf("an entity has more than %d bytes", most.Object)
	case !isUniqueID(id, prefix):
		return "an entity has no unique id of its kind"
	case path == "" || len(path) > maxPath || path[0] != '/' || path[len(path)-1] != '/' || !IsVisible(path):
		return "an entity has no valid path"
	}
	return ""
}

// isUniqueID reports whether a text can be the unique id of an entity.
func isUniqueID(id, prefix string) bool {
	return len(id) >= minUniqueID && len(id) <= maxUniqueID && strings.HasPrefix(id, prefix) && only(id, lettersUpper+digits)
}

// ascending reports whether a list has at most that many items, in ascending order of
// their keys, and each once.
func ascending[T any, K cmp.Ordered](most int, list []T, key func(T) K) bool {
	for i := 1; i < len(list); i++ {
		if key(list[i-1]) >= key(list[i]) {
			return false
		}
	}
	return len(list) <= most
}

func itself[T any](t T) T { return t }

// CheckAttached checks what a user, group or role has of policies and tags.
func CheckAttached(arns []string, inline []*fsmpb.InlinePolicy, tags []*fsmpb.Tag, most Limits) (broken string) {
	if !ascending(most.List, arns, itself) || !ascending(most.List, inline, (*fsmpb.InlinePolicy).GetName) || !ascending(most.List, tags, (*fsmpb.Tag).GetKey) {
		return "the policies or tags of an entity are not in order, or too many"
	}
	for _, p := range inline {
		if p.Name == "" || len(p.Name) > MaxName || !IsName(p.Name) || !IsPolicy(p.Document, most.Policy) {
			return "an inline policy has no valid name or document"
		}
	}
	return ""
}

// CheckUser checks what only users have.
func CheckUser(n *fsmpb.User, most Limits) (broken string) {
	if !ascending(most.List, n.Groups, itself) || !ascending(most.List, slices.Sorted(slices.Values(n.AccessKeys)), itself) {
		return "the groups or access keys of a user are not in order, or too many"
	}
	return ""
}

// CheckRole checks what only roles have. Sessions that were ended stay ended.
func CheckRole(was, n *fsmpb.Role, most Limits) (broken string) {
	switch {
	case n.RevokedBefore < was.GetRevokedBefore():
		return "it restores sessions that were revoked"
	case !IsPolicy(n.Trust, most.Policy):
		return fmt.Sprintf("a trust policy is not a JSON object of at most %d bytes", most.Policy)
	}
	return CheckBindings(n.TrustBindings, most)
}

// CheckBindings checks who is meant by the names in a policy. Whether they are all of its
// names is not checked: a policy with a name that has no binding is refused when it is used.
func CheckBindings(list []*fsmpb.Binding, most Limits) (broken string) {
	if !ascending(most.List, list, (*fsmpb.Binding).GetName) {
		return "the bindings of a policy are not in order, or too many"
	}
	for _, b := range list {
		if b.Name == "" || len(b.Name) > maxPrincipal || !isUniqueID(b.Id, "A") {
			return "a binding of a policy has no valid name or unique id"
		}
	}
	return ""
}

// CheckPolicy checks a managed policy. No number of a version is ever used again. The ARN
// never changes, as entities name the policy by it.
func CheckPolicy(was, n *fsmpb.Policy, most Limits) (broken string) {
	if !ascending(most.List, n.Versions, itself) || !ascending(most.List, n.Tags, (*fsmpb.Tag).GetKey) {
		return "the versions or tags of a managed policy are not in order, or too many"
	}
	if !slices.Contains(n.Versions, n.DefaultVersion) {
		return "the default version of a managed policy does not exist"
	}
	newest, follow := was.GetNewest(), true
	for _, v := range n.Versions {
		if !slices.Contains(was.GetVersions(), v) {
			newest++
			follow = follow && v == newest
		}
	}
	if !follow || n.Newest != newest {
		return "the new versions of a managed policy have not the next numbers"
	}
	if was != nil && (was.Name != n.Name || was.Path != n.Path) {
		return "it changes the name or path of a managed policy"
	}
	return ""
}

// CheckAccount checks an account. Its alias is not the number of an account, so that
// nothing takes it for another one.
func CheckAccount(was, n *fsmpb.Account) (broken string) {
	switch {
	case n.Created <= 0:
		return "an account has no creation date"
	case len(n.Name) > maxAccount || len(n.Alias) > maxAlias || !only(n.Alias, lettersLower+digits+"-") ||
		len(n.Alias) == 12 && only(n.Alias, digits):
		return "an account has no valid name or alias"
	case was != nil && was.Created != n.Created:
		return "it changes the creation date of an account"
	}
	return ""
}

// CheckProvider checks an identity provider. Sessions that were ended stay ended.
func CheckProvider(was, n *fsmpb.OidcProvider, most Limits) (broken string) {
	switch {
	case proto.Size(n) > most.Object || len(n.ClientIds) > most.List || len(n.Thumbprints) > most.List || len(n.Tags) > most.List:
		return "an identity provider is too large"
	case was != nil && was.Created != n.Created:
		return "it changes the creation date of an identity provider"
	case n.RevokedBefore < was.GetRevokedBefore():
		return "it restores sessions that were revoked"
	}
	return ""
}
