package harness

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

var specStates = map[fsmpb.KeyState]string{
	fsmpb.KeyState_KEY_STATE_ENABLED: "Enabled", fsmpb.KeyState_KEY_STATE_DISABLED: "Disabled",
	fsmpb.KeyState_KEY_STATE_PENDING_DELETION: "PendingDeletion",
}

// SameAs compares the state of a node with the specification: every change took effect
// exactly once, and there are no other changes.
func (s *Spec) SameAs(state *fsm.State) error {
	var errs []error
	complain := func(format string, args ...any) {
		if len(errs) < maxComplaints {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	seen := 0
	for k := range state.AllKeys() {
		id := uuid(k.Id)
		want := s.Keys[id]
		if want == nil {
			complain("key %s is in the state, and not in the log", id)
			continue
		}
		seen++
		kid := fsm.IDOf(k)
		if got := specStates[k.State]; got != want.State {
			complain("key %s is %s, want %s", id, got, want.State)
		}
		if k.Description != want.Description {
			complain("key %s is described as %q, want %q", id, k.Description, want.Description)
		}
		p, _ := state.KeyPolicy(kid)
		if want.Policy != "" && p.GetDocument() != want.Policy {
			complain("key %s has policy %q, want %q", id, p.GetDocument(), want.Policy)
		}
		t, _ := state.KeyTags(kid)
		tags := make(map[string]string)
		for _, tag := range t.GetTags() {
			tags[tag.Key] = tag.Value
		}
		if !maps.Equal(tags, want.Tags) {
			complain("key %s has tags %v, want %v", id, tags, want.Tags)
		}
		n := uint32(0)
		for _, target := range s.Aliases {
			if target == id {
				n++
			}
		}
		if count, _ := state.KeyAliases(kid); count.GetCount() != n {
			complain("key %s counts %d aliases, want %d", id, count.GetCount(), n)
		}
	}
	if seen != len(s.Keys) {
		complain("the state has %d keys of the log's %d", seen, len(s.Keys))
	}
	aliases := make(map[string]string)
	for a := range state.Aliases(fsm.AccountOf(state), Region, "") {
		aliases[a.Name] = uuid(a.Key)
	}
	if !maps.Equal(aliases, s.Aliases) {
		complain("the state has aliases %v, want %v", aliases, s.Aliases)
	}
	return errors.Join(errs...)
}

func uuid(id []byte) string {
	h := hex.EncodeToString(id)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
