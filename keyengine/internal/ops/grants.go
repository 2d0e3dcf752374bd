package ops

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/binding"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

const (
	maxConstraintValue = 384 // in characters
)

func createGrant(ev *request.Evaluation, in *kmsapi.CreateGrantInput) (*kmsapi.CreateGrantOutput, error) {
	if err := request.CheckTokens(ev, in.GrantTokens); err != nil {
		return nil, err
	}
	n, err := newGrant(ev, in)
	if err != nil {
		return nil, err
	}
	t, err := ev.Resolve(*in.KeyId, request.KeyForms, request.ActionCreateGrant)
	if err != nil {
		return nil, err
	}
	n.Account, n.Region, n.Key = uint64(t.ID.Account), t.ID.Region, t.ID.ID[:]
	if err := request.AuthoriseNewGrant(ev, t, n); err != nil {
		return nil, err
	}
	if err := bindParties(ev, n); err != nil {
		return nil, err
	}
	if err := ev.Op.States.Check(t.ARN, t.Key.State); err != nil {
		return nil, err
	}
	if err := fitsKey(t, n); err != nil {
		return nil, err
	}
	g := namesake(ev, t, n)
	if g == nil {
		if err := roomForGrant(ev, t); err != nil {
			return nil, err
		}
	}
	if request.IsSet(in.DryRun) {
		return nil, request.ErrDryRun
	}
	if g == nil {
		g = n
		ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutGrant{PutGrant: g}})
	}
	token, err := ev.Vault.GrantToken(t.ID, [32]byte(g.Id))
	if err != nil {
		return nil, err
	}
	return &kmsapi.CreateGrantOutput{GrantToken: &token, GrantId: new(hex.EncodeToString(g.Id))}, nil
}

// recordGrant returns the ids of the grant and the key, but not the token.
func recordGrant(out *kmsapi.CreateGrantOutput, r []*auditpb.Resource) []*auditpb.Field {
	return []*auditpb.Field{auditfield.Text("grantId", *out.GrantId), auditfield.Text("keyId", r[0].Arn)}
}

// newGrant returns the requested grant, checked as far as possible without the key.
func newGrant(ev *request.Evaluation, in *kmsapi.CreateGrantInput) (*fsmpb.Grant, error) {
	g := &fsmpb.Grant{Id: make([]byte, 32), Created: ev.Now().UnixNano(), Issuer: issuer(ev)}
	_, _ = rand.Read(g.Id) // never fails: crypto/rand ends the process instead
	if err := parties(ev, in, g); err != nil {
		return nil, err
	}
	if in.Name != nil {
		g.Name = *in.Name
	}
	for _, op := range in.Operations {
		if !slices.Contains(g.Operations, op) {
			g.Operations = append(g.Operations, op)
		}
	}
	switch {
	case len(g.Operations) == 0:
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "A grant needs at least one operation.")
	case len(g.Operations) == 1 && g.Operations[0] == request.OperationCreateGrant:
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "Grants must not contain only the CreateGrant operation.")
	}
	if err := Constrain(g, in.Constraints); err != nil {
		return nil, err
	}
	if in.GranteeServicePrincipal != nil && g.SourceArn == "" {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "A grant with GranteeServicePrincipal must have a SourceArn constraint.")
	}
	return g, nil
}

// issuer returns the account that creates a grant: the caller's, or the key's if the caller
// is a service, which has no account.
func issuer(ev *request.Evaluation) string {
	return cmp.Or(ev.Principal().Account, request.AccountOf(ev).String())
}

// parties sets the grantee and the retiring principal of a grant, as they are named. A grant to a service
// needs a retiring principal, because the service has no account whose principals could
// retire it.
func parties(ev *request.Evaluation, in *kmsapi.CreateGrantInput, g *fsmpb.Grant) (err error) {
	if g.Grantee, err = party(ev, "GranteePrincipal", in.GranteePrincipal, "GranteeServicePrincipal", in.GranteeServicePrincipal); err != nil {
		return err
	}
	if g.Grantee == "" {
		return kmsapi.Errorf(kmsapi.ErrValidation, "You must specify either GranteePrincipal or GranteeServicePrincipal.")
	}
	if g.Retiring, err = party(ev, "RetiringPrincipal", in.RetiringPrincipal, "RetiringServicePrincipal", in.RetiringServicePrincipal); err != nil {
		return err
	}
	if in.GranteeServicePrincipal != nil && g.Retiring == "" {
		return kmsapi.Errorf(kmsapi.ErrValidation, "A grant with GranteeServicePrincipal must have a RetiringPrincipal or a RetiringServicePrincipal.")
	}
	return nil
}

// party returns the principal or service named in one of two members, or "".
func party(ev *request.Evaluation, member string, principal *string, serviceMember string, service *string) (string, error) {
	switch {
	case principal != nil && service != nil:
		return "", kmsapi.Errorf(kmsapi.ErrValidation, "You can specify either %s or %s, but not both.", member, serviceMember)
	case principal != nil:
		return *principal, principalOfGrant(ev, *principal)
	case service != nil:
		return *service, nil // validated by its pattern
	}
	return "", nil
}

// errPrincipal is AWS's answer to a principal that does not exist.
var errPrincipal = kmsapi.Errorf(kmsapi.ErrInvalidArn, "ARN does not refer to a valid principal")

// principalOfGrant checks that a grant may name a principal. Whether it exists is checked by
// bindParties: only those who may create the grant are told.
func principalOfGrant(ev *request.Evaluation, arn string) error {
	p, err := policy.ParsePrincipal(arn)
	if err != nil || p.Partition != ev.Cluster().Partition { // an account id has no partition
		return errPrincipal
	}
	return nil
}

// bindParties replaces the grantee and the retiring principal of a grant by their unique ids, if
// they are users, roles or sessions of roles. What says whether they exist is added to the read
// set.
func bindParties(ev *request.Evaluation, g *fsmpb.Grant) error {
	for _, party := range []struct {
		who     *string
		account *uint64
	}{{&g.Grantee, &g.GranteeAccount}, {&g.Retiring, &g.RetiringAccount}} {
		if *party.who == "" {
			continue
		}
		p, err := policy.ParseCaller(*party.who)
		if err != nil {
			return errPrincipal
		}
		id, ok := binding.Find(ev.State, p, ev.Note)
		if !ok {
			return errPrincipal
		}
		if id != "" {
			account, _ := fsm.ParseAccount(p.Account)
			*party.who, *party.account = id, uint64(account)
		}
	}
	return nil
}

// Constrain adds constraints to a grant. An empty map means no constraint, because programs
// such as Terraform's provider send one when they have no pairs. The exception is an
// EncryptionContextEquals without pairs, if there are no pairs in EncryptionContextSubset
// either: taken literally it would allow only requests without a context, so ignoring it
// would grant more than was requested.
func Constrain(g *fsmpb.Grant, c *kmsapi.GrantConstraints) (err error) {
	if c == nil {
		return nil
	}
	equals, subset := c.EncryptionContextEquals, c.EncryptionContextSubset
	switch {
	case len(equals) > 0 && len(subset) > 0:
		return kmsapi.Errorf(kmsapi.ErrValidation, "A grant has EncryptionContextEquals or EncryptionContextSubset, not both.")
	case equals != nil && len(equals) == 0 && len(subset) == 0:
		return kmsapi.Errorf(kmsapi.ErrValidation, "EncryptionContextEquals must have 1 to %d pairs. Leave it out for a grant that is good in every encryption context.", request.MaxConstraintPairs)
	}
	if g.ContextEquals, err = constraint("EncryptionContextEquals", equals); err != nil {
		return err
	}
	if g.ContextSubset, err = constraint("EncryptionContextSubset", subset); err != nil {
		return err
	}
	if c.SourceArn != nil {
		g.SourceArn = *c.SourceArn
	}
	return nil
}

// constraint returns the encryption context of a constraint, or nil if it has no pairs.
func constraint(member string, pairs map[string]string) (*fsmpb.GrantContext, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	if len(pairs) > request.MaxConstraintPairs {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "%s must have 1 to %d pairs.", member, request.MaxConstraintPairs)
	}
	c := &fsmpb.GrantContext{}
	for _, k := range slices.Sorted(maps.Keys(pairs)) {
		if utf8.RuneCountInString(pairs[k]) > maxConstraintValue {
			return nil, kmsapi.Errorf(kmsapi.ErrValidation, "A value of %s has more than %d characters.", member, maxConstraintValue)
		}
		c.Pairs = append(c.Pairs, &fsmpb.Tag{Key: k, Value: pairs[k]})
	}
	return c, nil
}

// fitsKey checks that the key supports the operations of a grant.
func fitsKey(t *request.Target, g *fsmpb.Grant) error {
	can := GrantOperations(t.Key)
	for _, op := range g.Operations {
		if !slices.Contains(can, op) {
			return kmsapi.Errorf(kmsapi.ErrValidation, "Grant operation %s is not valid for %s, whose key spec is %s and key usage %s.", op, t.ARN, t.Key.Spec, t.Key.Usage)
		}
	}
	if t.Key.Spec != kmsapi.SpecSymmetric && (g.ContextEquals != nil || g.ContextSubset != nil) {
		return kmsapi.Errorf(kmsapi.ErrValidation, "Encryption context constraints are not valid for %s: it has no encryption context.", t.ARN)
	}
	return nil
}

// GrantOperations returns the operations that a grant on the key may have.
func GrantOperations(k *fsmpb.Key) []string {
	ops := []string{request.OperationCreateGrant, request.OperationRetireGrant, request.OperationDescribeKey}
	if k.Usage == kmsapi.UsageEncrypt {
		ops = append(ops, "Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo")
	}
	switch {
	case k.Spec == kmsapi.SpecSymmetric:
		return append(ops, "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext")
	case k.Usage == kmsapi.UsageMac:
		return append(ops, "GenerateMac", "VerifyMac")
	case k.Usage == kmsapi.UsageSign:
		ops = append(ops, "Sign", "Verify")
	case k.Usage == kmsapi.UsageAgree:
		ops = append(ops, "DeriveSharedSecret")
	case k.Usage == kmsapi.UsageEncapsulate:
		ops = append(ops, "Encapsulate", "Decapsulate")
	}
	return append(ops, "GetPublicKey")
}

// namesake returns an existing grant that the same request created, or nil. Requests
// without a name always create another grant. Two requests are the same if their grants are
// equal apart from id, time of creation and version, so that fields which are added to
// grants later are compared too. If there is no such grant, the outcome depends on all
// grants of the key.
func namesake(ev *request.Evaluation, t *request.Target, n *fsmpb.Grant) *fsmpb.Grant {
	if n.Name == "" {
		return nil
	}
	comparable := func(g *fsmpb.Grant) *fsmpb.Grant {
		g = proto.CloneOf(g)
		g.Id, g.Created, g.Version = nil, 0, 0
		slices.Sort(g.Operations)
		return g
	}
	want := comparable(n)
	return ev.GrantTo(t.ID, []string{n.Grantee}, func(g *fsmpb.Grant) bool {
		return g.Name == n.Name && proto.Equal(comparable(g), want)
	})
}

// roomForGrant enforces the quota of grants. Only a refusal adds the set of grants to the
// read set.
func roomForGrant(ev *request.Evaluation, t *request.Target) error {
	if n, _ := ev.State.KeyGrants(t.ID); int(n.GetCount()) < ev.Quotas.Grants {
		return nil
	}
	ev.KeyGrants(t.ID)
	return kmsapi.Errorf(kmsapi.ErrLimitExceeded, "%s has %d grants and cannot have more.", t.ARN, ev.Quotas.Grants)
}

func revokeGrant(ev *request.Evaluation, in *kmsapi.RevokeGrantInput) (*request.None, error) {
	id, err := ParseGrantID(*in.GrantId)
	if err != nil {
		return nil, err
	}
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	if _, err := existingGrant(ev, t.ID, id); err != nil {
		return nil, err
	}
	return endGrant(ev, t.ID, id, in.DryRun)
}

func retireGrant(ev *request.Evaluation, in *kmsapi.RetireGrantInput) (*request.None, error) {
	t, id, err := toRetire(ev, in)
	if err != nil {
		return nil, err
	}
	g, err := existingGrant(ev, t.ID, id)
	if err != nil {
		return nil, err
	}
	if err := request.MayRetire(ev, t, g); err != nil {
		return nil, err
	}
	if err := ev.Op.States.Check(t.ARN, t.Key.State); err != nil {
		return nil, err
	}
	return endGrant(ev, t.ID, id, in.DryRun)
}

// toRetire returns the key and the id of the grant to retire, which a request names by
// token or by ids. If the key was deleted with its grants, the target has no key.
func toRetire(ev *request.Evaluation, in *kmsapi.RetireGrantInput) (*request.Target, [32]byte, error) {
	switch {
	case in.GrantToken != nil && in.KeyId == nil && in.GrantId == nil:
		key, id, err := request.TokenGrant(ev, *in.GrantToken)
		if err != nil {
			return nil, id, err
		}
		return ev.Target(key), id, nil
	case in.GrantToken == nil && in.KeyId != nil && in.GrantId != nil:
		id, err := ParseGrantID(*in.GrantId)
		if err != nil {
			return nil, id, err
		}
		t, err := ev.Resolve(*in.KeyId, request.KeyForms, request.ActionRetireGrant)
		return t, id, err
	}
	return nil, [32]byte{}, kmsapi.Errorf(kmsapi.ErrValidation, "You must specify either a grant token, or both a key ID and a grant ID.")
}

// existingGrant returns a grant on a key and adds its id to the record.
func existingGrant(ev *request.Evaluation, key fsm.KeyID, id [32]byte) (*fsmpb.Grant, error) {
	ev.GrantID = hex.EncodeToString(id[:])
	g := ev.Grant(key, id[:])
	if g == nil {
		return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "Grant ID %s not found", ev.GrantID)
	}
	return g, nil
}

// endGrant deletes a grant. Grants that were created with its authority remain.
func endGrant(ev *request.Evaluation, key fsm.KeyID, id [32]byte, dryRun *bool) (*request.None, error) {
	if request.IsSet(dryRun) {
		return nil, request.ErrDryRun
	}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteGrant{DeleteGrant: &fsmpb.GrantID{Account: uint64(key.Account), Key: key.ID[:], Region: key.Region, Id: id[:]}}})
	return &request.None{}, nil
}

// ParseGrantID parses a grant id. It accepts only the spelling that CreateGrant returns.
func ParseGrantID(s string) (id [32]byte, err error) {
	if len(s) != hex.EncodedLen(len(id)) || strings.ToLower(s) != s {
		return id, kmsapi.ErrInvalidGrantID
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, kmsapi.ErrInvalidGrantID
	}
	return id, nil
}
