package keyengine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// storeOperations are those on custom key stores, which are on no key.
var storeOperations = []string{
	"CreateCustomKeyStore", "ConnectCustomKeyStore", "DisconnectCustomKeyStore", "DescribeCustomKeyStores", "UpdateCustomKeyStore", "DeleteCustomKeyStore",
}

// newProxy starts a proxy that all engines of the room may use, and have time for.
func (r *room) newProxy() *xksproxy.Proxy {
	r.t.Helper()
	p := xksproxy.Start(r.t)
	r.useKeyStores(keystore.Config{AllowPrivateEndpoints: true, Roots: p.Roots(), Timeout: 10 * time.Second})
	return p
}

// useKeyStores has all engines of the room use key stores by other settings.
func (r *room) useKeyStores(cfg keystore.Config) {
	r.t.Helper()
	for _, e := range r.engines {
		s, err := keystore.Open(cfg, r.cluster.clock.Now)
		if err != nil {
			r.t.Fatal(err)
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

// newStore makes a store that is connected to a proxy.
func (r *room) newStore(p *xksproxy.Proxy) string {
	r.t.Helper()
	id := must[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", storeAt(p, "store")).CustomKeyStoreId
	must[request.None](r, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: id})
	return *id
}

func (r *room) storeEntry(id string) kmsapi.CustomKeyStoresListEntry {
	r.t.Helper()
	return must[kmsapi.DescribeCustomKeyStoresOutput](r, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: &id}).CustomKeyStores[0]
}

// mangleStore changes a store behind the engine's back.
func (r *room) mangleStore(id string, f func(*fsmpb.KeyStore)) {
	r.t.Helper()
	was, _ := r.cluster.state().KeyStore(testAccountNumber, id)
	s := proto.CloneOf(was)
	f(s)
	r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: s}})
}

func TestStoreLife(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	id := *must[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", storeAt(p, "mine")).CustomKeyStoreId
	if !strings.HasPrefix(id, "cks-") || len(id) != 21 {
		t.Errorf("the id is %q", id)
	}
	if h := p.Requests(xksproxy.Health); len(h) != 1 || h[0].Metadata.Operation != "CreateCustomKeyStore" || h[0].Region != testRegion {
		t.Errorf("the proxy was asked %+v, want one health request of CreateCustomKeyStore", h)
	}
	if rec := r.lastRecord(); len(rec.ResponseElements) != 1 || rec.ResponseElements[0].GetText() != id || rec.ReadOnly {
		t.Errorf("the record has %v", rec.ResponseElements)
	}
	e := r.storeEntry(id)
	c := e.XksProxyConfiguration
	if *e.ConnectionState != "DISCONNECTED" || e.ConnectionErrorCode != nil || *e.CustomKeyStoreName != "mine" || *e.CustomKeyStoreType != kmsapi.OriginXKS ||
		!e.CreationDate.Equal(r.cluster.clock.Now()) || *c.AccessKeyId != xksproxy.AccessKeyID || *c.UriEndpoint != p.Endpoint || *c.UriPath != xksproxy.Path || *c.Connectivity != ops.ConnectivityPublic {
		t.Errorf("described as %+v", e)
	}
	byName := must[kmsapi.DescribeCustomKeyStoresOutput](r, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreName: new("mine")})
	all := must[kmsapi.DescribeCustomKeyStoresOutput](r, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{})
	for how, out := range map[string]*kmsapi.DescribeCustomKeyStoresOutput{"by name": byName, "all": all} {
		if len(out.CustomKeyStores) != 1 || *out.CustomKeyStores[0].CustomKeyStoreId != id || *out.Truncated {
			t.Errorf("%s: %+v", how, out)
		}
	}

	connect, disconnect := &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id}, &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id}
	_, err := call[request.None](r, "DisconnectCustomKeyStore", disconnect)
	wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "The custom key store "+id+" is DISCONNECTED, which is not valid for this operation.")
	must[request.None](r, "ConnectCustomKeyStore", connect)
	if s := *r.storeEntry(id).ConnectionState; s != "CONNECTED" {
		t.Errorf("connected it is %s", s)
	}
	must[request.None](r, "ConnectCustomKeyStore", connect) // nothing changes
	_, err = call[request.None](r, "DeleteCustomKeyStore", &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id})
	wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "The custom key store "+id+" is CONNECTED, which is not valid for this operation.")
	must[request.None](r, "DisconnectCustomKeyStore", disconnect)

	p.Fail(xksproxy.Health, xksproxy.Named("AuthenticationFailedException"))
	must[request.None](r, "ConnectCustomKeyStore", connect)
	if e := r.storeEntry(id); *e.ConnectionState != "FAILED" || *e.ConnectionErrorCode != "INVALID_CREDENTIALS" {
		t.Errorf("refused by the proxy it is %+v", e)
	}
	p.Fail(xksproxy.Health, nil)
	for name, in := range map[string]any{
		"ConnectCustomKeyStore": connect, "DeleteCustomKeyStore": &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id},
		"UpdateCustomKeyStore": &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: &id, NewCustomKeyStoreName: new("x")},
	} {
		_, err = call[request.None](r, name, in)
		wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "The custom key store "+id+" is FAILED, which is not valid for this operation.")
	}
	must[request.None](r, "DisconnectCustomKeyStore", disconnect)
	if e := r.storeEntry(id); *e.ConnectionState != "DISCONNECTED" || e.ConnectionErrorCode != nil {
		t.Errorf("disconnected it is %+v", e)
	}
	must[request.None](r, "DeleteCustomKeyStore", &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id})
	_, err = call[kmsapi.DescribeCustomKeyStoresOutput](r, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: &id})
	wantError(t, err, kmsapi.ErrCustomStoreNotFound, "")
	if rec := r.lastRecord(); rec.ErrorCode != "CustomKeyStoreNotFoundException" {
		t.Errorf("the record says %q", rec.ErrorCode)
	}
}

func TestCreateStoreErrors(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	must[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", storeAt(p, "taken"))
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
			_, err := call[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", in)
			wantError(t, err, tt.kind, tt.message)
			if err != nil && strings.Contains(err.Error(), "SECRETCANARY") {
				t.Errorf("the error repeats the secret: %v", err)
			}
		})
	}
	if n := len(p.Requests(xksproxy.Health)); n != asked {
		t.Errorf("the proxy was asked %d times for stores that cannot be", n-asked)
	}
	for i := range request.DefaultQuotas.KeyStores - 1 {
		in := storeAt(p, fmt.Sprint("n", i))
		r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: &fsmpb.KeyStore{
			Account: uint64(testAccountNumber), Id: fmt.Sprint("cks-", i), Region: testRegion, Name: *in.CustomKeyStoreName, Type: kmsapi.OriginXKS, Created: 1, State: request.StoreDisconnected,
		}}})
	}
	in := storeAt(p, "eleventh")
	in.XksProxyUriPath = new("/other" + xksproxy.Path)
	_, err := call[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", in)
	wantError(t, err, kmsapi.ErrLimitExceeded, "The account has 10 custom key stores and cannot have more.")
}

// TestStoreOperators: without the operator's word there are no ports, and no
// addresses that are not public.
func TestStoreOperators(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	r.useKeyStores(keystore.Config{Roots: p.Roots(), Timeout: 10 * time.Second})
	_, err := call[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", storeAt(p, "x"))
	wantError(t, err, kmsapi.ErrValidation, "1 validation error detected: Value at 'xksProxyUriEndpoint' failed to satisfy constraint: Member must satisfy regular expression pattern: ^https://[a-zA-Z0-9.-]+$")
	in := storeAt(p, "x")
	in.XksProxyUriEndpoint = new("https://127.0.0.1")
	_, err = call[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", in)
	wantError(t, err, kmsapi.ErrXksProxyURIUnreachable, keystore.ReachMessage)
	if n := len(p.Requests(xksproxy.Health)); n != 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}

func TestUpdateStore(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	other := xksproxy.Start(t)
	id := r.newStore(p)
	update := func(in kmsapi.UpdateCustomKeyStoreInput) error {
		in.CustomKeyStoreId = &id
		_, err := call[request.None](r, "UpdateCustomKeyStore", &in)
		return err
	}
	if err := update(kmsapi.UpdateCustomKeyStoreInput{NewCustomKeyStoreName: new("renamed")}); err != nil {
		t.Errorf("name, while connected: %v", err)
	}
	p.SetSecret("ANOTHERACCESSKEYIDAAAA", xksproxy.Secret+"x")
	asked := len(p.Requests(xksproxy.Health))
	if err := update(kmsapi.UpdateCustomKeyStoreInput{XksProxyAuthenticationCredential: &kmsapi.XksProxyAuthenticationCredential{AccessKeyId: new("ANOTHERACCESSKEYIDAAAA"), RawSecretAccessKey: new(xksproxy.Secret + "x")}}); err != nil {
		t.Errorf("credential, while connected: %v", err)
	}
	if n := len(p.Requests(xksproxy.Health)) - asked; n != 1 {
		t.Errorf("the new credential was tried %d times", n)
	}
	if e := r.storeEntry(id); *e.CustomKeyStoreName != "renamed" || *e.XksProxyConfiguration.AccessKeyId != "ANOTHERACCESSKEYIDAAAA" || *e.ConnectionState != "CONNECTED" {
		t.Errorf("updated to %+v", e)
	}
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriPath: new("/none" + xksproxy.Path)}), kmsapi.ErrXksProxyInvalidConfiguration, "…")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyAuthenticationCredential: &kmsapi.XksProxyAuthenticationCredential{AccessKeyId: new("ANOTHERACCESSKEYIDAAAA"), RawSecretAccessKey: new(xksproxy.Secret)}}),
		kmsapi.ErrXksProxyBadCredential, "…")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: &other.Endpoint}), kmsapi.ErrCustomStoreInvalidState, "…")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{}), kmsapi.ErrValidation, "There is nothing to update.")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{KeyStorePassword: new("password")}), kmsapi.ErrValidation, "…")
	must[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", storeAt(other, "second"))
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{NewCustomKeyStoreName: new("second")}), kmsapi.ErrCustomStoreNameInUse, "…")
	must[request.None](r, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id})
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: &other.Endpoint}), kmsapi.ErrXksProxyURIInUse, "…")
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyVpcEndpointServiceOwner: new("111122223333")}), kmsapi.ErrValidation, "…")

	third := xksproxy.Start(t)
	wantError(t, update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: &third.Endpoint}), kmsapi.ErrXksProxyBadCredential, "…")
	third.SetSecret("ANOTHERACCESSKEYIDAAAA", xksproxy.Secret+"x")
	if err := update(kmsapi.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: &third.Endpoint}); err != nil {
		t.Fatalf("endpoint, while disconnected: %v", err)
	}
	// The secret was taken along, and opens for the new place.
	must[request.None](r, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id})
	if e := r.storeEntry(id); *e.ConnectionState != "CONNECTED" || *e.XksProxyConfiguration.UriEndpoint != third.Endpoint {
		t.Errorf("at its new place it is %+v", e)
	}
}

// TestStoreSecret: the secret stands nowhere in the clear, and serves exactly the
// place that it was given for.
func TestStoreSecret(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	id := r.newStore(p)
	s, _ := r.cluster.state().KeyStore(testAccountNumber, id)
	if strings.Contains(s.String(), xksproxy.Secret) || strings.Contains(string(s.WrappedSecret), xksproxy.Secret) {
		t.Error("the state has the secret in the clear")
	}
	for _, e := range r.cluster.audit.entries {
		if string(e.Body) == "behind" {
			continue
		}
		if b, err := r.first.vault.OpenBody(e); err != nil || strings.Contains(string(b), xksproxy.Secret) {
			t.Errorf("record %d has the secret, or does not open: %v", e.Index, err)
		}
	}
	if r.open(r.cluster.audit.entries[len(r.cluster.audit.entries)-2]).EventName != "CreateCustomKeyStore" {
		t.Error("the test looks at other records")
	}
	for _, edit := range map[string]func(*fsmpb.KeyStore){
		"endpoint":   func(s *fsmpb.KeyStore) { s.Endpoint = xksproxy.Start(t).Endpoint },
		"path":       func(s *fsmpb.KeyStore) { s.Path = "/x" + s.Path },
		"access key": func(s *fsmpb.KeyStore) { s.AccessKey = "ANOTHERACCESSKEYIDAAAA" },
	} {
		r.mangleStore(id, func(s *fsmpb.KeyStore) { edit(s); s.State = request.StoreDisconnected })
		_, err := call[request.None](r, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id})
		wantError(t, err, kmsapi.ErrInternal, "")
		r.mangleStore(id, func(n *fsmpb.KeyStore) { n.Endpoint, n.Path, n.AccessKey = s.Endpoint, s.Path, s.AccessKey })
	}
}

func TestStoreAuthorisation(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	id := r.newStore(p)
	alice := r.user(aliceARN)
	asked := len(p.Requests(xksproxy.Health))
	for name, in := range map[string]any{
		"CreateCustomKeyStore":     storeAt(p, "x"),
		"ConnectCustomKeyStore":    &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id},
		"DisconnectCustomKeyStore": &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id},
		"DescribeCustomKeyStores":  &kmsapi.DescribeCustomKeyStoresInput{},
		"UpdateCustomKeyStore":     &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: &id, NewCustomKeyStoreName: new("x")},
		"DeleteCustomKeyStore":     &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: new("cks-none")},
	} {
		_, err := callAs[request.None](r, r.first, alice, name, in)
		wantError(t, err, kmsapi.ErrAccessDenied, "…")
	}
	if n := len(p.Requests(xksproxy.Health)); n != asked {
		t.Errorf("the proxy was asked %d times for a caller who may not", n-asked)
	}
	for name, in := range map[string]any{
		"ConnectCustomKeyStore":    &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: new("cks-none")},
		"DisconnectCustomKeyStore": &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: new("cks-none")},
		"UpdateCustomKeyStore":     &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: new("cks-none"), NewCustomKeyStoreName: new("x")},
		"DeleteCustomKeyStore":     &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: new("cks-none")},
	} {
		_, err := call[request.None](r, name, in)
		wantError(t, err, kmsapi.ErrCustomStoreNotFound, "")
	}
}

func TestDescribeStoresPages(t *testing.T) {
	r := newRoomIn(t, []string{testRegion, secondRegion})
	for i := range 5 {
		region := testRegion
		if i == 3 {
			region = secondRegion
		}
		r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: &fsmpb.KeyStore{
			Account: uint64(testAccountNumber), Id: fmt.Sprint("cks-", i), Region: region, Name: fmt.Sprint("n", i), Type: kmsapi.OriginXKS, Created: 1, State: request.StoreDisconnected,
		}}})
	}
	var got []string
	var marker *string
	for {
		out := must[kmsapi.DescribeCustomKeyStoresOutput](r, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{Limit: new(int32(3)), Marker: marker})
		for _, s := range out.CustomKeyStores {
			got = append(got, *s.CustomKeyStoreId)
		}
		if marker = out.NextMarker; marker == nil {
			break
		}
	}
	if want := "cks-0 cks-1 cks-2 cks-4"; strings.Join(got, " ") != want {
		t.Errorf("listed %v, want %s", got, want)
	}
	_, err := call[kmsapi.DescribeCustomKeyStoresOutput](r, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: new("cks-3")})
	wantError(t, err, kmsapi.ErrCustomStoreNotFound, "")
	_, err = call[kmsapi.DescribeCustomKeyStoresOutput](r, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: new("cks-1"), CustomKeyStoreName: new("n1")})
	wantError(t, err, kmsapi.ErrValidation, "…")
	_, err = call[kmsapi.DescribeCustomKeyStoresOutput](r, "DescribeCustomKeyStores", &kmsapi.DescribeCustomKeyStoresInput{Marker: new("x")})
	wantError(t, err, kmsapi.ErrInvalidMarker, "")
}
