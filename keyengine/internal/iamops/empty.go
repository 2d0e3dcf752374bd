package iamops

import (
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// What there is none of here. Tools ask for it before they delete a user or a role, and must
// be told that there is nothing.

// emptyOfUser returns the row of a list of what a user has none of.
func emptyOfUser[In, Out any](name string, user func(*In) *string, none func() *Out) *request.Operation {
	return read(name, func(ev *request.Evaluation, in *In) (*Out, error) {
		if _, err := ownerNamed(ev, user(in)); err != nil {
			return nil, err
		}
		return none(), nil
	})
}

// empty returns the row of a list of what an account has none of.
func empty[In, Out any](name string, none func() *Out) *request.Operation {
	return read(name, func(ev *request.Evaluation, _ *In) (*Out, error) {
		if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
			return nil, err
		}
		return none(), nil
	})
}

var emptyLists = []*request.Operation{
	emptyOfUser("ListSSHPublicKeys", func(in *iamapi.ListSSHPublicKeysInput) *string { return in.UserName }, func() *iamapi.ListSSHPublicKeysOutput {
		return &iamapi.ListSSHPublicKeysOutput{SSHPublicKeys: []iamapi.SSHPublicKeyMetadata{}, IsTruncated: new(false)}
	}),
	emptyOfUser("ListMFADevices", func(in *iamapi.ListMFADevicesInput) *string { return in.UserName }, func() *iamapi.ListMFADevicesOutput {
		return &iamapi.ListMFADevicesOutput{MFADevices: []iamapi.MFADevice{}, IsTruncated: new(false)}
	}),
	emptyOfUser("ListSigningCertificates", func(in *iamapi.ListSigningCertificatesInput) *string { return in.UserName }, func() *iamapi.ListSigningCertificatesOutput {
		return &iamapi.ListSigningCertificatesOutput{Certificates: []iamapi.SigningCertificate{}, IsTruncated: new(false)}
	}),
	read("ListServiceSpecificCredentials", listServiceSpecificCredentials),
	read("ListInstanceProfilesForRole", func(ev *request.Evaluation, in *iamapi.ListInstanceProfilesForRoleInput) (*iamapi.ListInstanceProfilesForRoleOutput, error) {
		if _, err := roles.find(ev, *in.RoleName, nil); err != nil {
			return nil, err
		}
		return &iamapi.ListInstanceProfilesForRoleOutput{InstanceProfiles: []iamapi.InstanceProfile{}, IsTruncated: new(false)}, nil
	}),
	empty[iamapi.ListVirtualMFADevicesInput]("ListVirtualMFADevices", func() *iamapi.ListVirtualMFADevicesOutput {
		return &iamapi.ListVirtualMFADevicesOutput{VirtualMFADevices: []iamapi.VirtualMFADevice{}, IsTruncated: new(false)}
	}),
	empty[iamapi.ListInstanceProfilesInput]("ListInstanceProfiles", func() *iamapi.ListInstanceProfilesOutput {
		return &iamapi.ListInstanceProfilesOutput{InstanceProfiles: []iamapi.InstanceProfile{}, IsTruncated: new(false)}
	}),
	empty[iamapi.ListServerCertificatesInput]("ListServerCertificates", func() *iamapi.ListServerCertificatesOutput {
		return &iamapi.ListServerCertificatesOutput{ServerCertificateMetadataList: []iamapi.ServerCertificateMetadata{}, IsTruncated: new(false)}
	}),
	empty[iamapi.ListSAMLProvidersInput]("ListSAMLProviders", func() *iamapi.ListSAMLProvidersOutput {
		return &iamapi.ListSAMLProvidersOutput{SAMLProviderList: []iamapi.SAMLProviderListEntry{}}
	}),
	act("DeleteLoginProfile", func(ev *request.Evaluation, in *iamapi.DeleteLoginProfileInput) error {
		return noPassword(ev, in.UserName)
	}),
	read("GetLoginProfile", func(ev *request.Evaluation, in *iamapi.GetLoginProfileInput) (*iamapi.GetLoginProfileOutput, error) {
		return nil, noPassword(ev, in.UserName)
	}),
}

func listServiceSpecificCredentials(ev *request.Evaluation, in *iamapi.ListServiceSpecificCredentialsInput) (*iamapi.ListServiceSpecificCredentialsOutput, error) {
	err := error(nil)
	if request.IsSet(in.AllUsers) {
		err = ev.AuthoriseAccount(ev.Op.Action(), "*")
	} else {
		_, err = ownerNamed(ev, in.UserName)
	}
	if err != nil {
		return nil, err
	}
	return &iamapi.ListServiceSpecificCredentialsOutput{ServiceSpecificCredentials: []iamapi.ServiceSpecificCredentialMetadata{}, IsTruncated: new(false)}, nil
}

// noPassword returns the error for the password of a user: nobody has one.
func noPassword(ev *request.Evaluation, name *string) error {
	o, err := ownerNamed(ev, name)
	if err != nil {
		return err
	}
	return noSuch("Login Profile for User %s cannot be found.", or(o.name(), "root"))
}
