package keyengine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// storeOperations are the operations on custom key stores.
var storeOperations = []string{
	"CreateCustomKeyStore", "ConnectCustomKeyStore", "DisconnectCustomKeyStore", "DescribeCustomKeyStores", "UpdateCustomKeyStore", "DeleteCustomKeyStore",
}

// newProxy starts a proxy of an external key store that all engines may use, with a generous
// timeout.
func (c *testCluster) newProxy() *xksproxy.Proxy {
	c.t.Helper()
	p := xksproxy.Start(c.t)
	c.useKeyStores(keystore.Config{AllowPrivateEndpoints: true, Roots: p.Roots(), Timeout: time.Minute})
	return p
}

// useKeyStores gives all engines other settings for key stores.
func (c *testCluster) useKeyStores(cfg keystore.Config) {
	c.t.Helper()
	for _, e := range c.engines {
		s, err := keystore.Open(cfg, c.Clock.Now)
		if err != nil {
			c.t.Fatal(err)
		}
		e.services.Stores.Close()
		e.services.Stores = s // closed with the engine
	}
}

func storeAt(p *xksproxy.Proxy, name string) *kmsapi.CreateCustomKeyStoreInput {
	return &kmsapi.CreateCustomKeyStoreInput{
		CustomKeyStoreName: &name, CustomKeyStoreType: new(kmsapi.OriginXKS), XksProxyConnectivity: new(ops.ConnectivityPublic),
		XksProxyUriEndpoint: &p.Endpoint, XksProxyUriPath: new(xksproxy.Path), XksProxyAuthenticationCredential: testCredential(),
	}
}

func testCredential() *kmsapi.XksProxyAuthenticationCredential {
	return &kmsapi.XksProxyAuthenticationCredential{AccessKeyId: new(xksproxy.AccessKeyID), RawSecretAccessKey: new(xksproxy.Secret)}
}

// newStore creates a key store that is connected to a proxy.
func (c *testCluster) newStore(p *xksproxy.Proxy) string {
	c.t.Helper()
	id := must[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", storeAt(p, "store")).CustomKeyStoreId
	must[request.None](c, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: id})
	return *id
}

func (c *testCluster) describeStore(id string) kmsapi.CustomKeyStoresListEntry {
	c.t.Helper()
	return must[kmsapi.DescribeCustomKeyStoresOutput](c, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: &id}).CustomKeyStores[0]
}

// modifyStore changes a key store in the state.
func (c *testCluster) modifyStore(id string, f func(*fsmpb.KeyStore)) {
	c.t.Helper()
	was, _ := c.State().KeyStore(testAccountNumber, id)
	s := proto.CloneOf(was)
	f(s)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: s}})
}

// A key store from its creation to its deletion.
func TestStoreLife(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	id := *must[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", storeAt(p, "mine")).CustomKeyStoreId
	if !strings.HasPrefix(id, "cks-") || len(id) != 21 {
		t.Errorf("got key store id %q, want cks- and 17 characters", id)
	}
	if h := p.Requests(xksproxy.Health); len(h) != 1 || h[0].Metadata.Operation != "CreateCustomKeyStore" || h[0].Region != testRegion {
		t.Errorf("the proxy got %+v, want one health request of CreateCustomKeyStore", h)
	}
	if rec := c.lastRecord(); len(rec.ResponseElements) != 1 || rec.ResponseElements[0].GetText() != id || rec.ReadOnly {
		t.Errorf("the record has response elements %v, want the id", rec.ResponseElements)
	}
	e := c.describeStore(id)
	config := e.XksProxyConfiguration
	if *e.ConnectionState != "DISCONNECTED" || e.ConnectionErrorCode != nil || *e.CustomKeyStoreName != "mine" || *e.CustomKeyStoreType != kmsapi.OriginXKS ||
		!e.CreationDate.Equal(c.Clock.Now()) || *config.AccessKeyId != xksproxy.AccessKeyID || *config.UriEndpoint != p.Endpoint || *config.UriPath != xksproxy.Path || *config.Connectivity != ops.ConnectivityPublic {
		t.Errorf("DescribeCustomKeyStores returned %+v", e)
	}
	byName := must[kmsapi.DescribeCustomKeyStoresOutput](c, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreName: new("mine")})
	all := must[kmsapi.DescribeCustomKeyStoresOutput](c, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{})
	for how, out := range map[string]*kmsapi.DescribeCustomKeyStoresOutput{"by name": byName, "all": all} {
		if len(out.CustomKeyStores) != 1 || *out.CustomKeyStores[0].CustomKeyStoreId != id || *out.Truncated {
			t.Errorf("DescribeCustomKeyStores, %s: got %+v", how, out)
		}
	}

	connect, disconnect := &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id}, &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id}
	_, err := call[request.None](c, "DisconnectCustomKeyStore", disconnect)
	wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "The custom key store "+id+" is DISCONNECTED, which is not valid for this operation.")
	must[request.None](c, "ConnectCustomKeyStore", connect)
	if s := *c.describeStore(id).ConnectionState; s != "CONNECTED" {
		t.Errorf("the key store is %s, want CONNECTED", s)
	}
	must[request.None](c, "ConnectCustomKeyStore", connect) // nothing changes
	_, err = call[request.None](c, "DeleteCustomKeyStore", &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id})
	wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "The custom key store "+id+" is CONNECTED, which is not valid for this operation.")
	must[request.None](c, "DisconnectCustomKeyStore", disconnect)

	p.Fail(xksproxy.Health, xksproxy.Named("AuthenticationFailedException"))
	must[request.None](c, "ConnectCustomKeyStore", connect)
	if e := c.describeStore(id); *e.ConnectionState != "FAILED" || *e.ConnectionErrorCode != "INVALID_CREDENTIALS" {
		t.Errorf("when the proxy refuses the credential, got %+v, want FAILED with INVALID_CREDENTIALS", e)
	}
	p.Fail(xksproxy.Health, nil)
	for name, in := range map[string]any{
		"ConnectCustomKeyStore": connect, "DeleteCustomKeyStore": &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id},
		"UpdateCustomKeyStore": &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: &id, NewCustomKeyStoreName: new("x")},
	} {
		_, err = call[request.None](c, name, in)
		wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "The custom key store "+id+" is FAILED, which is not valid for this operation.")
	}
	must[request.None](c, "DisconnectCustomKeyStore", disconnect)
	if e := c.describeStore(id); *e.ConnectionState != "DISCONNECTED" || e.ConnectionErrorCode != nil {
		t.Errorf("after DisconnectCustomKeyStore, got %+v, want DISCONNECTED", e)
	}
	must[request.None](c, "DeleteCustomKeyStore", &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id})
	_, err = call[kmsapi.DescribeCustomKeyStoresOutput](c, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: &id})
	wantError(t, err, kmsapi.ErrCustomStoreNotFound, "")
	if rec := c.lastRecord(); rec.ErrorCode != "CustomKeyStoreNotFoundException" {
		t.Errorf("the record has error %q, want CustomKeyStoreNotFoundException", rec.ErrorCode)
	}
}

func TestCreateStoreErrors(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	must[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", storeAt(p, "taken"))
	asked := len(p.Requests(xksproxy.Health))
	for _, tt := range []struct {
		name    string
		spoil   func(*kmsapi.CreateCustomKeyStoreInput)
		kind    *kmsapi.Error
		message string
	}{
		{"no connectivity", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyConnectivity = nil }, kmsapi.ErrValidation,
			"1 validation error detected: Value null at 'xksProxyConnectivity' failed to satisfy constraint: Member must not be null"},
		{"no endpoint", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = nil }, kmsapi.ErrValidation, "…"},
		{"no path", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriPath = nil }, kmsapi.ErrValidation, "…"},
		{"no credential", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyAuthenticationCredential = nil }, kmsapi.ErrValidation, "…"},
		{"short secret", func(in *kmsapi.CreateCustomKeyStoreInput) {
			in.XksProxyAuthenticationCredential.RawSecretAccessKey = new("SECRETCANARY")
		}, kmsapi.ErrValidation, "…"},
		{"half a credential", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyAuthenticationCredential.AccessKeyId = nil }, kmsapi.ErrValidation, "…"},
		{"no TLS", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = new("http://proxy.test") }, kmsapi.ErrValidation, "…"},
		{"user in the endpoint", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = new("https://a@proxy.test") }, kmsapi.ErrValidation, "…"},
		{"two ports", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = new("https://proxy.test:1:2") }, kmsapi.ErrValidation, "…"},
		{"port without number", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = new("https://proxy.test:") }, kmsapi.ErrValidation, "…"},
		{"port 0", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = new("https://proxy.test:0") }, kmsapi.ErrValidation, "…"},
		{"large port", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = new("https://proxy.test:65536") }, kmsapi.ErrValidation, "…"},
		{"no host", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = new("https://:443") }, kmsapi.ErrValidation, "…"},
		{"path that climbs", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriPath = new("/../kms/xks/v1") }, kmsapi.ErrValidation, "…"},
		{"member of another type", func(in *kmsapi.CreateCustomKeyStoreInput) { in.KeyStorePassword = new("password") }, kmsapi.ErrValidation, "…"},
		{"VPC member", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyVpcEndpointServiceOwner = new("111122223333") }, kmsapi.ErrValidation, "…"},
		{"VPC without service", func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyConnectivity = new(ops.ConnectivityVPC) }, kmsapi.ErrValidation, "…"},
		{"VPC", func(in *kmsapi.CreateCustomKeyStoreInput) {
			in.XksProxyConnectivity, in.XksProxyUriPath = new(ops.ConnectivityVPC), new("/vpc/kms/xks/v1")
			in.XksProxyVpcEndpointServiceName = new("com.amazonaws.vpce.eu-west-1.vpce-svc-0123456789abcdef0")
		}, kmsapi.ErrXksProxyVpcNotFound, "…"},
		{"name taken", func(in *kmsapi.CreateCustomKeyStoreInput) { in.CustomKeyStoreName = new("taken") }, kmsapi.ErrCustomStoreNameInUse, "…"},
		{"place taken", func(*kmsapi.CreateCustomKeyStoreInput) {}, kmsapi.ErrXksProxyURIInUse, "…"},
		{"default type", func(in *kmsapi.CreateCustomKeyStoreInput) {
			*in = kmsapi.CreateCustomKeyStoreInput{CustomKeyStoreName: new("hsm"), CloudHsmClusterId: new("cluster-abcdefghijk"), KeyStorePassword: new("password")}
		}, kmsapi.ErrUnsupported, "…"},
		{"external members without type", func(in *kmsapi.CreateCustomKeyStoreInput) { in.CustomKeyStoreType = nil }, kmsapi.ErrValidation, "…"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := storeAt(p, "new")
			tt.spoil(in)
			_, err := call[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", in)
			wantError(t, err, tt.kind, tt.message)
			if err != nil && strings.Contains(err.Error(), "SECRETCANARY") {
				t.Errorf("the error has the secret: %v", err)
			}
		})
	}
	if n := len(p.Requests(xksproxy.Health)); n != asked {
		t.Errorf("the proxy got %d requests for key stores that cannot be created, want 0", n-asked)
	}
	for i := range request.DefaultQuotas.KeyStores - 1 {
		in := storeAt(p, fmt.Sprint("n", i))
		c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: &fsmpb.KeyStore{
			Account: uint64(testAccountNumber), Id: fmt.Sprint("cks-", i), Region: testRegion, Name: *in.CustomKeyStoreName, Type: kmsapi.OriginXKS, Created: 1, State: request.StoreDisconnected,
		}}})
	}
	in := storeAt(p, "eleventh")
	in.XksProxyUriPath = new("/other" + xksproxy.Path)
	_, err := call[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", in)
	wantError(t, err, kmsapi.ErrLimitExceeded, "The account has 10 custom key stores and cannot have more.")
}

// Unless the operator allows it, an endpoint has no port and no address that is not public.
func TestStoreOperators(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	c.useKeyStores(keystore.Config{Roots: p.Roots(), Timeout: 10 * time.Second})
	_, err := call[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", storeAt(p, "x"))
	wantError(t, err, kmsapi.ErrValidation, "1 validation error detected: Value at 'xksProxyUriEndpoint' failed to satisfy constraint: Member must satisfy regular expression pattern: ^https://[a-zA-Z0-9.-]+$")
	in := storeAt(p, "x")
	in.XksProxyUriEndpoint = new("https://127.0.0.1")
	_, err = call[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", in)
	wantError(t, err, kmsapi.ErrXksProxyURIUnreachable, keystore.ReachMessage)
	if n := len(p.Requests(xksproxy.Health)); n != 0 {
		t.Errorf("the proxy got %d requests, want 0", n)
	}
}

func TestUpdateStore(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	other := xksproxy.Start(t)
	id := c.newStore(p)
	update := func(in kmsapi.UpdateCustomKeyStoreInput) error {
		in.CustomKeyStoreId = &id
		_, err := call[request.None](c, "UpdateCustomKeyStore", &in)
		return err
	}
	if err := update(kmsapi.UpdateCustomKeyStoreInput{NewCustomKeyStoreName: new("renamed")}); err != nil {
		t.Errorf("changing the name while connected: %v", err)
	}
	p.SetSecret("ANOTHERACCESSKEYIDAAAA", xksproxy.Secret+"x")
	asked := len(p.Requests(xksproxy.Health))
	if err := update(kmsapi.UpdateCustomKeyStoreInput{XksProxyAuthenticationCredential: &kmsapi.XksProxyAuthenticationCredential{AccessKeyId: new("ANOTHERACCESSKEYIDAAAA"), RawSecretAccessKey: new(xksproxy.Secret + "x")}}); err != nil {
		t.Errorf("changing the credential while connected: %v", err)
	}
	if n := len(p.Requests(xksproxy.Health)) - asked; n != 1 {
		t.Errorf("the proxy got %d requests with the new credential, want 1", n)
	}
	if e := c.describeStore(id); *e.CustomKeyStoreName != "renamed" || *e.XksProxyConfiguration.AccessKeyId != "ANOTHERACCESSKEYIDAAAA" || *e.ConnectionState != "CONNECTED" {
		t.Errorf("after the updates, got %+v", e)
	}
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriPath: new("/none" + xksproxy.Path)}), kmsapi.ErrXksProxyInvalidConfiguration, "…")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyAuthenticationCredential: &kmsapi.XksProxyAuthenticationCredential{AccessKeyId: new("ANOTHERACCESSKEYIDAAAA"), RawSecretAccessKey: new(xksproxy.Secret)}}),
		kmsapi.ErrXksProxyBadCredential, "…")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: &other.Endpoint}), kmsapi.ErrCustomStoreInvalidState, "…")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{}), kmsapi.ErrValidation, "There is nothing to update.")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{KeyStorePassword: new("password")}), kmsapi.ErrValidation, "…")
	must[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", storeAt(other, "second"))
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{NewCustomKeyStoreName: new("second")}), kmsapi.ErrCustomStoreNameInUse, "…")
	must[request.None](c, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id})
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: &other.Endpoint}), kmsapi.ErrXksProxyURIInUse, "…")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyVpcEndpointServiceOwner: new("111122223333")}), kmsapi.ErrValidation, "…")

	third := xksproxy.Start(t)
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: &third.Endpoint}), kmsapi.ErrXksProxyBadCredential, "…")
	third.SetSecret("ANOTHERACCESSKEYIDAAAA", xksproxy.Secret+"x")
	if err := update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: &third.Endpoint}); err != nil {
		t.Fatalf("changing the endpoint while disconnected: %v", err)
	}
	// The secret is still valid for the new endpoint.
	must[request.None](c, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id})
	if e := c.describeStore(id); *e.ConnectionState != "CONNECTED" || *e.XksProxyConfiguration.UriEndpoint != third.Endpoint {
		t.Errorf("with the new endpoint, got %+v, want CONNECTED", e)
	}
}

// The secret of a key store is encrypted in the state and not in the records, and can be
// decrypted only for its endpoint, path and access key.
func TestStoreSecret(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	id := c.newStore(p)
	s, _ := c.State().KeyStore(testAccountNumber, id)
	if strings.Contains(s.String(), xksproxy.Secret) || strings.Contains(string(s.WrappedSecret), xksproxy.Secret) {
		t.Error("the state has the secret in the clear")
	}
	for _, e := range c.Audit.Entries() {
		if enginetest.IsChange(e) {
			continue
		}
		if b, err := c.engine.vault.OpenBody(e); err != nil || strings.Contains(string(b), xksproxy.Secret) {
			t.Errorf("record %d has the secret, or cannot be opened: %v", e.Index, err)
		}
	}
	if names := enginetest.EventNames(nodeOf(c.engine).Records()); len(names) < 2 || names[len(names)-2] != "CreateCustomKeyStore" {
		t.Errorf("got records %v, want CreateCustomKeyStore as the last but one", names)
	}
	for _, edit := range map[string]func(*fsmpb.KeyStore){
		"endpoint":   func(s *fsmpb.KeyStore) { s.Endpoint = xksproxy.Start(t).Endpoint },
		"path":       func(s *fsmpb.KeyStore) { s.Path = "/x" + s.Path },
		"access key": func(s *fsmpb.KeyStore) { s.AccessKey = "ANOTHERACCESSKEYIDAAAA" },
	} {
		c.modifyStore(id, func(s *fsmpb.KeyStore) { edit(s); s.State = request.StoreDisconnected })
		_, err := call[request.None](c, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id})
		wantError(t, err, kmsapi.ErrInternal, "")
		c.modifyStore(id, func(n *fsmpb.KeyStore) { n.Endpoint, n.Path, n.AccessKey = s.Endpoint, s.Path, s.AccessKey })
	}
}

func TestStoreAuthorisation(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	id := c.newStore(p)
	alice := c.newUser(aliceARN)
	asked := len(p.Requests(xksproxy.Health))
	for name, in := range map[string]any{
		"CreateCustomKeyStore":     storeAt(p, "x"),
		"ConnectCustomKeyStore":    &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id},
		"DisconnectCustomKeyStore": &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id},
		"DescribeCustomKeyStores":  &kmsapi.DescribeCustomKeyStoresInput{},
		"UpdateCustomKeyStore":     &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: &id, NewCustomKeyStoreName: new("x")},
		"DeleteCustomKeyStore":     &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: new("cks-none")},
	} {
		_, err := callAs[request.None](c, c.engine, alice, name, in)
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
	}
	if n := len(p.Requests(xksproxy.Health)); n != asked {
		t.Errorf("the proxy got %d requests of a caller without permission, want 0", n-asked)
	}
	for name, in := range map[string]any{
		"ConnectCustomKeyStore":    &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: new("cks-none")},
		"DisconnectCustomKeyStore": &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: new("cks-none")},
		"UpdateCustomKeyStore":     &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: new("cks-none"), NewCustomKeyStoreName: new("x")},
		"DeleteCustomKeyStore":     &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: new("cks-none")},
	} {
		_, err := call[request.None](c, name, in)
		wantError(t, err, kmsapi.ErrCustomStoreNotFound, "")
	}
}

func TestDescribeStoresPages(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withRegions(testRegion, secondRegion))
	for i := range 5 {
		region := testRegion
		if i == 3 {
			region = secondRegion
		}
		c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: &fsmpb.KeyStore{
			Account: uint64(testAccountNumber), Id: fmt.Sprint("cks-", i), Region: region, Name: fmt.Sprint("n", i), Type: kmsapi.OriginXKS, Created: 1, State: request.StoreDisconnected,
		}}})
	}
	var got []string
	var marker *string
	for {
		out := must[kmsapi.DescribeCustomKeyStoresOutput](c, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{Limit: new(int32(3)), Marker: marker})
		for _, s := range out.CustomKeyStores {
			got = append(got, *s.CustomKeyStoreId)
		}
		if marker = out.NextMarker; marker == nil {
			break
		}
	}
	if want := "cks-0 cks-1 cks-2 cks-4"; strings.Join(got, " ") != want {
		t.Errorf("got key stores %v, want %s", got, want)
	}
	_, err := call[kmsapi.DescribeCustomKeyStoresOutput](c, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: new("cks-3")})
	wantError(t, err, kmsapi.ErrCustomStoreNotFound, "")
	_, err = call[kmsapi.DescribeCustomKeyStoresOutput](c, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: new("cks-1"), CustomKeyStoreName: new("n1")})
	wantError(t, err, kmsapi.ErrValidation, "…")
	_, err = call[kmsapi.DescribeCustomKeyStoresOutput](c, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{Marker: new("x")})
	wantError(t, err, kmsapi.ErrInvalidMarker, "")
}
