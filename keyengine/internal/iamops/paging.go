package iamops

import (
	"iter"
	"strings"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// paging are the members MaxItems and Marker of the input of a list.
type paging struct {
	maxItems *int32
	marker   *string
}

// page returns the part of a list that a request asks for. Its marker is valid only for the
// same arguments.
func (l paging) page(ev *request.Evaluation, arguments ...string) (*request.Page, error) {
	return request.PageOf(ev, l.maxItems, 100, 1000, l.marker, arguments...)
}

// listing authorises a list of the entities of a kind whose paths begin with a prefix, and
// returns the part of it that a request asks for.
func (k *kind[M]) listing(ev *request.Evaluation, pathPrefix *string, l paging, arguments ...string) (*request.Page, error) {
	prefix := or(pathPrefix, "/")
	if err := ev.AuthoriseAccount(ev.Op.Action(), iam.EntityARN(partition(ev), account(ev), k.noun, prefix, "")); err != nil {
		return nil, err
	}
	return l.page(ev, append(arguments, prefix)...)
}

// from returns the entities of an account in the order of their names, beginning after a name
// as in [placeOf], whose paths begin with a prefix.
func from[M entity](s *fsm.State, a fsm.Account, after, pathPrefix string) iter.Seq[M] {
	return func(yield func(M) bool) {
		for m := range fsm.Objects[M](s, fsm.AccountID(a), after) {
			if strings.HasPrefix(m.GetPath(), pathPrefix) && !yield(m) {
				return
			}
		}
	}
}

// placeOf is the place of an entity in lists.
func placeOf[M entity](m M) string { return fsm.EntityName(m.GetName()) }
