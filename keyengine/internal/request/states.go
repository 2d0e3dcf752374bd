package request

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// stateRule says what an operation does to a key in one state.
type stateRule uint8

const (
	ruleNone       stateRule = iota // no rule: a state that the operation was not thought through for
	rulePass                        // goes on
	ruleDisabled                    // DisabledException
	rulePending                     // KMSInvalidStateException: is pending deletion
	ruleNotPending                  // KMSInvalidStateException: is not pending deletion
	ruleImport                      // KMSInvalidStateException: is pending import
	ruleOrigin                      // UnsupportedOperationException: not for this origin
)

// StateRules has a rule for each state, by its number.
type StateRules [6]stateRule

// The sets of rules that operations have (AWS's table of key states).
var (
	// usable keys do cryptography.
	Usable = rules(rulePass, ruleDisabled, rulePending, ruleImport)
	// changeable keys take changes while they are not on their way out.
	Changeable = rules(rulePass, rulePass, rulePending, rulePass)
	// switchable is EnableKey's and DisableKey's: a key without material is neither.
	Switchable = rules(rulePass, rulePass, rulePending, ruleImport)
	// rotatable is of operations on automatic rotation, which imported keys have not.
	Rotatable = rules(rulePass, ruleDisabled, rulePending, ruleOrigin)
	// anyState: for reading, and for what must work always.
	AnyState = rules(rulePass, rulePass, rulePass, rulePass)
	// onlyPending is CancelKeyDeletion's.
	OnlyPending = rules(ruleNotPending, ruleNotPending, rulePass, ruleNotPending)
)

func rules(whenEnabled, whenDisabled, whenPending, whenImport stateRule) (r StateRules) {
	r[fsmpb.KeyState_KEY_STATE_ENABLED] = whenEnabled
	r[fsmpb.KeyState_KEY_STATE_DISABLED] = whenDisabled
	r[fsmpb.KeyState_KEY_STATE_PENDING_DELETION] = whenPending
	r[fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION] = whenPending
	r[fsmpb.KeyState_KEY_STATE_PENDING_IMPORT] = whenImport
	return r
}

// Check returns the error that the rules give a key in that state.
func (r StateRules) Check(arn string, s fsmpb.KeyState) error {
	rule := ruleNone
	if s >= 0 && int(s) < len(r) {
		rule = r[s]
	}
	switch rule {
	case rulePass:
		return nil
	case ruleDisabled:
		return kmsapi.Errorf(kmsapi.ErrDisabled, "%s is disabled.", arn)
	case rulePending:
		if s == fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION {
			return kmsapi.Errorf(kmsapi.ErrInvalidState, "%s is pending replica deletion.", arn)
		}
		return kmsapi.Errorf(kmsapi.ErrInvalidState, "%s is pending deletion.", arn)
	case ruleNotPending:
		return kmsapi.Errorf(kmsapi.ErrInvalidState, "%s is not pending deletion.", arn)
	case ruleImport:
		return kmsapi.Errorf(kmsapi.ErrInvalidState, "%s is pending import.", arn)
	case ruleOrigin:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "%s origin is %s which is not valid for this operation.", arn, kmsapi.OriginImported)
	}
	return fmt.Errorf("key %s is in state %v, for which there is no rule", arn, s)
}
