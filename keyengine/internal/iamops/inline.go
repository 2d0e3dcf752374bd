package iamops

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Limits in bytes, with white space, which the quotas do not count.
const (
	// maxDocument is the longest policy document. An audit record has room for it.
	maxDocument = 32_768
	// maxInline is the length of the inline policies of an entity together. It keeps the
	// records that replace the entity small.
	maxInline = 4 * maxDocument
)

// parseDocument checks a policy document of at most quota characters, which is not counted in
// white space.
func parseDocument(k policy.Kind, text, name string, quota int) (*policy.Document, error) {
	if len(text) > maxDocument {
		return nil, kmsapi.Errorf(iamapi.ErrLimitExceeded, "A policy document has at most %d bytes, with white space.", maxDocument)
	}
	doc, err := policy.Parse(k, []byte(text))
	if err != nil {
		return nil, malformed(err)
	}
	if policy.Size([]byte(text)) > quota {
		return nil, quotaExceeded(name, quota)
	}
	return doc, nil
}

func searchInline(list []*fsmpb.InlinePolicy, name string) (int, bool) {
	return slices.BinarySearchFunc(list, name, func(p *fsmpb.InlinePolicy, name string) int { return strings.Compare(p.Name, name) })
}

// putInline adds an inline policy to an entity, or replaces it.
func (k *kind[M]) putInline(ev *request.Evaluation, name, policyName, document string) error {
	return k.change(ev, name, nil, func(m M) error {
		quota := k.inlineSize(&ev.Quotas)
		// The quota is for all inline policies together, which is checked below.
		if _, err := parseDocument(policy.IdentityPolicy, document, "PolicySize", maxDocument); err != nil {
			return err
		}
		list := k.parts(m).inline
		at, found := searchInline(*list, policyName)
		if !found {
			*list = slices.Insert(*list, at, &fsmpb.InlinePolicy{Name: policyName})
		}
		(*list)[at].Document = document
		size, bytes := 0, 0
		for _, p := range *list {
			size += policy.Size([]byte(p.Document))
			bytes += len(p.Name) + len(p.Document)
		}
		if size > quota || bytes > maxInline {
			return kmsapi.Errorf(iamapi.ErrLimitExceeded, "Maximum policy size of %d bytes exceeded for %s %s", quota, k.noun, name)
		}
		return nil
	})
}

// getInline returns an inline policy of an entity.
func (k *kind[M]) getInline(ev *request.Evaluation, name, policyName string) (document string, err error) {
	m, err := k.find(ev, name, nil)
	if err != nil {
		return "", err
	}
	list := *k.parts(m).inline
	at, found := searchInline(list, policyName)
	if !found {
		return "", k.noInline(policyName)
	}
	return list[at].Document, nil
}

// deleteInline deletes an inline policy of an entity.
func (k *kind[M]) deleteInline(ev *request.Evaluation, name, policyName string) error {
	return k.change(ev, name, nil, func(m M) error {
		list := k.parts(m).inline
		at, found := searchInline(*list, policyName)
		if !found {
			return k.noInline(policyName)
		}
		*list = slices.Delete(*list, at, at+1)
		return nil
	})
}

func (k *kind[M]) noInline(policyName string) error {
	return noSuch("The %s policy with name %s cannot be found.", k.noun, policyName)
}

// listInline lists the names of the inline policies of an entity.
func (k *kind[M]) listInline(ev *request.Evaluation, name string, l paging) (names []string, marker *string, truncated *bool, err error) {
	m, err := k.find(ev, name, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	p, err := l.page(ev, name)
	if err != nil {
		return nil, nil, nil, err
	}
	names = []string{}
	marker, truncated, err = request.Fill(p, slices.Values(*k.parts(m).inline), (*fsmpb.InlinePolicy).GetName, func(i *fsmpb.InlinePolicy) {
		names = append(names, i.Name)
	})
	return names, marker, truncated, err
}

// inlineDetails returns inline policies as GetAccountAuthorizationDetails has them.
func inlineDetails(list []*fsmpb.InlinePolicy) []iamapi.PolicyDetail {
	out := make([]iamapi.PolicyDetail, 0, len(list))
	for _, p := range list {
		out = append(out, iamapi.PolicyDetail{PolicyName: &p.Name, PolicyDocument: &p.Document})
	}
	return out
}
