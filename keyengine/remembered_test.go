package keyengine

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iam/iampb"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestRememberedPolicies: an evaluation that finds the caller's policies remembered has the
// read set of one that looks them up, whatever was read before it, and follows each change.
func TestRememberedPolicies(t *testing.T) {
	c := newTestCluster(t)
	id, _ := c.newKey()
	c.putManaged("mine", allow("iam:GetPolicy", "*"))
	c.putManaged("teams", allow("kms:Encrypt", "*"))
	c.putManaged("limit", allow("*", "*"))
	c.putGroup("team", func(g *fsmpb.Group) { g.Policies = []string{managedARN("teams")} })
	user := c.newIAMUser("ann", func(u *fsmpb.User) {
		u.Policies, u.Groups, u.Boundary = []string{managedARN("mine")}, []string{uniqueID("AGPA", "team")}, managedARN("limit")
	})
	c.putRole("app", func(r *fsmpb.Role) { r.Policies = []string{managedARN("teams")} })
	role := c.newSession("app", func(*iampb.Session) {})
	encrypt := func(who iam.Identity) ([]string, error) {
		return c.readsOf(who, OperationNamed(KMS, "Encrypt"), &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	}
	change := 0
	same := func(when string, who iam.Identity, policies int, allowed bool) {
		t.Helper()
		// A change of something else, so that nothing is remembered of this state.
		change++
		c.putManaged(fmt.Sprintf("other%d", change), allow("kms:Encrypt", "*"))
		if who == user {
			// This operation reads one of the caller's policies before it is authorised.
			if _, err := c.readsOf(user, OperationNamed(IAM, "GetPolicy"), &iamapi.GetPolicyInput{PolicyArn: new(managedARN("mine"))}); err != nil && allowed {
				t.Fatalf("%s: %v", when, err)
			}
		}
		remembered, err := encrypt(who)
		if (err == nil) != allowed {
			t.Errorf("%s: encrypting answers %v", when, err)
		}
		c.engine.services.Policies = request.NewPolicyCache()
		afresh, _ := encrypt(who)
		again, _ := encrypt(who)
		for _, got := range [][]string{remembered, again} {
			if diff := cmp.Diff(afresh, got); diff != "" {
				t.Errorf("%s: the read set (-without the memory +with it):\n%s", when, diff)
			}
		}
		n := 0
		for _, r := range afresh {
			if strings.HasPrefix(r, "KIND_POLICY ") {
				n++
			}
		}
		if n != policies {
			t.Errorf("%s: %d policies were read, want %d", when, n, policies)
		}
	}
	same("at first", user, 3, true)
	same("of a role", role, 1, true)
	c.putManaged("teams", deny("kms:Encrypt", "*"))
	same("after the policy of the group changed", user, 3, false)
	same("after the policy of the role changed", role, 1, false)
	c.putManaged("teams", allow("kms:Encrypt", "*"))
	same("after it changed back", user, 3, true)
	c.putGroup("team", func(g *fsmpb.Group) { g.Policies = nil })
	same("after the group lost its policy", user, 2, false)
	c.putUser("ann", func(u *fsmpb.User) { u.Groups, u.Inline = nil, inline(allow("*", "*")) })
	same("after the user left the group", user, 2, true)
	c.putManaged("limit", allow("s3:*", "*"))
	same("after the boundary changed", user, 2, false)
	c.putUser("ann", func(u *fsmpb.User) { u.Boundary = "" })
	same("without a boundary", user, 1, true)
}

// readsOf evaluates a request on the newest state and returns its read set, sorted.
func (c *testCluster) readsOf(who iam.Identity, op *request.Operation, in any) ([]string, error) {
	c.t.Helper()
	ev := request.Evaluate(c.t.Context(), c.engine.services, c.State(), c.caller(who), op, in)
	if ev.Record == nil {
		c.t.Fatal(ev.Err)
	}
	var list []string
	for _, r := range ev.Record.Reads {
		list = append(list, fmt.Sprintf("%v %q %d", r.Kind, r.Id, r.Version))
	}
	slices.Sort(list)
	return list, ev.Err
}
