package ops

import (
	"encoding/hex"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	storePrefix = "cks-"

	ConnectivityPublic = "PUBLIC_ENDPOINT"
	ConnectivityVPC    = "VPC_ENDPOINT_SERVICE"

	stateUnavailable = "Unavailable"
)

// shownState returns a key's state as answers have it. An enabled or disabled key whose
// store is not connected is unavailable.
func shownState(ev *request.Evaluation, k *fsmpb.Key) string {
	if k.KeyStore != "" && request.SwitchedOn(k.State) {
		if s := ev.KeyStore(k.KeyStore); s == nil || s.State != request.StoreConnected {
			return stateUnavailable
		}
	}
	return KeyStates[k.State]
}

// storeKeyMembers validates the members that concern custom key stores.
func storeKeyMembers(in *kmsapi.CreateKeyInput) error {
	origin := originOf(in)
	inStore := origin == kmsapi.OriginXKS || origin == kmsapi.OriginHSM
	switch {
	case origin != kmsapi.OriginXKS && in.XksKeyId != nil:
		return kmsapi.Errorf(kmsapi.ErrValidation, "XksKeyId is not valid with Origin %s.", origin)
	case request.IsSet(in.MultiRegion):
		return nil // refused by supportedKey
	case inStore && in.CustomKeyStoreId == nil:
		return kmsapi.Errorf(kmsapi.ErrValidation, "Origin %s needs a CustomKeyStoreId.", origin)
	case !inStore && in.CustomKeyStoreId != nil:
		return kmsapi.Errorf(kmsapi.ErrValidation, "CustomKeyStoreId is not valid with Origin %s.", origin)
	case origin == kmsapi.OriginXKS && in.XksKeyId == nil:
		return kmsapi.MissingMember("xksKeyId")
	}
	return nil
}

// putInStore assigns a new key to the custom key store that the request names, if any. The
// store is called last, after all other checks.
func putInStore(ev *request.Evaluation, k *fsmpb.Key, in *kmsapi.CreateKeyInput) error {
	if in.CustomKeyStoreId == nil {
		return nil
	}
	s, err := request.KeyStoreNamed(ev, *in.CustomKeyStoreId)
	switch {
	case err != nil:
		return err
	case s.Type != k.Origin:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "The custom key store %s has type %s, which has no keys of Origin %s.", s.Id, s.Type, k.Origin)
	case s.State != request.StoreConnected:
		return request.WrongStoreState(s)
	}
	k.KeyStore = s.Id
	if s.Type == kmsapi.OriginXKS {
		k.XksKey = *in.XksKeyId
		if storeHas(ev, s.Id, k.XksKey) {
			return kmsapi.Errorf(kmsapi.ErrXksKeyAlreadyInUse, "The external key %s is that of another KMS key in the custom key store %s.", k.XksKey, s.Id)
		}
	}
	return cryptops.CheckStoreKey(ev, s, k.XksKey)
}

// storeHas reports whether an external key already belongs to a KMS key, and adds the set
// of the store's keys to the read set.
func storeHas(ev *request.Evaluation, store, xksKey string) bool {
	if ev.StoreKeys(store).GetCount() == 0 {
		return false
	}
	for k := range ev.State.AllKeys() {
		if k.KeyStore == store && k.XksKey == xksKey {
			return true
		}
	}
	return false
}

// putStore adds a change of a custom key store to the record.
func putStore(ev *request.Evaluation, s *fsmpb.KeyStore) {
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: s}})
}

// newStoreID returns an id of AWS's form, with 17 hexadecimal digits.
func newStoreID(random [9]byte) string { return storePrefix + hex.EncodeToString(random[:])[:17] }
