package conformance

import (
	"slices"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/xksproxy"
)

// ofStore are the members that descriptions of external key stores have.
var ofStore = []string{"CustomKeyStoresListEntry.XksProxyConfiguration"}

// storeExamples have two external key stores behind one proxy: one that works, and
// one that cannot be connected.
var storeExamples = []example{
	{op: "CreateCustomKeyStore", in: newStore("first", xksproxy.Path)},
	{op: "CreateCustomKeyStore", of: "second", in: newStore("second", xksproxy.TenantPath)},
	{op: "DescribeCustomKeyStores", with: ofStore},
	{op: "DescribeCustomKeyStores", of: "page", in: given(harness.Members{"Limit": 1}),
		with: append(slices.Clone(ofStore), "DescribeCustomKeyStoresResponse.NextMarker")},
	{op: "ConnectCustomKeyStore", in: storeRequest("", nil)},
	{op: "CreateKey", of: "external", in: func(w *exampleWorld) harness.Members {
		w.proxy.AddKey("outside")
		return storeRequest("", harness.Members{"Origin": "EXTERNAL_KEY_STORE", "XksKeyId": "outside"})(w)
	}, with: append(slices.Clone(ofAwaited), "KeyMetadata.CustomKeyStoreId", "KeyMetadata.XksKeyConfiguration")},
	{op: "Encrypt", of: "external", in: on("external", harness.Members{"Plaintext": message})},
	{op: "ConnectCustomKeyStore", of: "that fails", in: func(w *exampleWorld) harness.Members {
		w.proxy.Fail(xksproxy.Health, xksproxy.Named("AccessDeniedException"))
		return storeRequest("second", nil)(w)
	}},
	{op: "DescribeCustomKeyStores", of: "failed", in: storeRequest("second", nil),
		with: append(slices.Clone(ofStore), "CustomKeyStoresListEntry.ConnectionErrorCode")},
	{op: "DisconnectCustomKeyStore", in: storeRequest("second", nil)},
	{op: "UpdateCustomKeyStore", in: storeRequest("second", harness.Members{"NewCustomKeyStoreName": "other"})},
	{op: "DeleteCustomKeyStore", in: storeRequest("second", nil)},
}

// newStore makes a request for an external key store at a path of the proxy's.
func newStore(name, path string) func(*exampleWorld) harness.Members {
	return func(w *exampleWorld) harness.Members {
		return harness.Members{
			"CustomKeyStoreName": name, "CustomKeyStoreType": "EXTERNAL_KEY_STORE", "XksProxyConnectivity": "PUBLIC_ENDPOINT",
			"XksProxyUriEndpoint": w.proxy.Endpoint, "XksProxyUriPath": path,
			"XksProxyAuthenticationCredential": harness.Members{"AccessKeyId": xksproxy.AccessKeyID, "RawSecretAccessKey": xksproxy.Secret},
		}
	}
}

// storeRequest makes a request on a key store, with more members.
func storeRequest(store string, more harness.Members) func(*exampleWorld) harness.Members {
	return func(w *exampleWorld) harness.Members {
		e := example{op: "CreateCustomKeyStore", of: store}
		m := harness.Members{"CustomKeyStoreId": w.of(e.name(), "CustomKeyStoreId")}
		for name, v := range more {
			m[name] = v
		}
		return m
	}
}
