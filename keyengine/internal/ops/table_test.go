package ops

import (
	"slices"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// No operation accepts a state that is unknown.
func TestUnknownState(t *testing.T) {
	t.Parallel()
	for _, op := range Table {
		for _, s := range []fsmpb.KeyState{fsmpb.KeyState_KEY_STATE_UNSPECIFIED, 6, 99, -1} {
			if err := op.States.Check("arn", s); err == nil {
				t.Errorf("%s accepts state %v", op.Name, s)
			}
		}
	}
}

// Members with these names restrict what a request does, in every operation. An input with
// such a member must therefore be refused if it has an unknown member; the tests of transport
// check that.
func TestNarrowingMembers(t *testing.T) {
	t.Parallel()
	names := []string{"Constraints", "DryRun", "DryRunModifiers", "EncryptionContext", "SourceEncryptionContext", "DestinationEncryptionContext",
		"GranteePrincipal", "GranteeServicePrincipal", "RetiringServicePrincipal", "Policy", "Recipient", "ValidTo"}
	optional := []string{"GranteePrincipal", "GranteeServicePrincipal", "RetiringServicePrincipal"} // of CreateGrant, where they name somebody
	seen := map[string]bool{}
	for _, op := range Table {
		for _, m := range op.Input().Members {
			seen[m.Name] = true
			if slices.Contains(names, m.Name) && !m.Narrows && (op.Name != "CreateGrant" || !slices.Contains(optional, m.Name)) {
				t.Errorf("%s.%s is not marked with Narrows", op.Name, m.Name)
			}
		}
	}
	for _, name := range names {
		if !seen[name] {
			t.Errorf("no operation has a member %s", name)
		}
	}
}
