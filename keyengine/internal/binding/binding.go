// Package binding says who is meant by the names in policies and grants: the user or role
// that had the name when the policy or grant was stored. Both are stored with unique ids,
// which are never used again. So who is deleted and made again under the same name has
// nothing of what the first one had, and who is renamed keeps it; and what a policy or a
// grant shows is what its principals are called now, or their unique ids if they no longer
// exist.
package binding

import (
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/policy"
)

// Note is called with each object that an answer depends on, whether it exists or not. It may
// be nil for answers that are no part of a decision.
type Note func(kind fsmpb.Kind, id []byte, v fsm.Version)

func (n Note) note(kind fsmpb.Kind, id []byte, v fsm.Version) {
	if n != nil {
		n(kind, id, v)
	}
}

// object returns an object of a state, or nil.
func object[M interface {
	comparable
	proto.Message
}](s *fsm.State, id []byte, note Note) M {
	m, v := fsm.Object[M](s, id)
	note.note(fsm.KindOf[M](), id, v)
	return m
}

func partitionOf(s *fsm.State) string {
	c, _ := s.Cluster()
	return c.GetPartition()
}

// Find reports whether a principal that a policy or a grant names exists, and returns its
// unique id, as policy.Principal.UniqueID does, if it is of a kind that has one. Of a session
// of a role, only the role has to exist. A principal that is named by its unique id is not
// found: see Deleted.
func Find(s *fsm.State, p policy.Principal, note Note) (id string, ok bool) {
	partition := partitionOf(s)
	if p.Partition != "" && p.Partition != partition {
		return "", false
	}
	account, ok := fsm.ParseAccount(p.Account)
	if !ok {
		return "", p.Kind == policy.KindService
	}
	switch p.Kind {
	case policy.KindRoot:
		return "", account == fsm.AccountOf(s) || object[*fsmpb.Account](s, fsm.AccountID(account), note) != nil
	case policy.KindUser:
		if u := object[*fsmpb.User](s, fsm.EntityID(account, p.Name), note); u != nil && iam.UserARN(partition, u) == p.ARN {
			p.ID = u.Id
		}
	case policy.KindRole:
		if r := object[*fsmpb.Role](s, fsm.EntityID(account, p.Name), note); r != nil && iam.RoleARN(partition, r) == p.ARN {
			p.ID = r.Id
		}
	case policy.KindAssumedRole:
		// Roles are found whatever the case of their names.
		if r := object[*fsmpb.Role](s, fsm.EntityID(account, p.Name), note); r != nil && r.Name == p.Name {
			p.ID = r.Id
		}
	case policy.KindFederated:
		if _, ok := iam.MappingPattern(p.ARN); ok {
			// A mapping to a role comes after the role whose trust policy names it. Only the
			// account that administers the cluster can make it.
			return "", account == fsm.AccountOf(s)
		}
		return "", object[*fsmpb.OidcProvider](s, fsm.OidcProviderID(account, iam.ProviderURL(p.ARN)), note) != nil
	}
	return p.UniqueID(), p.ID != ""
}

// Name returns what a user, a role or a session of a role of an account is called, given its
// unique id as Find returns it: its ARN while it exists, and then the unique id. Everything
// else is called what it is.
func Name(s *fsm.State, account fsm.Account, who string, note Note) string {
	p, err := policy.ParseUniqueID(who)
	if err != nil {
		return who
	}
	partition := partitionOf(s)
	// There is nothing to note for one that does not exist: the state in which it was named
	// had it, and no later one has it again.
	if p.Kind == policy.KindUser {
		u := fsm.UserByID(s, account, p.ID)
		if u == nil {
			return who
		}
		note.note(fsmpb.Kind_KIND_USER, fsm.EntityID(account, u.Name), u.Version)
		return iam.UserARN(partition, u)
	}
	r := fsm.RoleByID(s, account, p.ID)
	if r == nil {
		return who
	}
	note.note(fsmpb.Kind_KIND_ROLE, fsm.EntityID(account, r.Name), r.Version)
	if p.Kind == policy.KindAssumedRole {
		return iam.SessionARN(partition, r, p.SessionName())
	}
	return iam.RoleARN(partition, r)
}

// current returns the unique id that a binding has for its name, and what that is called now.
func current(s *fsm.State, b *fsmpb.Binding, note Note) (id, name string) {
	p, err := policy.ParsePrincipal(b.Name)
	account, ok := fsm.ParseAccount(p.Account)
	if err != nil || !ok {
		return b.Name, b.Name // the unique id of who had been deleted already
	}
	p.ID = b.Id
	id = p.UniqueID()
	return id, Name(s, account, id, note)
}

// Document returns a policy as it is shown: with what those that it names are called now.
func Document(s *fsm.State, text string, bindings []*fsmpb.Binding, note Note) string {
	var names map[string]string
	for _, b := range bindings {
		if _, name := current(s, b, note); name != b.Name {
			if names == nil {
				names = make(map[string]string)
			}
			names[b.Name] = name
		}
	}
	if names == nil {
		return text
	}
	return policy.RenamePrincipals(text, names)
}

// Deleted reports whether a unique id is that of a principal which a policy names, and which
// no longer exists. A policy that shows such an id can be stored again as it is shown.
func Deleted(s *fsm.State, id string, bindings []*fsmpb.Binding, note Note) bool {
	for _, b := range bindings {
		if was, name := current(s, b, note); was == id {
			return name == id
		}
	}
	return false
}
