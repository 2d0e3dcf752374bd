package keyengine

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
	storeDisconnected = fsmpb.ConnectionState_CONNECTION_STATE_DISCONNECTED
	storeConnected    = fsmpb.ConnectionState_CONNECTION_STATE_CONNECTED
	storeFailed       = fsmpb.ConnectionState_CONNECTION_STATE_FAILED
)

// connectionStates are AWS's names of the states. Connecting and disconnecting are
// done when their calls return, so stores are never seen in between.
var connectionStates = map[fsmpb.ConnectionState]string{
	storeDisconnected: "DISCONNECTED", storeConnected: "CONNECTED", storeFailed: "FAILED",
}

// store finds a custom key store of the Region.
func storeNamed(ev *eval, id string) (*fsmpb.KeyStore, error) {
	s := ev.keyStore(id)
	if s == nil || s.Region != ev.region() {
		return nil, kmsapi.ErrCustomStoreNotFound
	}
	return s, nil
}

// stores are all custom key stores of the Region, and their set is noted.
func storesOf(ev *eval) (all []*fsmpb.KeyStore) {
	ev.keyStores()
	for s := range ev.state.AllKeyStores(accountOf(ev)) {
		if s.Region == ev.region() {
			all = append(all, s)
		}
	}
	return all
}

// storeOf is the store of a key; nil for keys that are in none. A key outlives no
// store of its, which apply sees to.
func storeOf(ev *eval, k *fsmpb.Key) (*fsmpb.KeyStore, error) {
	if k.KeyStore == "" {
		return nil, nil
	}
	s := ev.keyStore(k.KeyStore)
	if s == nil {
		return nil, fmt.Errorf("key %x is in key store %s, which does not exist", k.Id, k.KeyStore)
	}
	return s, nil
}

// available refuses a key whose store is not connected. A key that is on its way
// out stays so, and is told apart by its state.
func available(ev *eval, t *target) error {
	s, err := storeOf(ev, t.key)
	if err != nil || s == nil {
		return err
	}
	if s.State != storeConnected && switchedOn(t.key.State) {
		return kmsapi.Errorf(kmsapi.ErrInvalidState, "%s is unavailable.", t.arn)
	}
	return nil
}

// wrongStoreState refuses an operation for the state of a store.
func wrongStoreState(s *fsmpb.KeyStore) error {
	return kmsapi.Errorf(kmsapi.ErrCustomStoreInvalidState, "The custom key store %s is %s, which is not valid for this operation.", s.Id, connectionStates[s.State])
}
