package keyengine

import (
	"encoding/hex"
	"net/url"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	storePrefix = "cks-"

	connectivityPublic = "PUBLIC_ENDPOINT"
	connectivityVPC    = "VPC_ENDPOINT_SERVICE"

	stateUnavailable = "Unavailable"
)

// shownState is a key's state as AWS tells it.
func shownState(ev *eval, k *fsmpb.Key) string {
	if k.KeyStore != "" && switchedOn(k.State) {
		if s := ev.keyStore(k.KeyStore); s == nil || s.State != storeConnected {
			return stateUnavailable
		}
	}
	return keyStates[k.State]
}

// storeKeyMembers checks which members go with keys in custom key stores.
func storeKeyMembers(in *kmsapi.CreateKeyInput) error {
	origin := originOf(in)
	inStore := origin == kmsapi.OriginXKS || origin == kmsapi.OriginHSM
	switch {
	case origin != kmsapi.OriginXKS && in.XksKeyId != nil:
		return kmsapi.Errorf(kmsapi.ErrValidation, "XksKeyId is not valid with Origin %s.", origin)
	case isSet(in.MultiRegion):
		return nil // refused by supportedKey
	case inStore && in.CustomKeyStoreId == nil:
		return kmsapi.Errorf(kmsapi.ErrValidation, "Origin %s needs a CustomKeyStoreId.", origin)
	case !inStore && in.CustomKeyStoreId != nil:
		return kmsapi.Errorf(kmsapi.ErrValidation, "CustomKeyStoreId is not valid with Origin %s.", origin)
	case origin == kmsapi.OriginXKS && in.XksKeyId == nil:
		return missing("xksKeyId")
	}
	return nil
}

// putInStore puts a new key into the store that the request names, if it does. It
// asks the store last, when everything else is known to be well.
func putInStore(ev *eval, k *fsmpb.Key, in *kmsapi.CreateKeyInput) error {
	if in.CustomKeyStoreId == nil {
		return nil
	}
	s, err := storeNamed(ev, *in.CustomKeyStoreId)
	switch {
	case err != nil:
		return err
	case s.Type != k.Origin:
		return kmsapi.Errorf(kmsapi.ErrUnsupported, "The custom key store %s has type %s, which has no keys of Origin %s.", s.Id, s.Type, k.Origin)
	case s.State != storeConnected:
		return wrongStoreState(s)
	}
	k.KeyStore = s.Id
	if s.Type == kmsapi.OriginXKS {
		k.XksKey = *in.XksKeyId
		if storeHas(ev, s.Id, k.XksKey) {
			return kmsapi.Errorf(kmsapi.ErrXksKeyAlreadyInUse, "The external key %s is that of another KMS key in the custom key store %s.", k.XksKey, s.Id)
		}
	}
	return checkStoreKey(ev, s, k.XksKey)
}

// storeHas tells whether an external key is a KMS key's already, and notes the set
// of the store's keys.
func storeHas(ev *eval, store, xksKey string) bool {
	if ev.storeKeys(store).GetCount() == 0 {
		return false
	}
	for k := range ev.state.AllKeys() {
		if k.KeyStore == store && k.XksKey == xksKey {
			return true
		}
	}
	return false
}

// putStore changes a custom key store.
func putStore(ev *eval, s *fsmpb.KeyStore) {
	ev.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: s}})
}

// newStoreID makes an id of AWS's form: 17 hex digits.
func newStoreID(random [9]byte) string { return storePrefix + hex.EncodeToString(random[:])[:17] }

// endpointAllowed checks an endpoint that matched the pattern, which takes a port:
// AWS takes none, and neither does a node whose operator has not allowed private
// endpoints.
func (s *KeyStores) endpointAllowed(endpoint string) error {
	refused := kmsapi.Errorf(kmsapi.ErrValidation, "1 validation error detected: Value at 'xksProxyUriEndpoint' failed to satisfy constraint: "+
		"Member must satisfy regular expression pattern: %s", kmsapi.PatternOf("xksEndpoint").String())
	u, err := url.Parse(endpoint)
	if err != nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") {
		return refused
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !s.allowPrivate {
			return refused
		}
	}
	return nil
}
