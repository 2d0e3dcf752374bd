package keyengine

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// storeReadCases are the cases of custom key stores and the keys in them. All requests are
// the root user's.
func storeReadCases() []readCase {
	const (
		kindStore  = fsmpb.Kind_KIND_KEY_STORE
		kindStores = fsmpb.Kind_KIND_KEY_STORES
		kindKeys   = fsmpb.Kind_KIND_STORE_KEYS
		onKey      = "KEY KEY_POLICY CREDENTIAL KEY_STORE"
	)
	store := func(f *readFixture) []byte { return fsm.KeyStoreID(testAccountNumber, f.store) }
	all := func(*readFixture) []byte { return fsm.AccountID(testAccountNumber) }
	// withStore makes a key store that is connected, and a key in it.
	withStore := func(in func(f *readFixture, p *xksproxy.Proxy) any) func(*readFixture) any {
		return func(f *readFixture) any {
			p := f.newProxy()
			f.store = f.newStore(p)
			f.inStore, _ = f.newStoreKey(p, f.store, "k")
			return in(f, p)
		}
	}
	disconnected := func(in func(f *readFixture, p *xksproxy.Proxy) any) func(*readFixture) any {
		return withStore(func(f *readFixture, p *xksproxy.Proxy) any {
			must[request.None](f.testCluster, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &f.store})
			return in(f, p)
		})
	}
	state := func(s fsmpb.ConnectionState) func(*readFixture) {
		return func(f *readFixture) { f.modifyStore(f.store, func(k *fsmpb.KeyStore) { k.State = s }) }
	}
	another := func(id, name, path string) func(*readFixture) {
		return func(f *readFixture) {
			s, _ := f.State().KeyStore(testAccountNumber, f.store)
			f.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: &fsmpb.KeyStore{
				Account: uint64(testAccountNumber), Id: id, Region: testRegion, Name: name, Type: kmsapi.OriginXKS, Endpoint: s.GetEndpoint(), Path: path, Created: 1, State: request.StoreDisconnected,
			}}})
		}
	}
	encrypt := withStore(func(f *readFixture, _ *xksproxy.Proxy) any {
		return &kmsapi.EncryptInput{KeyId: &f.inStore, Plaintext: []byte("x")}
	})
	decrypt := withStore(func(f *readFixture, _ *xksproxy.Proxy) any {
		return &kmsapi.DecryptInput{CiphertextBlob: must[kmsapi.EncryptOutput](f.testCluster, "Encrypt", &kmsapi.EncryptInput{KeyId: &f.inStore, Plaintext: []byte("x")}).CiphertextBlob}
	})
	describe := withStore(func(f *readFixture, _ *xksproxy.Proxy) any { return &kmsapi.DescribeKeyInput{KeyId: &f.inStore} })
	newKey := withStore(func(f *readFixture, p *xksproxy.Proxy) any {
		p.AddKey("new")
		return inStore(f.store, "new")
	})
	newStore := withStore(func(_ *readFixture, p *xksproxy.Proxy) any {
		in := storeAt(p, "new")
		in.XksProxyUriPath = new(xksproxy.TenantPath)
		return in
	})
	rename := withStore(func(f *readFixture, _ *xksproxy.Proxy) any {
		return &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: &f.store, NewCustomKeyStoreName: new("new")}
	})
	remove := disconnected(func(f *readFixture, _ *xksproxy.Proxy) any {
		f.deleteKeyIn(testRegion, f.inStore)
		return &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &f.store}
	})
	byID := withStore(func(f *readFixture, _ *xksproxy.Proxy) any {
		return &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: &f.store}
	})
	byName := withStore(func(*readFixture, *xksproxy.Proxy) any {
		return &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreName: new("new")}
	})
	connect := disconnected(func(f *readFixture, _ *xksproxy.Proxy) any {
		return &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &f.store}
	})
	disconnect := withStore(func(f *readFixture, _ *xksproxy.Proxy) any {
		return &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &f.store}
	})
	keyTaken := func(f *readFixture) {
		k := proto.CloneOf(f.keyIn(testRegion, f.inStore))
		k.Id, k.XksKey = append([]byte("another key of t"), 0)[:16], "new"
		f.Change(putKeyChange(k), defaultPolicyChange(k))
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
		{"store made, quota", "CreateCustomKeyStore", newStore, kindStores, all, func(f *readFixture) {
			for i := range request.DefaultQuotas.KeyStores {
				another(fmt.Sprint("cks-", i), fmt.Sprint(i), fmt.Sprint("/", i))(f)
			}
		}, "ok", "LimitExceededException", "CREDENTIAL KEY_STORE KEY_STORES", true, false},
		{"store renamed, name taken", "UpdateCustomKeyStore", rename, kindStores, all, another("cks-x", "new", "/x"), "ok", "CustomKeyStoreNameInUseException", "CREDENTIAL KEY_STORE KEY_STORES", true, false},
		{"store connected, failed meanwhile", "ConnectCustomKeyStore", connect, kindStore, store, state(request.StoreFailed), "ok", wrongState, "CREDENTIAL KEY_STORE", true, false},
		{"store disconnected, by another", "DisconnectCustomKeyStore", disconnect, kindStore, store, state(request.StoreDisconnected), "ok", wrongState, "CREDENTIAL KEY_STORE", true, false},
		{"store deleted, connected meanwhile", "DeleteCustomKeyStore", remove, kindStore, store, state(request.StoreConnected), "ok", wrongState, "CREDENTIAL KEY_STORE STORE_KEYS", true, false},
		{"store described, disconnected", "DescribeCustomKeyStores", byID, kindStore, store, state(request.StoreDisconnected), "ok CONNECTED", "ok DISCONNECTED", "CREDENTIAL KEY_STORE", true, false},
		{"store by name, made meanwhile", "DescribeCustomKeyStores", byName, kindStores, all, another("cks-x", "new", "/x"), "CustomKeyStoreNotFoundException", "ok DISCONNECTED", "CREDENTIAL KEY_STORES", true, false},
		{"stores listed", "DescribeCustomKeyStores", func(*readFixture) any { return &kmsapi.DescribeCustomKeyStoresInput{} }, 0, nil, nil, "ok", "", "CREDENTIAL", true, false},
	}
}
