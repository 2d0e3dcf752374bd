package request

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A custom key store is outside of the cluster. What it holds encrypts once more
// what the material of its keys here has encrypted, so that neither side can
// decrypt alone. Keys in a store that is not connected are unavailable, whatever
// their state: who uses a key depends on its store, and notes it.

const (
	StoreDisconnected = fsmpb.ConnectionState_CONNECTION_STATE_DISCONNECTED
	StoreConnected    = fsmpb.ConnectionState_CONNECTION_STATE_CONNECTED
	StoreFailed       = fsmpb.ConnectionState_CONNECTION_STATE_FAILED
)

// ConnectionStates are AWS's names of the states. Connecting and disconnecting are
// done when their calls return, so stores are never seen in between.
var ConnectionStates = map[fsmpb.ConnectionState]string{
	StoreDisconnected: "DISCONNECTED", StoreConnected: "CONNECTED", StoreFailed: "FAILED",
}

// KeyStoreNamed finds a custom key store of the Region.
func KeyStoreNamed(ev *Evaluation, id string) (*fsmpb.KeyStore, error) {
	s := ev.KeyStore(id)
	if s == nil || s.Region != ev.Region() {
		return nil, kmsapi.ErrCustomStoreNotFound
	}
	return s, nil
}

// KeyStoresOf are all custom key stores of the Region, and their set is noted.
func KeyStoresOf(ev *Evaluation) (all []*fsmpb.KeyStore) {
	ev.keyStores()
	for s := range ev.State.AllKeyStores(AccountOf(ev)) {
		if s.Region == ev.Region() {
			all = append(all, s)
		}
	}
	return all
}

// StoreOf is the store of a key; nil for keys that are in none. A key outlives no
// store of its, which apply sees to.
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

// Available refuses a key whose store is not connected. A key that is on its way
// out stays so, and is told apart by its state.
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

// WrongStoreState refuses an operation for the state of a store.
func WrongStoreState(s *fsmpb.KeyStore) error {
	return kmsapi.Errorf(kmsapi.ErrCustomStoreInvalidState, "The custom key store %s is %s, which is not valid for this operation.", s.Id, ConnectionStates[s.State])
}
