package ops

import (
	"crypto/rand"
	"errors"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func createCustomKeyStore(ev *request.Evaluation, in *kmsapi.CreateCustomKeyStoreInput) (*kmsapi.CreateCustomKeyStoreOutput, error) {
	if err := storeMembers(in); err != nil {
		return nil, err
	}
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	s := &fsmpb.KeyStore{
		Account: uint64(request.AccountOf(ev)), Region: ev.Region(), Name: *in.CustomKeyStoreName, Type: storeType(in), Created: ev.Now().UnixNano(), State: request.StoreDisconnected,
	}
	switch {
	case ev.Stores.Of(s.Type) == nil:
		return nil, keystore.Unsupported(s.Type)
	case in.TrustAnchorCertificate != nil:
		// A certificate that is not used for any check must not be accepted.
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "TrustAnchorCertificate is not valid here: whom the PKCS #11 module trusts is in its own configuration.")
	}
	var secret []byte
	defer func() { clear(secret) }()
	if s.Type == kmsapi.OriginXKS {
		s.Connectivity, s.Endpoint, s.Path = *in.XksProxyConnectivity, *in.XksProxyUriEndpoint, *in.XksProxyUriPath
		s.AccessKey, secret = *in.XksProxyAuthenticationCredential.AccessKeyId, []byte(*in.XksProxyAuthenticationCredential.RawSecretAccessKey)
		if err := ev.Stores.EndpointAllowed(s.Endpoint); err != nil {
			return nil, err
		}
	} else {
		s.Endpoint, secret = *in.CloudHsmClusterId, []byte(*in.KeyStorePassword)
	}
	all := request.KeyStoresOf(ev)
	if most := ev.Quotas.KeyStores; len(all) >= most {
		return nil, kmsapi.Errorf(kmsapi.ErrLimitExceeded, "The account has %d custom key stores and cannot have more.", most)
	}
	if err := distinct(s, all); err != nil {
		return nil, err
	}
	if err := reachable(s); err != nil {
		return nil, err
	}
	if err := cryptops.TryStore(ev, s, secret); err != nil {
		return nil, err
	}
	var id [9]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	s.Id = newStoreID(id)
	if err := ev.Vault.WrapStoreSecret(s, secret); err != nil {
		return nil, err
	}
	ev.KeyStore(s.Id) // the record requires that the id is not in use
	putStore(ev, s)
	return &kmsapi.CreateCustomKeyStoreOutput{CustomKeyStoreId: &s.Id}, nil
}

func recordStore(out *kmsapi.CreateCustomKeyStoreOutput, _ []*auditpb.Resource) []*auditpb.Field {
	return []*auditpb.Field{auditfield.Text("customKeyStoreId", *out.CustomKeyStoreId)}
}

func storeType(in *kmsapi.CreateCustomKeyStoreInput) string {
	if in.CustomKeyStoreType != nil {
		return *in.CustomKeyStoreType
	}
	return kmsapi.OriginHSM // AWS's default
}

// storeMembers validates the members for the type of a store.
func storeMembers(in *kmsapi.CreateCustomKeyStoreInput) error {
	if storeType(in) != kmsapi.OriginXKS {
		if in.XksProxyUriEndpoint != nil || in.XksProxyUriPath != nil || in.XksProxyAuthenticationCredential != nil ||
			in.XksProxyConnectivity != nil || in.XksProxyVpcEndpointServiceName != nil || in.XksProxyVpcEndpointServiceOwner != nil {
			return kmsapi.Errorf(kmsapi.ErrValidation, "Members of external key stores are not valid for custom key stores of type %s.", kmsapi.OriginHSM)
		}
		switch {
		case in.CloudHsmClusterId == nil:
			return kmsapi.MissingMember("cloudHsmClusterId")
		case in.KeyStorePassword == nil:
			return kmsapi.MissingSensitiveMember("keyStorePassword")
		}
		return nil
	}
	switch {
	case in.CloudHsmClusterId != nil, in.TrustAnchorCertificate != nil, in.KeyStorePassword != nil:
		return kmsapi.Errorf(kmsapi.ErrValidation, "CloudHsmClusterId, TrustAnchorCertificate and KeyStorePassword are not valid for custom key stores of type %s.", kmsapi.OriginXKS)
	case in.XksProxyConnectivity == nil:
		return kmsapi.MissingMember("xksProxyConnectivity")
	case in.XksProxyUriEndpoint == nil:
		return kmsapi.MissingMember("xksProxyUriEndpoint")
	case in.XksProxyUriPath == nil:
		return kmsapi.MissingMember("xksProxyUriPath")
	case in.XksProxyAuthenticationCredential == nil:
		return kmsapi.MissingMember("xksProxyAuthenticationCredential")
	}
	return vpcMembers(*in.XksProxyConnectivity, in.XksProxyVpcEndpointServiceName, in.XksProxyVpcEndpointServiceOwner)
}

func vpcMembers(connectivity string, service, owner *string) error {
	switch {
	case connectivity == ConnectivityVPC && service == nil:
		return kmsapi.MissingMember("xksProxyVpcEndpointServiceName")
	case connectivity != ConnectivityVPC && (service != nil || owner != nil):
		return kmsapi.Errorf(kmsapi.ErrValidation, "A VPC endpoint service is not valid with XksProxyConnectivity %s.", connectivity)
	}
	return nil
}

// distinct refuses the name or the location of another store.
func distinct(s *fsmpb.KeyStore, all []*fsmpb.KeyStore) error {
	for _, o := range all {
		switch {
		case o.Id == s.Id:
		case o.Name == s.Name:
			return kmsapi.Errorf(kmsapi.ErrCustomStoreNameInUse, "The custom key store name %s is in use.", s.Name)
		case s.Type == kmsapi.OriginHSM && o.Type == kmsapi.OriginHSM && o.Endpoint == s.Endpoint:
			return kmsapi.Errorf(kmsapi.ErrCloudHsmClusterInUse, "Another custom key store has the CloudHsmClusterId %s.", s.Endpoint)
		case s.Type == kmsapi.OriginXKS && o.Type == kmsapi.OriginXKS && o.Endpoint+o.Path == s.Endpoint+s.Path:
			return kmsapi.Errorf(kmsapi.ErrXksProxyURIInUse, "Another external key store has the same XksProxyUriEndpoint and XksProxyUriPath.")
		}
	}
	return nil
}

// reachable refuses VPC endpoint services, which exist only in AWS's network.
func reachable(s *fsmpb.KeyStore) error {
	if s.Connectivity == ConnectivityVPC {
		return kmsapi.Errorf(kmsapi.ErrXksProxyVpcNotFound, "This cluster has no VPC endpoint services. Use XksProxyConnectivity %s.", ConnectivityPublic)
	}
	return nil
}

// managedStore authorises an operation on a key store and finds the store.
func managedStore(ev *request.Evaluation, id string) (*fsmpb.KeyStore, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	return request.KeyStoreNamed(ev, id)
}

// connectCustomKeyStore connects the store before it answers. If the connection fails, the
// call still succeeds, and DescribeCustomKeyStores reports the failure.
func connectCustomKeyStore(ev *request.Evaluation, in *kmsapi.ConnectCustomKeyStoreInput) (*request.None, error) {
	s, err := managedStore(ev, *in.CustomKeyStoreId)
	switch {
	case err != nil:
		return nil, err
	case s.State == request.StoreFailed:
		return nil, request.WrongStoreState(s)
	case s.State == request.StoreConnected:
		return &request.None{}, nil
	}
	s = proto.CloneOf(s)
	err = cryptops.ConnectStore(ev, s)
	if f, ok := errors.AsType[*keystore.Failure](err); ok {
		_ = cryptops.FromStore(ev, s, f, cryptops.StoreError) // logs the failure
		s.State, s.Error = request.StoreFailed, f.Connection
	} else if err != nil {
		return nil, err
	} else {
		s.State, s.Error = request.StoreConnected, ""
	}
	putStore(ev, s)
	return &request.None{}, nil
}

func disconnectCustomKeyStore(ev *request.Evaluation, in *kmsapi.DisconnectCustomKeyStoreInput) (*request.None, error) {
	s, err := managedStore(ev, *in.CustomKeyStoreId)
	if err != nil {
		return nil, err
	}
	if s.State == request.StoreDisconnected {
		return nil, request.WrongStoreState(s)
	}
	s = proto.CloneOf(s)
	s.State, s.Error = request.StoreDisconnected, ""
	putStore(ev, s)
	return &request.None{}, nil
}

func deleteCustomKeyStore(ev *request.Evaluation, in *kmsapi.DeleteCustomKeyStoreInput) (*request.None, error) {
	s, err := managedStore(ev, *in.CustomKeyStoreId)
	if err != nil {
		return nil, err
	}
	if s.State != request.StoreDisconnected {
		return nil, request.WrongStoreState(s)
	}
	if ev.StoreKeys(s.Id).GetCount() > 0 {
		return nil, kmsapi.Errorf(kmsapi.ErrCustomStoreHasKeys, "The custom key store %s has KMS keys, also those that are pending deletion.", s.Id)
	}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteKeyStore{DeleteKeyStore: &fsmpb.KeyStoreID{Account: s.Account, Id: s.Id}}})
	return &request.None{}, nil
}

// updateCustomKeyStore changes a store. The name, path and credential of a connected store
// can be changed; other changes require it to be disconnected. A new location or credential
// is tested before it is accepted.
func updateCustomKeyStore(ev *request.Evaluation, in *kmsapi.UpdateCustomKeyStoreInput) (*request.None, error) {
	elsewhere := in.XksProxyUriEndpoint != nil || in.XksProxyConnectivity != nil ||
		in.XksProxyVpcEndpointServiceName != nil || in.XksProxyVpcEndpointServiceOwner != nil
	external := elsewhere || in.XksProxyUriPath != nil || in.XksProxyAuthenticationCredential != nil
	hsm := in.CloudHsmClusterId != nil || in.KeyStorePassword != nil
	if !external && !hsm && in.NewCustomKeyStoreName == nil {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "There is nothing to update.")
	}
	if external && hsm {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "Members of external key stores and of CloudHSM key stores are not valid together.")
	}
	s, err := managedStore(ev, *in.CustomKeyStoreId)
	switch {
	case err != nil:
		return nil, err
	case hsm && s.Type == kmsapi.OriginXKS || external && s.Type != kmsapi.OriginXKS:
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "The custom key store %s has type %s, for which a member of the request is not valid.", s.Id, s.Type)
	case s.State == request.StoreFailed, s.State == request.StoreConnected && (elsewhere || hsm):
		return nil, request.WrongStoreState(s)
	}
	was := s
	s = proto.CloneOf(s)
	for _, m := range []struct {
		to *string
		in *string
	}{
		{&s.Name, in.NewCustomKeyStoreName}, {&s.Connectivity, in.XksProxyConnectivity}, {&s.Endpoint, in.XksProxyUriEndpoint}, {&s.Path, in.XksProxyUriPath},
	} {
		if m.in != nil {
			*m.to = *m.in
		}
	}
	if err := distinct(s, request.KeyStoresOf(ev)); err != nil {
		return nil, err
	}
	switch {
	case external:
		err = updateExternal(ev, was, s, in)
	case hsm:
		err = updateHSM(ev, s, in)
	}
	if err != nil {
		return nil, err
	}
	if !proto.Equal(s, was) {
		putStore(ev, s)
	}
	return &request.None{}, nil
}

// updateExternal validates the changes to an external key store and wraps its secret.
func updateExternal(ev *request.Evaluation, was, s *fsmpb.KeyStore, in *kmsapi.UpdateCustomKeyStoreInput) error {
	if err := vpcMembers(s.Connectivity, in.XksProxyVpcEndpointServiceName, in.XksProxyVpcEndpointServiceOwner); err != nil {
		return err
	}
	if err := ev.Stores.EndpointAllowed(s.Endpoint); err != nil {
		return err
	}
	if err := reachable(s); err != nil {
		return err
	}
	var secret []byte
	defer func() { clear(secret) }()
	if c := in.XksProxyAuthenticationCredential; c != nil {
		s.AccessKey, secret = *c.AccessKeyId, []byte(*c.RawSecretAccessKey)
	} else if err := ev.Vault.WithStoreSecret(was, func(b []byte) error {
		secret = append(secret, b...)
		return nil
	}); err != nil {
		return err
	}
	if err := cryptops.TryStore(ev, s, secret); err != nil {
		return err
	}
	return ev.Vault.WrapStoreSecret(s, secret)
}

// updateHSM changes the password. The token cannot be changed, as no other one has the
// store's key.
func updateHSM(ev *request.Evaluation, s *fsmpb.KeyStore, in *kmsapi.UpdateCustomKeyStoreInput) error {
	if in.CloudHsmClusterId != nil && *in.CloudHsmClusterId != s.Endpoint {
		return kmsapi.Errorf(kmsapi.ErrCloudHsmClusterNotRelated, "The key of the custom key store %s is in the token of %s.", s.Id, s.Endpoint)
	}
	if in.KeyStorePassword == nil {
		return nil
	}
	secret := []byte(*in.KeyStorePassword)
	defer clear(secret)
	return ev.Vault.WrapStoreSecret(s, secret)
}

func describeCustomKeyStores(ev *request.Evaluation, in *kmsapi.DescribeCustomKeyStoresInput) (*kmsapi.DescribeCustomKeyStoresOutput, error) {
	if in.CustomKeyStoreId != nil && in.CustomKeyStoreName != nil {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "CustomKeyStoreId and CustomKeyStoreName cannot be in the same request.")
	}
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	if in.CustomKeyStoreId != nil {
		s, err := request.KeyStoreNamed(ev, *in.CustomKeyStoreId)
		if err != nil {
			return nil, err
		}
		return oneStore(s), nil
	}
	if in.CustomKeyStoreName != nil {
		for _, s := range request.KeyStoresOf(ev) {
			if s.Name == *in.CustomKeyStoreName {
				return oneStore(s), nil
			}
		}
		return nil, kmsapi.ErrCustomStoreNotFound
	}
	p, err := request.PageOf(ev, in.Limit, 100, 1000, in.Marker)
	if err != nil {
		return nil, err
	}
	ev.Later = func(state *fsm.State) (any, error) {
		out := &kmsapi.DescribeCustomKeyStoresOutput{CustomKeyStores: []kmsapi.CustomKeyStoresListEntry{}}
		all := func(yield func(*fsmpb.KeyStore) bool) {
			for s := range state.AllKeyStores(request.AccountOf(ev)) {
				if s.Region == ev.Region() && !yield(s) {
					return
				}
			}
		}
		out.NextMarker, out.Truncated, err = request.Fill(p, all, func(s *fsmpb.KeyStore) string { return s.Id }, func(s *fsmpb.KeyStore) {
			out.CustomKeyStores = append(out.CustomKeyStores, storeEntry(s))
		})
		return out, err
	}
	return nil, nil
}

func oneStore(s *fsmpb.KeyStore) *kmsapi.DescribeCustomKeyStoresOutput {
	return &kmsapi.DescribeCustomKeyStoresOutput{CustomKeyStores: []kmsapi.CustomKeyStoresListEntry{storeEntry(s)}, Truncated: new(false)}
}

// storeEntry describes a store, without its secret.
func storeEntry(s *fsmpb.KeyStore) kmsapi.CustomKeyStoresListEntry {
	e := kmsapi.CustomKeyStoresListEntry{
		CustomKeyStoreId: new(s.Id), CustomKeyStoreName: new(s.Name), CustomKeyStoreType: new(s.Type),
		ConnectionState: new(request.ConnectionStates[s.State]), CreationDate: TimeOf(s.Created),
	}
	if s.State == request.StoreFailed {
		e.ConnectionErrorCode = new(s.Error)
	}
	if s.Type == kmsapi.OriginHSM {
		e.CloudHsmClusterId = new(s.Endpoint)
	}
	if s.Type == kmsapi.OriginXKS {
		e.XksProxyConfiguration = &kmsapi.XksProxyConfiguration{
			Connectivity: new(s.Connectivity), AccessKeyId: new(s.AccessKey), UriEndpoint: new(s.Endpoint), UriPath: new(s.Path),
		}
	}
	return e
}
