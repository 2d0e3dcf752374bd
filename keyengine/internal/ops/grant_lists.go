package ops

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"iter"
	"slices"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

func listGrants(ev *request.Evaluation, in *kmsapi.ListGrantsInput) (*kmsapi.ListGrantsOutput, error) {
	var filter grantFilter
	if in.GrantId != nil {
		id, err := ParseGrantID(*in.GrantId)
		if err != nil {
			return nil, err
		}
		filter.id = id[:]
	}
	var err error
	if filter.grantee, err = partyOf(ev, "GranteePrincipal", in.GranteePrincipal, "GranteeServicePrincipal", in.GranteeServicePrincipal); err != nil {
		return nil, err
	}
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	p, err := request.PageOf(ev, in.Limit, 50, 100, in.Marker, t.ARN, hex.EncodeToString(filter.id), filter.grantee)
	if err != nil {
		return nil, err
	}
	after, err := hex.DecodeString(p.After)
	if err != nil {
		return nil, kmsapi.ErrInvalidMarker
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &kmsapi.ListGrantsOutput{Grants: []kmsapi.GrantListEntry{}}
		out.NextMarker, out.Truncated, err = request.Fill(p, filter.grants(s, t.ID, after), func(g *fsmpb.Grant) string {
			return hex.EncodeToString(g.Id)
		}, func(g *fsmpb.Grant) {
			out.Grants = append(out.Grants, grantEntry(ev.Cluster(), s, t.ARN, g))
		})
		return out, err
	}
	return nil, nil
}

// partyOf is party for the filter of a list, which may also be the unique id of a principal
// that was deleted, as lists show it.
func partyOf(ev *request.Evaluation, member string, principal *string, serviceMember string, service *string) (string, error) {
	if principal != nil && service == nil {
		if _, err := policy.ParseUniqueID(*principal); err == nil {
			return *principal, nil
		}
	}
	return party(ev, member, principal, serviceMember, service)
}

// stored returns a party as grants have it, or "" if it does not exist, given as in a request.
func stored(s *fsm.State, who string) string {
	p, err := policy.ParseCaller(who)
	if err != nil {
		return who // a unique id
	}
	id, ok := binding.Find(s, p, nil)
	if !ok {
		return ""
	}
	return cmp.Or(id, who)
}

// grantFilter selects a key's grants for a list. Fields that are empty select all.
type grantFilter struct {
	id      []byte
	grantee string
}

// grants returns the selected grants on a key, ordered by id, beginning after the given id.
func (f *grantFilter) grants(s *fsm.State, key fsm.KeyID, after []byte) iter.Seq[*fsmpb.Grant] {
	grantee := ""
	if f.grantee != "" {
		if grantee = stored(s, f.grantee); grantee == "" {
			return func(func(*fsmpb.Grant) bool) {}
		}
	}
	switch {
	case f.id != nil:
		return func(yield func(*fsmpb.Grant) bool) {
			if g, _ := s.Grant(key, f.id); g != nil && (grantee == "" || g.Grantee == grantee) {
				yield(g)
			}
		}
	case grantee != "":
		return s.GrantsTo(key, grantee, after)
	}
	return s.Grants(key, after)
}

func listRetirableGrants(ev *request.Evaluation, in *kmsapi.ListRetirableGrantsInput) (*kmsapi.ListRetirableGrantsOutput, error) {
	who, err := partyOf(ev, "RetiringPrincipal", in.RetiringPrincipal, "RetiringServicePrincipal", in.RetiringServicePrincipal)
	if err != nil {
		return nil, err
	}
	if who == "" {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "You must specify either RetiringPrincipal or RetiringServicePrincipal.")
	}
	if err := mayListRetirable(ev, who); err != nil {
		return nil, err
	}
	p, err := request.PageOf(ev, in.Limit, 50, 100, in.Marker, who)
	if err != nil {
		return nil, err
	}
	after, err := grantAfter(p.After)
	if err != nil {
		return nil, err
	}
	region := ev.Region()
	ev.Later = func(s *fsm.State) (any, error) {
		out := &kmsapi.ListRetirableGrantsOutput{Grants: []kmsapi.GrantListEntry{}}
		out.NextMarker, out.Truncated, err = request.Fill(p, retiredBy(s, region, who, after), func(g *fsmpb.Grant) string {
			return hex.EncodeToString(fsm.GrantID(keyOf(g), g.Id))
		}, func(g *fsmpb.Grant) {
			// A key that was deleted has no grants.
			k, _ := s.Key(keyOf(g))
			arn := request.KeyARN(ev.Cluster(), fsm.Account(g.Account), region, request.FormatKeyID([16]byte(g.Key), k.GetMultiRegion()))
			out.Grants = append(out.Grants, grantEntry(ev.Cluster(), s, arn, g))
		})
		return out, err
	}
	return nil, nil
}

// mayListRetirable checks whether the caller may list the grants that a principal may
// retire. For principals of the account, the account's policies decide. A service belongs
// to no account and may list its own.
func mayListRetirable(ev *request.Evaluation, who string) error {
	action, p := ev.Op.Action(), ev.Principal()
	if p.Kind == policy.KindService && p.ARN == who {
		req := policy.Request{Principal: p, Action: action, Resource: who}
		return ev.Decided(req, policy.Decision{Effect: policy.Allow, Reason: policy.ReasonRequest, Statement: policy.NoStatement}, nil)
	}
	return ev.AuthoriseAccount(action, who)
}

// retiredBy returns the grants in a Region that a principal may retire, on the keys of all
// accounts, in the order of their ids and beginning after a given one.
func retiredBy(s *fsm.State, region, who string, after []byte) iter.Seq[*fsmpb.Grant] {
	return func(yield func(*fsmpb.Grant) bool) {
		who := stored(s, who)
		if who == "" {
			return
		}
		for _, a := range slices.Sorted(fsm.Accounts(s)) {
			if bytes.Compare(fsm.AccountID(a), after[:min(len(after), len(fsm.AccountID(a)))]) < 0 {
				continue // all of its grants come before
			}
			for g := range s.GrantsRetiredBy(a, region, who, after) {
				if !yield(g) {
					return
				}
			}
		}
	}
}

// keyOf returns the id of a grant's key.
func keyOf(g *fsmpb.Grant) fsm.KeyID {
	return fsm.KeyID{Account: fsm.Account(g.Account), Region: g.Region, ID: [16]byte(g.Key)}
}

// grantAfter returns the fsm.GrantID after which a page of retirable grants begins, or nil
// for the first page.
func grantAfter(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(name)
	if err != nil {
		return nil, kmsapi.ErrInvalidMarker
	}
	return b, nil
}

// grantEntry returns a grant as an entry of a list, with what its parties are called in the
// state, or their unique ids if they no longer exist. Without a name, its Name is empty.
func grantEntry(c *fsmpb.Cluster, s *fsm.State, keyARN string, g *fsmpb.Grant) kmsapi.GrantListEntry {
	e := kmsapi.GrantListEntry{
		KeyId: &keyARN, GrantId: new(hex.EncodeToString(g.Id)), Name: new(g.Name), CreationDate: TimeOf(g.Created),
		IssuingAccount: new(request.RootARN(c.Partition, g.Issuer)), Operations: slices.Clone(g.Operations),
	}
	e.GranteePrincipal, e.GranteeServicePrincipal = eitherParty(binding.Name(s, fsm.Account(g.GranteeAccount), g.Grantee, nil))
	e.RetiringPrincipal, e.RetiringServicePrincipal = eitherParty(binding.Name(s, fsm.Account(g.RetiringAccount), g.Retiring, nil))
	if g.ContextEquals == nil && g.ContextSubset == nil && g.SourceArn == "" {
		return e
	}
	e.Constraints = &kmsapi.GrantConstraints{}
	if g.ContextEquals != nil {
		e.Constraints.EncryptionContextEquals = request.ContextMap(g.ContextEquals)
	}
	if g.ContextSubset != nil {
		e.Constraints.EncryptionContextSubset = request.ContextMap(g.ContextSubset)
	}
	if g.SourceArn != "" {
		e.Constraints.SourceArn = new(g.SourceArn)
	}
	return e
}

// eitherParty returns a party of a grant in the member for its kind.
func eitherParty(who string) (principal, service *string) {
	if who == "" {
		return nil, nil
	}
	if _, err := policy.ParseService(who); err == nil {
		return nil, &who
	}
	return &who, nil
}
