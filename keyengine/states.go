package keyengine

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// stateRule says what an operation does to a key in one state.
type stateRule uint8

const (
	ruleNone       stateRule = iota // no rule: a state that the operation was not thought through for
	rulePass                        // goes on
	ruleDisabled                    // DisabledException
	rulePending                     // KMSInvalidStateException: is pending deletion
	ruleNotPending                  // KMSInvalidStateException: is not pending deletion
)

// stateRules has a rule for each state, by its number.
type stateRules [4]stateRule

// The sets of rules that operations have (AWS's table of key states).
var (
	// usable keys do cryptography.
	usable = rules(rulePass, ruleDisabled, rulePending)
	// changeable keys take changes while they are not on their way out.
	changeable = rules(rulePass, rulePass, rulePending)
	// anyState: for reading, and for what must work always.
	anyState = rules(rulePass, rulePass, rulePass)
	// onlyPending is CancelKeyDeletion's.
	onlyPending = rules(ruleNotPending, ruleNotPending, rulePass)
)

func rules(whenEnabled, whenDisabled, whenPending stateRule) (r stateRules) {
	r[fsmpb.KeyState_KEY_STATE_ENABLED] = whenEnabled
	r[fsmpb.KeyState_KEY_STATE_DISABLED] = whenDisabled
	r[fsmpb.KeyState_KEY_STATE_PENDING_DELETION] = whenPending
	return r
}

// check returns the error that the rules give a key in that state.
func (r stateRules) check(arn string, s fsmpb.KeyState) error {
	rule := ruleNone
	if s >= 0 && int(s) < len(r) {
		rule = r[s]
	}
	switch rule {
	case rulePass:
		return nil
	case ruleDisabled:
		return fault(ErrDisabled, "%s is disabled.", arn)
	case rulePending:
		return fault(ErrInvalidState, "%s is pending deletion.", arn)
	case ruleNotPending:
		return fault(ErrInvalidState, "%s is not pending deletion.", arn)
	}
	return fmt.Errorf("key %s is in state %v, for which there is no rule", arn, s)
}
