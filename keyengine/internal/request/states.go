package request

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// stateRule is the outcome of an operation on a key in one state.
type stateRule uint8

const (
	ruleNone       stateRule = iota // no rule: an internal error
	rulePass                        // continue
	ruleDisabled                    // DisabledException
	rulePending                     // KMSInvalidStateException: is pending deletion
	ruleNotPending                  // KMSInvalidStateException: is not pending deletion
	ruleImport                      // KMSInvalidStateException: is pending import
	ruleOrigin                      // UnsupportedOperationException: not for this origin
)

// StateRules has a rule for each key state, indexed by its number.
type StateRules [6]stateRule

// The rules that operations have, from AWS's table of key states.
var (
	// Usable is for cryptographic operations.
	Usable = rules(rulePass, ruleDisabled, rulePending, ruleImport)
	// Changeable is for changes to keys that are not scheduled for deletion.
	Changeable = rules(rulePass, rulePass, rulePending, rulePass)
	// Switchable is for EnableKey and DisableKey: a key without material can be neither.
	Switchable = rules(rulePass, rulePass, rulePending, ruleImport)
	// Rotatable is for automatic rotation, which imported keys do not have.
	Rotatable = rules(rulePass, ruleDisabled, rulePending, ruleOrigin)
	// AnyState is for reads and for operations that must always work.
	AnyState = rules(rulePass, rulePass, rulePass, rulePass)
	// OnlyPending is for CancelKeyDeletion.
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

// Check returns the error for a key in the given state, or nil.
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
