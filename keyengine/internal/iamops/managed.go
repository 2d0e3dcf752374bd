package iamops

import (
	"crypto/sha256"
	"encoding/base32"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/policy"
)

var policies = &kind[*fsmpb.Policy]{
	noun: "policy", title: "Policy", resource: "AWS::IAM::ManagedPolicy", prefix: "ANPA",
	put: func(m *fsmpb.Policy) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_PutPolicy{PutPolicy: m}}
	},
	remove: func(id *fsmpb.EntityID) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_DeletePolicy{DeletePolicy: id}}
	},
	parts: func(m *fsmpb.Policy) parts { return parts{tags: &m.Tags} },
}

// managed is a managed policy: one of the account, or one of AWS, which all accounts have and
// nobody can change.
type managed struct {
	arn string
	own *fsmpb.Policy // nil for a policy of AWS
	aws string        // the document of a policy of AWS
}

// awsCreated is when the policies of AWS were created, for answers.
var awsCreated = time.Date(2015, time.February, 6, 18, 40, 0, 0, time.UTC).UnixNano()

// awsPolicies returns the managed policies of AWS, in the order of their names.
func awsPolicies(partition string) []managed {
	var list []managed
	for _, name := range policy.AWSManagedNames() {
		arn := "arn:" + partition + ":iam::aws:policy/" + name
		document, _ := policy.AWSManaged(arn)
		list = append(list, managed{arn: arn, aws: document})
	}
	return list
}

// isAWS reports whether the ARN is that of a policy of AWS.
func isAWS(policyARN string) bool { return strings.Contains(policyARN, ":iam::aws:policy/") }

// nameOf returns the name in the ARN of an entity.
func nameOf(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }

// pathOf returns the path in the ARN of an entity, or "" if it is none.
func pathOf(arn string) string {
	first, last := strings.IndexByte(arn, '/'), strings.LastIndexByte(arn, '/')
	if first < 0 {
		return ""
	}
	return arn[first : last+1]
}

// lookup returns the managed policy with an ARN. It reports false if there is none, or if it
// belongs to another account.
func lookup(ev *request.Evaluation, policyARN string) (managed, bool) {
	if isAWS(policyARN) {
		document, ok := policy.AWSManaged(policyARN)
		return managed{arn: policyARN, aws: document}, ok && strings.HasPrefix(policyARN, "arn:"+partition(ev)+":")
	}
	if !ours(ev, policyARN) {
		return managed{}, false
	}
	p := request.ManagedPolicy(ev, policyARN)
	return managed{arn: policyARN, own: p}, p != nil
}

// attachable reports whether the managed policy with an ARN can be attached to something.
func attachable(ev *request.Evaluation, policyARN string) bool {
	_, ok := lookup(ev, policyARN)
	return ok
}

// ours reports whether an ARN is of the caller's account.
func ours(ev *request.Evaluation, arn string) bool {
	a, err := policy.ParseARN(arn)
	return err == nil && a.Account == request.AccountOf(ev).String()
}

// findPolicy authorises the operation on the managed policy with an ARN, and returns the
// policy.
func findPolicy(ev *request.Evaluation, policyARN string) (managed, error) {
	a, err := policy.ParseARN(policyARN)
	if err != nil || a.Service != "iam" || a.Region != "" || !strings.HasPrefix(a.Resource, "policy/") {
		return managed{}, invalidInput("ARN %s is not valid.", policyARN)
	}
	if !isAWS(policyARN) && !ours(ev, policyARN) {
		return managed{}, foreign(ev, policyARN)
	}
	m, ok := lookup(ev, policyARN)
	var p parts
	if m.own != nil {
		p = policies.parts(m.own)
	}
	if err := policies.authorise(ev, policyARN, p, nil); err != nil {
		return managed{}, err
	}
	if !ok {
		return managed{}, noSuch("Policy %s was not found.", policyARN)
	}
	return m, nil
}

// ownPolicy is findPolicy for an operation that changes the policy. Nobody may change those of
// AWS.
func ownPolicy(ev *request.Evaluation, policyARN string) (*fsmpb.Policy, error) {
	m, err := findPolicy(ev, policyARN)
	if err == nil && m.own == nil {
		err = foreign(ev, policyARN)
	}
	return m.own, err
}

// The properties of a managed policy.

func (m managed) name() string { return nameOf(m.arn) }

func (m managed) path() string { return pathOf(m.arn) }

func (m managed) created() int64 {
	if m.own == nil {
		return awsCreated
	}
	return m.own.Created
}

func (m managed) updated() int64 {
	if m.own == nil {
		return awsCreated
	}
	return m.own.Updated
}

// id returns the unique id of a policy. That of a policy of AWS is derived from its name.
func (m managed) id() string {
	if m.own != nil {
		return m.own.Id
	}
	sum := sha256.Sum256([]byte(m.name()))
	return policies.prefix + base32.StdEncoding.EncodeToString(sum[:])[:17]
}

func (m managed) defaultVersion() uint32 {
	if m.own == nil {
		return 1
	}
	return m.own.DefaultVersion
}

// versions returns the numbers of the versions, the newest first.
func (m managed) versions() []uint32 {
	if m.own == nil {
		return []uint32{1}
	}
	list := slices.Clone(m.own.Versions)
	slices.Reverse(list)
	return list
}

// version returns a version of a policy in a state, or nil.
func (m managed) version(s *fsm.State, number uint32) *fsmpb.PolicyVersion {
	if m.own == nil {
		if number != 1 {
			return nil
		}
		return &fsmpb.PolicyVersion{Number: 1, Document: m.aws, Created: awsCreated}
	}
	v, _ := fsm.Object[*fsmpb.PolicyVersion](s, fsm.PolicyVersionID(fsm.Account(m.own.Account), m.own.Name, number))
	return v
}

// managedPolicies returns the managed policies of the account and then those of AWS, beginning
// after a place as in [placeOfPolicy].
func managedPolicies(ev *request.Evaluation, s *fsm.State, after string, local, aws bool) iter.Seq[managed] {
	return func(yield func(managed) bool) {
		section, name := after[:min(1, len(after))], after[min(1, len(after)):]
		if local && section <= sectionLocal {
			for p := range from[*fsmpb.Policy](s, request.AccountOf(ev), name, "") {
				if !yield(managed{arn: iam.PolicyARN(partition(ev), p), own: p}) {
					return
				}
			}
		}
		if !aws {
			return
		}
		for _, m := range awsPolicies(partition(ev)) {
			if placeOfPolicy(m) > after && !yield(m) {
				return
			}
		}
	}
}

// The parts of a list of managed policies.
const (
	sectionLocal = "1"
	sectionAWS   = "2"
)

func placeOfPolicy(m managed) string {
	if m.own == nil {
		return sectionAWS + m.name()
	}
	return sectionLocal + placeOf(m.own)
}

// uses are how often a managed policy is attached to something and bounds something.
type uses struct{ attached, bounds int32 }

// usesOf returns the uses of a managed policy in an account in a state. What uses a policy of the
// account is counted by the state as it comes and goes, but not as what. So the users, groups and
// roles themselves are counted only if the policy is used in both ways, or is AWS's.
func usesOf(s *fsm.State, a fsm.Account, m managed) (n uses) {
	attached, bounds := usedAs(s, a, m.arn), usedAs(s, a, fsm.BoundedBy(m.arn))
	if m.own == nil || attached(1)+bounds(1) == 2 {
		return uses{attached(math.MaxInt32), bounds(math.MaxInt32)}
	}
	count, _ := fsm.Count(s, fsmpb.Kind_KIND_POLICY_USES, fsm.EntityID(a, m.own.Name))
	if bounds(1) == 1 {
		return uses{bounds: int32(count)}
	}
	return uses{attached: int32(count)}
}

// usedAs returns a function that counts, up to a limit, what has a text as in [fsm.Having].
func usedAs(s *fsm.State, a fsm.Account, text string) func(limit int32) int32 {
	return func(limit int32) (n int32) {
		return counted(fsm.Having[*fsmpb.Group](s, a, text, ""), limit,
			counted(fsm.Having[*fsmpb.User](s, a, text, ""), limit,
				counted(fsm.Having[*fsmpb.Role](s, a, text, ""), limit, 0)))
	}
}

// counted adds the number of items to n, up to a limit.
func counted[T any](items iter.Seq[T], limit, n int32) int32 {
	if n < limit {
		for range items {
			if n++; n == limit {
				break
			}
		}
	}
	return n
}
