package request

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A custom key store is outside the cluster. Its key encrypts again what a KMS key's
// material here has encrypted, so that neither side can decrypt alone. Keys in a store that
// is not connected are unavailable, whatever their state, so a request that uses such a key
// has the store in its read set.

const (
	StoreDisconnected = fsmpb.ConnectionState_CONNECTION_STATE_DISCONNECTED
	StoreConnected    = fsmpb.ConnectionState_CONNECTION_STATE_CONNECTED
	StoreFailed       = fsmpb.ConnectionState_CONNECTION_STATE_FAILED
)

// ConnectionStates are AWS's names of the states. Connecting and disconnecting finish
// before their calls return, so the transitional states do not occur.
var ConnectionStates = map[fsmpb.ConnectionState]string{
	StoreDisconnected: "DISCONNECTED", StoreConnected: "CONNECTED", StoreFailed: "FAILED",
}

// KeyStoreNamed returns a custom key store of the request's Region.
func KeyStoreNamed(ev *Evaluation, id string) (*fsmpb.KeyStore, error) {
	s := ev.KeyStore(id)
	if s == nil || s.Region != ev.Region() {
		return nil, kmsapi.ErrCustomStoreNotFound
	}
	return s, nil
}

// KeyStoresOf returns all custom key stores of the request's Region and adds their set to
// the read set.
func KeyStoresOf(ev *Evaluation) (all []*fsmpb.KeyStore) {
	keyStores(ev)
	for s := range ev.State.AllKeyStores(AccountOf(ev)) {
		if s.Region == ev.Region() {
			all = append(all, s)
		}
	}
	return all
}

// StoreOf returns the store of a key, or nil if the key is in none. Apply ensures that a
// store is not deleted before its keys.
func StoreOf(ev *Evaluation, k *fsmpb.Key) (*fsmpb.KeyStore, error) {
	if k.KeyStore == "" {
		return nil, nil
	}
	s := ev.KeyStore(k.KeyStore)
	if s == nil {
		return nil, fmt.Errorf("key %x is in key store %s, which does not exist", k.Id, k.KeyStore)
	}
	return s, nil
}

// Available refuses a key whose store is not connected, unless the key's state already
// prevents its use.
func Available(ev *Evaluation, t *Target) error {
	s, err := StoreOf(ev, t.Key)
	if err != nil || s == nil {
		return err
	}
	if s.State != StoreConnected && SwitchedOn(t.Key.State) {
		return kmsapi.Errorf(kmsapi.ErrInvalidState, "%s is unavailable.", t.ARN)
	}
	return nil
}

// WrongStoreState returns the error for an operation that the state of a store does not
// allow.
func WrongStoreState(s *fsmpb.KeyStore) error {
	return kmsapi.Errorf(kmsapi.ErrCustomStoreInvalidState, "The custom key store %s is %s, which is not valid for this operation.", s.Id, ConnectionStates[s.State])
}
