package iamapi

import "time"

// The account as a whole.

// Input and output of GetAccountSummary, which returns how much of everything there is, and
// the quotas.
type (
	GetAccountSummaryInput struct{}

	GetAccountSummaryOutput struct{ SummaryMap map[string]int32 }
)

// PolicyDetail is an inline policy.
type PolicyDetail struct {
	PolicyName     *string
	PolicyDocument *string
}

// UserDetail is a user with everything that is attached to it.
type UserDetail struct {
	Path                    *string
	UserName                *string
	UserId                  *string
	Arn                     *string
	CreateDate              *time.Time
	UserPolicyList          []PolicyDetail
	GroupList               []string
	AttachedManagedPolicies []AttachedPolicy
	PermissionsBoundary     *AttachedPermissionsBoundary
	Tags                    []Tag
}

// GroupDetail is a group with everything that is attached to it.
type GroupDetail struct {
	Path                    *string
	GroupName               *string
	GroupId                 *string
	Arn                     *string
	CreateDate              *time.Time
	GroupPolicyList         []PolicyDetail
	AttachedManagedPolicies []AttachedPolicy
}

// InstanceProfile is an instance profile. Conclave has none.
type InstanceProfile struct {
	Path                *string
	InstanceProfileName *string
	InstanceProfileId   *string
	Arn                 *string
	CreateDate          *time.Time
	Roles               []Role
	Tags                []Tag
}

// RoleDetail is a role with everything that is attached to it.
type RoleDetail struct {
	Path                     *string
	RoleName                 *string
	RoleId                   *string
	Arn                      *string
	CreateDate               *time.Time
	AssumeRolePolicyDocument *string
	InstanceProfileList      []InstanceProfile
	RolePolicyList           []PolicyDetail
	AttachedManagedPolicies  []AttachedPolicy
	PermissionsBoundary      *AttachedPermissionsBoundary
	Tags                     []Tag
	RoleLastUsed             *RoleLastUsed
}

// ManagedPolicyDetail is a managed policy with its versions.
type ManagedPolicyDetail struct {
	PolicyName                    *string
	PolicyId                      *string
	Arn                           *string
	Path                          *string
	DefaultVersionId              *string
	AttachmentCount               *int32
	PermissionsBoundaryUsageCount *int32
	IsAttachable                  *bool
	Description                   *string
	CreateDate                    *time.Time
	UpdateDate                    *time.Time
	PolicyVersionList             []PolicyVersion
}

// Input and output of GetAccountAuthorizationDetails, which returns all principals and
// policies of the account.
type (
	GetAccountAuthorizationDetailsInput struct {
		Filter   []string `kms:"each.enum=EntityType,narrows,log"`
		MaxItems *int32   `kms:"range=1..1000,log"`
		Marker   *string  `kms:"len=1..320,pattern=iamMarker,log"`
	}

	GetAccountAuthorizationDetailsOutput struct {
		UserDetailList  []UserDetail
		GroupDetailList []GroupDetail
		RoleDetailList  []RoleDetail
		Policies        []ManagedPolicyDetail
		IsTruncated     *bool
		Marker          *string
	}
)

// Input and output of ListAccountAliases, which lists the alias of the account, of which there
// is at most one.
type (
	ListAccountAliasesInput struct {
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListAccountAliasesOutput struct {
		AccountAliases []string
		IsTruncated    *bool
		Marker         *string
	}
)

// CreateAccountAliasInput is the input of CreateAccountAlias, which sets the alias of the
// account.
type CreateAccountAliasInput struct {
	AccountAlias *string `kms:"required,len=3..63,pattern=accountAlias,log"`
}

// DeleteAccountAliasInput is the input of DeleteAccountAlias, which removes the alias of the
// account.
type DeleteAccountAliasInput struct {
	AccountAlias *string `kms:"required,len=3..63,pattern=accountAlias,log"`
}
