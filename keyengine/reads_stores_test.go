package keyengine

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// storeReadCases are those of custom key stores and the keys in them. All are asked
// by the account's root user.
func storeReadCases() []readCase {
	const (
		kindStore  = fsmpb.Kind_KIND_KEY_STORE
		kindStores = fsmpb.Kind_KIND_KEY_STORES
		kindKeys   = fsmpb.Kind_KIND_STORE_KEYS
		onKey      = "KEY KEY_POLICY CREDENTIAL KEY_STORE"
	)
	store := func(w *readWorld) []byte { return fsm.KeyStoreID(testAccountNumber, w.store) }
	all := func(*readWorld) []byte { return fsm.AccountID(testAccountNumber) }
	// withStore prepares a world that has a store, connected, and a key in it.
	withStore := func(in func(w *readWorld, p *xksproxy.Proxy) any) func(*readWorld) any {
		return func(w *readWorld) any {
			p := w.newProxy()
			w.store = w.newStore(p)
			w.stored, _ = w.newStoreKey(p, w.store, "k")
			return in(w, p)
		}
	}
	disconnected := func(in func(w *readWorld, p *xksproxy.Proxy) any) func(*readWorld) any {
		return withStore(func(w *readWorld, p *xksproxy.Proxy) any {
			must[request.None](w.room, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &w.store})
			return in(w, p)
		})
	}
	state := func(s fsmpb.ConnectionState) func(*readWorld) {
		return func(w *readWorld) { w.mangleStore(w.store, func(k *fsmpb.KeyStore) { k.State = s }) }
	}
	another := func(id, name, path string) func(*readWorld) {
		return func(w *readWorld) {
			s, _ := w.cluster.state().KeyStore(testAccountNumber, w.store)
			w.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: &fsmpb.KeyStore{
				Account: uint64(testAccountNumber), Id: id, Region: testRegion, Name: name, Type: kmsapi.OriginXKS, Endpoint: s.GetEndpoint(), Path: path, Created: 1, State: request.StoreDisconnected,
			}}})
		}
	}
	encrypt := withStore(func(w *readWorld, _ *xksproxy.Proxy) any {
		return &kmsapi.EncryptInput{KeyId: &w.stored, Plaintext: []byte("x")}
	})
	decrypt := withStore(func(w *readWorld, _ *xksproxy.Proxy) any {
		return &kmsapi.DecryptInput{CiphertextBlob: must[kmsapi.EncryptOutput](w.room, "Encrypt", &kmsapi.EncryptInput{KeyId: &w.stored, Plaintext: []byte("x")}).CiphertextBlob}
	})
	describe := withStore(func(w *readWorld, _ *xksproxy.Proxy) any { return &kmsapi.DescribeKeyInput{KeyId: &w.stored} })
	newKey := withStore(func(w *readWorld, p *xksproxy.Proxy) any {
		p.AddKey("new")
		return inStore(w.store, "new")
	})
	newStore := withStore(func(_ *readWorld, p *xksproxy.Proxy) any {
		in := storeAt(p, "new")
		in.XksProxyUriPath = new(xksproxy.TenantPath)
		return in
	})
	rename := withStore(func(w *readWorld, _ *xksproxy.Proxy) any {
		return &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: &w.store, NewCustomKeyStoreName: new("new")}
	})
	remove := disconnected(func(w *readWorld, _ *xksproxy.Proxy) any {
		w.deleteIn(testRegion, w.stored)
		return &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &w.store}
	})
	byID := withStore(func(w *readWorld, _ *xksproxy.Proxy) any {
		return &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: &w.store}
	})
	byName := withStore(func(*readWorld, *xksproxy.Proxy) any {
		return &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreName: new("new")}
	})
	connect := disconnected(func(w *readWorld, _ *xksproxy.Proxy) any {
		return &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &w.store}
	})
	disconnect := withStore(func(w *readWorld, _ *xksproxy.Proxy) any {
		return &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &w.store}
	})
	keyTaken := func(w *readWorld) {
		k := cloneOf(w.keyIn(testRegion, w.stored))
		k.Id, k.XksKey = append([]byte("another key of t"), 0)[:16], "new"
		w.cluster.change(putKeyChange(k), defaultPolicyChange(k))
	}
	const wrongState = "CustomKeyStoreInvalidStateException"
	return []readCase{
		{"encrypt, store disconnected", "Encrypt", encrypt, kindStore, store, state(request.StoreDisconnected), "ok", "KMSInvalidStateException", onKey, true, false},
		{"encrypt, store failed", "Encrypt", encrypt, kindStore, store, state(request.StoreFailed), "ok", "KMSInvalidStateException", onKey, true, false},
		{"decrypt, store disconnected", "Decrypt", decrypt, kindStore, store, state(request.StoreDisconnected), "ok", "KMSInvalidStateException", onKey, true, false},
		{"describe, store disconnected", "DescribeKey", describe, kindStore, store, state(request.StoreDisconnected), "ok Enabled", "ok Unavailable", onKey, true, false},
		{"key made, store disconnected", "CreateKey", newKey, kindStore, store, state(request.StoreDisconnected), "ok", wrongState, "KEY CREDENTIAL KEY_STORE STORE_KEYS", true, false},
		{"key made, external key taken", "CreateKey", newKey, kindKeys, store, keyTaken, "ok", "XksKeyAlreadyInUseException", "KEY CREDENTIAL KEY_STORE STORE_KEYS", true, false},
		{"store made, name taken", "CreateCustomKeyStore", newStore, kindStores, all, another("cks-x", "new", "/x"), "ok", "CustomKeyStoreNameInUseException", "CREDENTIAL KEY_STORE KEY_STORES", true, false},
		{"store made, place taken", "CreateCustomKeyStore", newStore, kindStores, all, another("cks-x", "x", xksproxy.TenantPath), "ok", "XksProxyUriInUseException", "CREDENTIAL KEY_STORE KEY_STORES", true, false},
		{"store made, quota", "CreateCustomKeyStore", newStore, kindStores, all, func(w *readWorld) {
			for i := range request.DefaultQuotas.KeyStores {
				another(fmt.Sprint("cks-", i), fmt.Sprint(i), fmt.Sprint("/", i))(w)
			}
		}, "ok", "LimitExceededException", "CREDENTIAL KEY_STORE KEY_STORES", true, false},
		{"store renamed, name taken", "UpdateCustomKeyStore", rename, kindStores, all, another("cks-x", "new", "/x"), "ok", "CustomKeyStoreNameInUseException", "CREDENTIAL KEY_STORE KEY_STORES", true, false},
		{"store connected, failed meanwhile", "ConnectCustomKeyStore", connect, kindStore, store, state(request.StoreFailed), "ok", wrongState, "CREDENTIAL KEY_STORE", true, false},
		{"store disconnected, by another", "DisconnectCustomKeyStore", disconnect, kindStore, store, state(request.StoreDisconnected), "ok", wrongState, "CREDENTIAL KEY_STORE", true, false},
		{"store deleted, connected meanwhile", "DeleteCustomKeyStore", remove, kindStore, store, state(request.StoreConnected), "ok", wrongState, "CREDENTIAL KEY_STORE STORE_KEYS", true, false},
		{"store described, disconnected", "DescribeCustomKeyStores", byID, kindStore, store, state(request.StoreDisconnected), "ok CONNECTED", "ok DISCONNECTED", "CREDENTIAL KEY_STORE", true, false},
		{"store by name, made meanwhile", "DescribeCustomKeyStores", byName, kindStores, all, another("cks-x", "new", "/x"), "CustomKeyStoreNotFoundException", "ok DISCONNECTED", "CREDENTIAL KEY_STORES", true, false},
		{"stores listed", "DescribeCustomKeyStores", func(*readWorld) any { return &kmsapi.DescribeCustomKeyStoresInput{} }, 0, nil, nil, "ok", "", "CREDENTIAL", true, false},
	}
}
