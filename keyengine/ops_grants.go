package keyengine

import (
	"crypto/rand"
	"encoding/hex"
	"iter"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/policy"
)

const (
	maxConstraintPairs = 8
	maxConstraintValue = 384 // characters
)

func createGrant(ev *eval, in *CreateGrantInput) (*CreateGrantOutput, error) {
	if err := ev.checkTokens(in.GrantTokens); err != nil {
		return nil, err
	}
	n, err := ev.newGrant(in)
	if err != nil {
		return nil, err
	}
	t, err := ev.resolve(*in.KeyId, keyForms, actionCreateGrant)
	if err != nil {
		return nil, err
	}
	n.Key, n.Region = t.id.ID[:], t.id.Region
	if err := ev.authoriseBy(t, actionCreateGrant, func(parent *fsmpb.Grant) bool { return covers(parent, n) }); err != nil {
		return nil, err
	}
	if err := ev.op.states.check(t.arn, t.key.State); err != nil {
		return nil, err
	}
	if err := fitsKey(t, n); err != nil {
		return nil, err
	}
	g := ev.namesake(t, n)
	if g == nil {
		if err := ev.roomForGrant(t); err != nil {
			return nil, err
		}
	}
	if isSet(in.DryRun) {
		return nil, errDryRun
	}
	if g == nil {
		g = n
		ev.change(&fsmpb.Change{Change: &fsmpb.Change_PutGrant{PutGrant: g}})
	}
	token, err := ev.engine.vault.grantToken(t.id, [32]byte(g.Id))
	if err != nil {
		return nil, err
	}
	return &CreateGrantOutput{GrantToken: &token, GrantId: ptr(hex.EncodeToString(g.Id))}, nil
}

// recordGrant shows which grant was made on which key, and never its token.
func recordGrant(out *CreateGrantOutput, rec *auditpb.Record) {
	rec.ResponseElements = []*auditpb.Field{text("grantId", *out.GrantId), text("keyId", rec.Resources[0].Arn)}
}

// newGrant is the grant that a request asks for, as far as it can be told without
// the key.
func (ev *eval) newGrant(in *CreateGrantInput) (*fsmpb.Grant, error) {
	g := &fsmpb.Grant{
		Id: make([]byte, 32), Grantee: *in.GranteePrincipal, Created: ev.now().UnixNano(),
		Issuer: ev.caller.Identity.principal.Account,
	}
	_, _ = rand.Read(g.Id) // never fails: crypto/rand ends the process instead
	if err := ev.principalOfGrant(g.Grantee); err != nil {
		return nil, err
	}
	if in.RetiringPrincipal != nil {
		g.Retiring = *in.RetiringPrincipal
		if err := ev.principalOfGrant(g.Retiring); err != nil {
			return nil, err
		}
	}
	if in.Name != nil {
		g.Name = *in.Name
	}
	for _, op := range in.Operations {
		if !slices.Contains(g.Operations, op) {
			g.Operations = append(g.Operations, op)
		}
	}
	if len(g.Operations) == 0 {
		return nil, fault(ErrValidation, "A grant needs at least one operation.")
	}
	c := in.Constraints
	if c == nil {
		return g, nil
	}
	if c.EncryptionContextEquals != nil && c.EncryptionContextSubset != nil {
		return nil, fault(ErrValidation, "A grant has EncryptionContextEquals or EncryptionContextSubset, not both.")
	}
	var err error
	if g.ContextEquals, err = constraint("EncryptionContextEquals", c.EncryptionContextEquals); err != nil {
		return nil, err
	}
	g.ContextSubset, err = constraint("EncryptionContextSubset", c.EncryptionContextSubset)
	return g, err
}

// principalOfGrant checks that a grant may name somebody. That he exists cannot be
// told: there are no principals to look among.
func (ev *eval) principalOfGrant(arn string) error {
	p, err := policy.ParsePrincipal(arn)
	if err != nil || p.Partition != ev.cluster().Partition { // a bare account id has none
		return fault(ErrInvalidArn, "ARN does not refer to a valid principal")
	}
	return nil
}

// constraint is an encryption context that a grant is limited to; nil for none. One
// without pairs is refused: it would limit nothing, or everything, unnoticed.
func constraint(member string, pairs map[string]string) (*fsmpb.GrantContext, error) {
	if pairs == nil {
		return nil, nil
	}
	if len(pairs) == 0 || len(pairs) > maxConstraintPairs {
		return nil, fault(ErrValidation, "%s must have 1 to %d pairs.", member, maxConstraintPairs)
	}
	c := &fsmpb.GrantContext{}
	for _, k := range slices.Sorted(maps.Keys(pairs)) {
		if utf8.RuneCountInString(pairs[k]) > maxConstraintValue {
			return nil, fault(ErrValidation, "A value of %s has more than %d characters.", member, maxConstraintValue)
		}
		c.Pairs = append(c.Pairs, &fsmpb.Tag{Key: k, Value: pairs[k]})
	}
	return c, nil
}

// fitsKey checks that a key can do what a grant on it allows.
func fitsKey(t *target, g *fsmpb.Grant) error {
	can := grantOperations(t.key)
	for _, op := range g.Operations {
		if !slices.Contains(can, op) {
			return fault(ErrValidation, "Grant operation %s is not valid for %s, whose key spec is %s and key usage %s.", op, t.arn, t.key.Spec, t.key.Usage)
		}
	}
	if t.key.Spec != specSymmetric && (g.ContextEquals != nil || g.ContextSubset != nil) {
		return fault(ErrValidation, "Grant constraints are not valid for %s: it has no encryption context.", t.arn)
	}
	return nil
}

// grantOperations are the operations that a grant on a key may have.
func grantOperations(k *fsmpb.Key) []string {
	ops := []string{"CreateGrant", operationRetireGrant, operationDescribeKey}
	if k.Usage == usageEncrypt {
		ops = append(ops, "Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo")
	}
	switch {
	case k.Spec == specSymmetric:
		return append(ops, "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext")
	case k.Usage == usageMac:
		return append(ops, "GenerateMac", "VerifyMac")
	case k.Usage == usageSign:
		ops = append(ops, "Sign", "Verify")
	case k.Usage == usageAgree:
		ops = append(ops, "DeriveSharedSecret")
	}
	return append(ops, "GetPublicKey")
}

// namesake is the grant that was made before by the same request with the same
// name; nil when there is none. That there is none depends on all of the key's
// grants. Nameless requests are each for another grant.
func (ev *eval) namesake(t *target, n *fsmpb.Grant) *fsmpb.Grant {
	if n.Name == "" {
		return nil
	}
	return ev.grantTo(t.id, []string{n.Grantee}, func(g *fsmpb.Grant) bool {
		return g.Name == n.Name && g.Retiring == n.Retiring && g.Issuer == n.Issuer &&
			slices.Equal(slices.Sorted(slices.Values(g.Operations)), slices.Sorted(slices.Values(n.Operations))) &&
			proto.Equal(g.ContextEquals, n.ContextEquals) && proto.Equal(g.ContextSubset, n.ContextSubset)
	})
}

// roomForGrant: only a refusal depends on the number of grants.
func (ev *eval) roomForGrant(t *target) error {
	if n, _ := ev.state.KeyGrants(t.id); int(n.GetCount()) < ev.engine.quotas.Grants {
		return nil
	}
	ev.keyGrants(t.id)
	return fault(ErrLimitExceeded, "%s has %d grants and cannot have more.", t.arn, ev.engine.quotas.Grants)
}

func revokeGrant(ev *eval, in *RevokeGrantInput) (*none, error) {
	id, err := parseGrantID(*in.GrantId)
	if err != nil {
		return nil, err
	}
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if _, err := ev.existingGrant(t.id, id); err != nil {
		return nil, err
	}
	return ev.endGrant(t.id, id, in.DryRun)
}

func retireGrant(ev *eval, in *RetireGrantInput) (*none, error) {
	t, id, err := ev.toRetire(in)
	if err != nil {
		return nil, err
	}
	g, err := ev.existingGrant(t.id, id)
	if err != nil {
		return nil, err
	}
	if err := ev.mayRetire(t, g); err != nil {
		return nil, err
	}
	if err := ev.op.states.check(t.arn, t.key.State); err != nil {
		return nil, err
	}
	return ev.endGrant(t.id, id, in.DryRun)
}

// toRetire is the grant that a request names in one of the two ways that there
// are. The key is gone, and its grants with it, when the target has none.
func (ev *eval) toRetire(in *RetireGrantInput) (*target, [32]byte, error) {
	switch {
	case in.GrantToken != nil && in.KeyId == nil && in.GrantId == nil:
		key, id, err := ev.tokenGrant(*in.GrantToken)
		if err != nil {
			return nil, id, err
		}
		return ev.target(key), id, nil
	case in.GrantToken == nil && in.KeyId != nil && in.GrantId != nil:
		id, err := parseGrantID(*in.GrantId)
		if err != nil {
			return nil, id, err
		}
		t, err := ev.resolve(*in.KeyId, keyForms, actionRetireGrant)
		return t, id, err
	}
	return nil, [32]byte{}, fault(ErrValidation, "You must specify either a grant token, or both a key ID and a grant ID.")
}

// existingGrant is a grant on a key, which the record then names.
func (ev *eval) existingGrant(key fsm.KeyID, id [32]byte) (*fsmpb.Grant, error) {
	ev.grantID = hex.EncodeToString(id[:])
	g := ev.grant(key, id[:])
	if g == nil {
		return nil, fault(ErrNotFound, "Grant ID %s not found", ev.grantID)
	}
	return g, nil
}

// endGrant makes an end of a grant. The grants that were made by it stay.
func (ev *eval) endGrant(key fsm.KeyID, id [32]byte, dryRun *bool) (*none, error) {
	if isSet(dryRun) {
		return nil, errDryRun
	}
	ev.change(&fsmpb.Change{Change: &fsmpb.Change_DeleteGrant{DeleteGrant: &fsmpb.GrantID{Key: key.ID[:], Region: key.Region, Id: id[:]}}})
	return &none{}, nil
}

// parseGrantID reads a grant id in the one spelling that CreateGrant gives it.
func parseGrantID(s string) (id [32]byte, err error) {
	if len(s) != hex.EncodedLen(len(id)) || strings.ToLower(s) != s {
		return id, ErrInvalidGrantID
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, ErrInvalidGrantID
	}
	return id, nil
}

func listGrants(ev *eval, in *ListGrantsInput) (*ListGrantsOutput, error) {
	var filter grantFilter
	if in.GrantId != nil {
		id, err := parseGrantID(*in.GrantId)
		if err != nil {
			return nil, err
		}
		filter.id = id[:]
	}
	if in.GranteePrincipal != nil {
		filter.grantee = *in.GranteePrincipal
		if err := ev.principalOfGrant(filter.grantee); err != nil {
			return nil, err
		}
	}
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	p, err := ev.page(in.Limit, 50, 100, in.Marker, t.arn, hex.EncodeToString(filter.id), filter.grantee)
	if err != nil {
		return nil, err
	}
	after, err := hex.DecodeString(p.after)
	if err != nil {
		return nil, ErrInvalidMarker
	}
	ev.later = func(s *fsm.State) (any, error) {
		out := &ListGrantsOutput{Grants: []GrantListEntry{}}
		out.NextMarker, out.Truncated, err = fill(p, filter.grants(s, t.id, after), func(g *fsmpb.Grant) string {
			return hex.EncodeToString(g.Id)
		}, func(g *fsmpb.Grant) {
			out.Grants = append(out.Grants, grantEntry(ev.cluster(), t.arn, g))
		})
		return out, err
	}
	return nil, nil
}

// grantFilter says which of a key's grants a list shows; a zero part takes all.
type grantFilter struct {
	id      []byte
	grantee string
}

// grants are the grants on a key that the filter takes, by id, from the one after
// the given id on.
func (f *grantFilter) grants(s *fsm.State, key fsm.KeyID, after []byte) iter.Seq[*fsmpb.Grant] {
	switch {
	case f.id != nil:
		return func(yield func(*fsmpb.Grant) bool) {
			if g, _ := s.Grant(key, f.id); g != nil && (f.grantee == "" || g.Grantee == f.grantee) {
				yield(g)
			}
		}
	case f.grantee != "":
		return s.GrantsTo(key, f.grantee, after)
	}
	return s.Grants(key, after)
}

func listRetirableGrants(ev *eval, in *ListRetirableGrantsInput) (*ListRetirableGrantsOutput, error) {
	who := *in.RetiringPrincipal
	if err := ev.principalOfGrant(who); err != nil {
		return nil, err
	}
	if err := ev.authoriseAccount(ev.op.action(), who); err != nil {
		return nil, err
	}
	p, err := ev.page(in.Limit, 50, 100, in.Marker, who)
	if err != nil {
		return nil, err
	}
	after, err := ev.grantAfter(p.after)
	if err != nil {
		return nil, err
	}
	region := ev.region()
	ev.later = func(s *fsm.State) (any, error) {
		out := &ListRetirableGrantsOutput{Grants: []GrantListEntry{}}
		out.NextMarker, out.Truncated, err = fill(p, s.GrantsRetiredBy(region, who, after), func(g *fsmpb.Grant) string {
			return hex.EncodeToString(g.Key) + hex.EncodeToString(g.Id)
		}, func(g *fsmpb.Grant) {
			// A key that is gone has no grants.
			k, _ := s.Key(fsm.KeyID{Region: region, ID: [16]byte(g.Key)})
			arn := keyARN(ev.cluster(), region, formatKeyID([16]byte(g.Key), k.GetMultiRegion()))
			out.Grants = append(out.Grants, grantEntry(ev.cluster(), arn, g))
		})
		return out, err
	}
	return nil, nil
}

// grantAfter is the fsm.GrantID of the grant that a page of retirable grants comes
// after; nil for the first page.
func (ev *eval) grantAfter(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != 16+32 {
		return nil, ErrInvalidMarker
	}
	return fsm.GrantID(fsm.KeyID{Region: ev.region(), ID: [16]byte(b)}, b[16:]), nil
}

// grantEntry is a grant as lists show it. One without a name has an empty one.
func grantEntry(c *fsmpb.Cluster, keyARN string, g *fsmpb.Grant) GrantListEntry {
	e := GrantListEntry{
		KeyId: &keyARN, GrantId: ptr(hex.EncodeToString(g.Id)), Name: ptr(g.Name), CreationDate: timeOf(g.Created),
		GranteePrincipal: ptr(g.Grantee), IssuingAccount: ptr(rootARN(c.Partition, g.Issuer)), Operations: slices.Clone(g.Operations),
	}
	if g.Retiring != "" {
		e.RetiringPrincipal = ptr(g.Retiring)
	}
	switch {
	case g.ContextEquals != nil:
		e.Constraints = &GrantConstraints{EncryptionContextEquals: contextMap(g.ContextEquals)}
	case g.ContextSubset != nil:
		e.Constraints = &GrantConstraints{EncryptionContextSubset: contextMap(g.ContextSubset)}
	}
	return e
}
