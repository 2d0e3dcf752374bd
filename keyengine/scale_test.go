package keyengine

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// changeAll makes n changes, as many in a record as fit.
func (c *testCluster) changeAll(n int, of func(i int) *fsmpb.Change) {
	c.t.Helper()
	for i := 0; i < n; i += 16 {
		var changes []*fsmpb.Change
		for j := i; j < min(i+16, n); j++ {
			changes = append(changes, of(j))
		}
		c.Change(changes...)
	}
}

// populate writes n users who all have the managed policy "use". Every second one is in the group
// with the given id.
func (c *testCluster) populate(n int, group string) {
	c.t.Helper()
	c.changeAll(n, func(i int) *fsmpb.Change {
		name := fmt.Sprintf("user-%06d", i)
		u := &fsmpb.User{Account: uint64(testAccountNumber), Name: name, Path: "/", Id: uniqueID("AIDA", name), Created: 1, Policies: []string{managedARN("use")}}
		if i%2 == 1 {
			u.Groups = []string{group}
		}
		return &fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: u}}
	})
}

// grantAll writes n grants on a key, each to the user whose unique id grantee returns. They allow Decrypt only.
func (c *testCluster) grantAll(key fsm.KeyID, n int, grantee func(i int) string) {
	c.t.Helper()
	c.changeAll(n, func(i int) *fsmpb.Change {
		to := grantee(i)
		id := sha256.Sum256([]byte(fmt.Sprint(i, to)))
		return &fsmpb.Change{Change: &fsmpb.Change_PutGrant{PutGrant: &fsmpb.Grant{
			Account: uint64(key.Account), Region: key.Region, Key: key.ID[:], Id: id[:], Grantee: to, GranteeAccount: uint64(testAccountNumber), Operations: []string{"Decrypt"},
			Created: 1, Issuer: testAccount,
		}}}
	})
}

// keyNamed returns the id of a key of the default Region in the state.
func (c *testCluster) keyNamed(id string) fsm.KeyID {
	c.t.Helper()
	b, _, ok := request.ParseKeyID(id)
	if !ok {
		c.t.Fatalf("%q is not a key id", id)
	}
	return fsm.KeyID{Account: testAccountNumber, Region: testRegion, ID: b}
}

// An authorisation is a request whose evaluation must cost the same however many principals and
// grants there are.
type authorisation struct {
	name  string
	who   iam.Identity
	op    string
	in    any
	allow bool
}

// authorisations returns a request for each way in which one is decided, of users of their own.
func (c *testCluster) authorisations(key string) []authorisation {
	c.t.Helper()
	c.putManaged("use", allow("kms:Encrypt", "*"), allow("kms:Describe*", "*"))
	c.putManaged("guard", deny("kms:ScheduleKeyDeletion", "*"), deny("kms:PutKeyPolicy", "*"))
	group := c.putGroup("crowd", func(g *fsmpb.Group) { g.Policies = []string{managedARN("use")} })
	byPolicy := c.newIAMUser("policy", func(u *fsmpb.User) { u.Policies = []string{managedARN("guard"), managedARN("use")} })
	byGroup := c.newIAMUser("group", func(u *fsmpb.User) { u.Groups = []string{group} })
	byGrant, none := c.newIAMUser("grant", func(*fsmpb.User) {}), c.newIAMUser("none", func(*fsmpb.User) {})
	c.grantAll(c.keyNamed(key), 1, func(int) string { return uniqueID("AIDA", "grant") })
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")}).CiphertextBlob
	encrypt, decrypt := &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")}, &kmsapi.DecryptInput{CiphertextBlob: blob}
	return []authorisation{
		{"policy", byPolicy, "Encrypt", encrypt, true},
		{"group", byGroup, "Encrypt", encrypt, true},
		{"grant", byGrant, "Decrypt", decrypt, true},
		{"nothing", none, "Decrypt", decrypt, false},
	}
}

// evaluate evaluates a request on the newest state, n times.
func (c *testCluster) evaluate(a *authorisation, n int) {
	caller, s, op := c.caller(a.who), c.State(), OperationNamed(KMS, a.op)
	for range n {
		if ev := request.Evaluate(c.t.Context(), c.engine.services, s, caller, op, a.in); (ev.Err == nil) != a.allow || ev.Record == nil {
			c.t.Fatalf("%s by %s: %v", a.op, a.name, ev.Err)
		}
	}
}

// The cost of an evaluation does not depend on how many users an account has, or how many grants
// a key, even if nothing allows the request and none of the grants is the caller's.
func TestEvaluationDoesNotGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("measures, which the race detector spoils")
	}
	c := newTestCluster(t)
	id, _ := c.newKey()
	all := c.authorisations(id)
	type cost struct {
		allocs float64
		took   time.Duration
	}
	measure := func() (costs []cost) {
		for i := range all {
			best := cost{allocs: testing.AllocsPerRun(100, func() { c.evaluate(&all[i], 1) }), took: time.Hour}
			for range 50 { // the least, which other load on the machine hardly affects
				began := time.Now()
				c.evaluate(&all[i], 20)
				best.took = min(best.took, time.Since(began)/20)
			}
			costs = append(costs, best)
		}
		return costs
	}
	few := measure()
	group, _ := fsm.Object[*fsmpb.Group](c.State(), fsm.EntityID(testAccountNumber, "crowd"))
	c.populate(20_000, group.Id)
	c.grantAll(c.keyNamed(id), 20_000, func(i int) string { return uniqueID("AIDA", fmt.Sprintf("user-%06d", i)) })
	many := measure()
	for i, a := range all {
		t.Logf("%-8s %v, %.0f allocations; with 20,000 users and grants %v, %.0f", a.name, few[i].took, few[i].allocs, many[i].took, many[i].allocs)
		if many[i].allocs > few[i].allocs+1 {
			t.Errorf("decided by %s: %.0f allocations, and %.0f with 20,000 users and grants", a.name, few[i].allocs, many[i].allocs)
		}
		if many[i].took > 4*few[i].took {
			t.Errorf("decided by %s: an evaluation takes %v, and %v with 20,000 users and grants", a.name, few[i].took, many[i].took)
		}
	}
}

// BenchmarkPrincipals measures evaluations with few and many users in the account.
func BenchmarkPrincipals(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		c := newTestCluster(b)
		id, _ := c.newKey()
		all := c.authorisations(id)
		group, _ := fsm.Object[*fsmpb.Group](c.State(), fsm.EntityID(testAccountNumber, "crowd"))
		c.populate(n, group.Id)
		for _, a := range all {
			b.Run(fmt.Sprintf("users=%d/%s", n, a.name), func(b *testing.B) { benchmarkAuthorisation(b, c, &a) })
		}
	}
}

// BenchmarkGrants measures evaluations with few and many grants on the key, to others.
func BenchmarkGrants(b *testing.B) {
	for _, n := range []int{0, 1000, 49_000} {
		c := newTestCluster(b)
		id, _ := c.newKey()
		all := c.authorisations(id)
		c.grantAll(c.keyNamed(id), n, func(i int) string { return uniqueID("AIDA", fmt.Sprintf("user-%06d", i)) })
		for _, a := range all {
			b.Run(fmt.Sprintf("grants=%d/%s", n, a.name), func(b *testing.B) { benchmarkAuthorisation(b, c, &a) })
		}
	}
}

func benchmarkAuthorisation(b *testing.B, c *testCluster, a *authorisation) {
	b.ReportAllocs()
	b.ResetTimer()
	c.evaluate(a, b.N)
}

// BenchmarkIAMLists measures the requests to IAM that are about all users of an account, or could
// be, with the answer of a list.
func BenchmarkIAMLists(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		c := newTestCluster(b)
		id, _ := c.newKey()
		c.authorisations(id)
		group, _ := fsm.Object[*fsmpb.Group](c.State(), fsm.EntityID(testAccountNumber, "crowd"))
		small := c.putGroup("small", func(*fsmpb.Group) {})
		c.populate(n, group.Id)
		c.putUser("zz-last", func(u *fsmpb.User) { u.Groups = []string{small} })
		for name, in := range map[string]any{
			"GetPolicy":                      &iamapi.GetPolicyInput{PolicyArn: new(managedARN("use"))},
			"ListPolicies":                   &iamapi.ListPoliciesInput{OnlyAttached: new(true)},
			"GetGroup":                       &iamapi.GetGroupInput{GroupName: new("small")},
			"ListEntitiesForPolicy":          &iamapi.ListEntitiesForPolicyInput{PolicyArn: new(managedARN("guard"))},
			"GetAccountSummary":              &iamapi.GetAccountSummaryInput{},
			"GetAccountAuthorizationDetails": &iamapi.GetAccountAuthorizationDetailsInput{},
		} {
			op, caller := OperationNamed(request.IAM, name), c.caller(c.root)
			b.Run(fmt.Sprintf("users=%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					ev := request.Evaluate(b.Context(), c.engine.services, c.State(), caller, op, in)
					if ev.Err != nil {
						b.Fatal(ev.Err)
					}
					if _, err := ev.Later(c.State()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
