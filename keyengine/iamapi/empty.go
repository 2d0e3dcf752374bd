package iamapi

import "time"

// What Conclave does not have. Tools ask for it before they delete a user or a role.

// SSHPublicKeyMetadata describes an SSH key. Conclave has none.
type SSHPublicKeyMetadata struct {
	UserName       *string
	SSHPublicKeyId *string
	Status         *string
	UploadDate     *time.Time
}

// Input and output of ListSSHPublicKeys, which lists the SSH keys of a user.
type (
	ListSSHPublicKeysInput struct {
		UserName *string `kms:"len=1..64,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListSSHPublicKeysOutput struct {
		SSHPublicKeys []SSHPublicKeyMetadata
		IsTruncated   *bool
		Marker        *string
	}
)

// VirtualMFADevice is a virtual MFA device. Conclave has none.
type VirtualMFADevice struct {
	SerialNumber     *string
	Base32StringSeed []byte `kms:"secret"`
	QRCodePNG        []byte `kms:"secret"`
	User             *User
	EnableDate       *time.Time
	Tags             []Tag
}

// Input and output of ListVirtualMFADevices, which lists the virtual MFA devices of the
// account.
type (
	ListVirtualMFADevicesInput struct {
		AssignmentStatus *string `kms:"enum=assignmentStatusType,narrows,log"`
		Marker           *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems         *int32  `kms:"range=1..1000,log"`
	}

	ListVirtualMFADevicesOutput struct {
		VirtualMFADevices []VirtualMFADevice
		IsTruncated       *bool
		Marker            *string
	}
)

// MFADevice is an MFA device. Conclave has none.
type MFADevice struct {
	UserName     *string
	SerialNumber *string
	EnableDate   *time.Time
}

// Input and output of ListMFADevices, which lists the MFA devices of a user.
type (
	ListMFADevicesInput struct {
		UserName *string `kms:"len=1..128,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListMFADevicesOutput struct {
		MFADevices  []MFADevice
		IsTruncated *bool
		Marker      *string
	}
)

// SigningCertificate is a signing certificate of a user. Conclave has none.
type SigningCertificate struct {
	UserName        *string
	CertificateId   *string
	CertificateBody *string
	Status          *string
	UploadDate      *time.Time
}

// Input and output of ListSigningCertificates, which lists the signing certificates of a user.
type (
	ListSigningCertificatesInput struct {
		UserName *string `kms:"len=1..128,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListSigningCertificatesOutput struct {
		Certificates []SigningCertificate
		IsTruncated  *bool
		Marker       *string
	}
)

// ServiceSpecificCredentialMetadata describes a credential for one service. Conclave has none.
type ServiceSpecificCredentialMetadata struct {
	UserName                    *string
	Status                      *string
	ServiceUserName             *string
	ServiceCredentialAlias      *string
	CreateDate                  *time.Time
	ExpirationDate              *time.Time
	ServiceSpecificCredentialId *string
	ServiceName                 *string
}

// Input and output of ListServiceSpecificCredentials, which lists the credentials of a user
// for single services.
type (
	ListServiceSpecificCredentialsInput struct {
		UserName    *string `kms:"len=1..64,pattern=entityName,log"`
		ServiceName *string `kms:"narrows,log"`
		AllUsers    *bool   `kms:"log"`
		Marker      *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems    *int32  `kms:"range=1..1000,log"`
	}

	ListServiceSpecificCredentialsOutput struct {
		ServiceSpecificCredentials []ServiceSpecificCredentialMetadata
		Marker                     *string
		IsTruncated                *bool
	}
)

// Input and output of ListInstanceProfilesForRole, which lists the instance profiles of a
// role.
type (
	ListInstanceProfilesForRoleInput struct {
		RoleName *string `kms:"required,len=1..64,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListInstanceProfilesForRoleOutput struct {
		InstanceProfiles []InstanceProfile
		IsTruncated      *bool
		Marker           *string
	}
)

// Input and output of ListInstanceProfiles, which lists the instance profiles of the account.
type (
	ListInstanceProfilesInput struct {
		PathPrefix *string `kms:"len=1..512,pattern=pathPrefix,narrows,log"`
		Marker     *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems   *int32  `kms:"range=1..1000,log"`
	}

	ListInstanceProfilesOutput struct {
		InstanceProfiles []InstanceProfile
		IsTruncated      *bool
		Marker           *string
	}
)

// ServerCertificateMetadata describes a server certificate. Conclave has none.
type ServerCertificateMetadata struct {
	Path                  *string
	ServerCertificateName *string
	ServerCertificateId   *string
	Arn                   *string
	UploadDate            *time.Time
	Expiration            *time.Time
}

// Input and output of ListServerCertificates, which lists the server certificates of the
// account.
type (
	ListServerCertificatesInput struct {
		PathPrefix *string `kms:"len=1..512,pattern=pathPrefix,narrows,log"`
		Marker     *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems   *int32  `kms:"range=1..1000,log"`
	}

	ListServerCertificatesOutput struct {
		ServerCertificateMetadataList []ServerCertificateMetadata
		IsTruncated                   *bool
		Marker                        *string
	}
)

// SAMLProviderListEntry is an entry of ListSAMLProviders. Conclave has none.
type SAMLProviderListEntry struct {
	Arn        *string
	ValidUntil *time.Time
	CreateDate *time.Time
}

// Input and output of ListSAMLProviders, which lists the SAML providers of the account.
type (
	ListSAMLProvidersInput struct{}

	ListSAMLProvidersOutput struct{ SAMLProviderList []SAMLProviderListEntry }
)

// DeleteLoginProfileInput is the input of DeleteLoginProfile, which deletes the password of a
// user.
type DeleteLoginProfileInput struct {
	UserName *string `kms:"len=1..64,pattern=entityName,log"`
}

// LoginProfile is a user's password for AWS's console. Conclave has none.
type LoginProfile struct {
	UserName              *string
	CreateDate            *time.Time
	PasswordResetRequired *bool
}

// Input and output of GetLoginProfile, which says whether a user has a password.
type (
	GetLoginProfileInput struct {
		UserName *string `kms:"len=1..64,pattern=entityName,log"`
	}

	GetLoginProfileOutput struct{ LoginProfile *LoginProfile }
)
