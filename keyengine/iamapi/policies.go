package iamapi

import "time"

// Managed policies, their versions and tags.

// Policy is a managed policy.
type Policy struct {
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
	Tags                          []Tag
}

// Input and output of CreatePolicy, which creates a managed policy.
type (
	CreatePolicyInput struct {
		PolicyName     *string `kms:"required,len=1..128,pattern=entityName,log"`
		Path           *string `kms:"len=1..512,pattern=policyPath,log"`
		PolicyDocument *string `kms:"required,len=1..131072,pattern=policy,narrows,log"`
		Description    *string `kms:"len=0..1000,log"`
		Tags           []Tag   `kms:"len=0..50,open,log"`
	}

	CreatePolicyOutput struct{ Policy *Policy }
)

// Input and output of GetPolicy, which returns a managed policy, without its document.
type (
	GetPolicyInput struct {
		PolicyArn *string `kms:"required,len=20..2048,log"`
	}

	GetPolicyOutput struct{ Policy *Policy }
)

// Input and output of ListPolicies, which lists the managed policies.
type (
	ListPoliciesInput struct {
		Scope             *string `kms:"enum=policyScopeType,narrows,log"`
		OnlyAttached      *bool   `kms:"narrows,log"`
		PathPrefix        *string `kms:"len=1..512,pattern=policyPath,narrows,log"`
		PolicyUsageFilter *string `kms:"enum=PolicyUsageType,narrows,log"`
		Marker            *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems          *int32  `kms:"range=1..1000,log"`
	}

	ListPoliciesOutput struct {
		Policies    []Policy
		IsTruncated *bool
		Marker      *string
	}
)

// DeletePolicyInput is the input of DeletePolicy, which deletes a managed policy that is
// attached to nothing and has only its default version.
type DeletePolicyInput struct {
	PolicyArn *string `kms:"required,len=20..2048,log"`
}

// PolicyVersion is a version of a managed policy.
type PolicyVersion struct {
	Document         *string
	VersionId        *string
	IsDefaultVersion *bool
	CreateDate       *time.Time
}

// Input and output of CreatePolicyVersion, which adds a version to a managed policy.
type (
	CreatePolicyVersionInput struct {
		PolicyArn      *string `kms:"required,len=20..2048,log"`
		PolicyDocument *string `kms:"required,len=1..131072,pattern=policy,narrows,log"`
		SetAsDefault   *bool   `kms:"log"`
	}

	CreatePolicyVersionOutput struct{ PolicyVersion *PolicyVersion }
)

// Input and output of GetPolicyVersion, which returns a version of a managed policy with its
// document.
type (
	GetPolicyVersionInput struct {
		PolicyArn *string `kms:"required,len=20..2048,log"`
		VersionId *string `kms:"required,pattern=policyVersion,log"`
	}

	GetPolicyVersionOutput struct{ PolicyVersion *PolicyVersion }
)

// Input and output of ListPolicyVersions, which lists the versions of a managed policy,
// without their documents.
type (
	ListPolicyVersionsInput struct {
		PolicyArn *string `kms:"required,len=20..2048,log"`
		Marker    *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems  *int32  `kms:"range=1..1000,log"`
	}

	ListPolicyVersionsOutput struct {
		Versions    []PolicyVersion
		IsTruncated *bool
		Marker      *string
	}
)

// DeletePolicyVersionInput is the input of DeletePolicyVersion, which deletes a version of a
// managed policy that is not the default.
type DeletePolicyVersionInput struct {
	PolicyArn *string `kms:"required,len=20..2048,log"`
	VersionId *string `kms:"required,pattern=policyVersion,log"`
}

// SetDefaultPolicyVersionInput is the input of SetDefaultPolicyVersion, which sets which
// version of a managed policy has effect.
type SetDefaultPolicyVersionInput struct {
	PolicyArn *string `kms:"required,len=20..2048,log"`
	VersionId *string `kms:"required,pattern=policyVersion,log"`
}

// PolicyGroup is a group that a managed policy is attached to.
type PolicyGroup struct {
	GroupName *string
	GroupId   *string
}

// PolicyUser is a user that a managed policy is attached to or bounds.
type PolicyUser struct {
	UserName *string
	UserId   *string
}

// PolicyRole is a role that a managed policy is attached to or bounds.
type PolicyRole struct {
	RoleName *string
	RoleId   *string
}

// Input and output of ListEntitiesForPolicy, which lists the users, groups and roles that a
// managed policy is attached to.
type (
	ListEntitiesForPolicyInput struct {
		PolicyArn         *string `kms:"required,len=20..2048,log"`
		EntityFilter      *string `kms:"enum=EntityType,narrows,log"`
		PathPrefix        *string `kms:"len=1..512,pattern=path,narrows,log"`
		PolicyUsageFilter *string `kms:"enum=PolicyUsageType,narrows,log"`
		Marker            *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems          *int32  `kms:"range=1..1000,log"`
	}

	ListEntitiesForPolicyOutput struct {
		PolicyGroups []PolicyGroup
		PolicyUsers  []PolicyUser
		PolicyRoles  []PolicyRole
		IsTruncated  *bool
		Marker       *string
	}
)

// TagPolicyInput is the input of TagPolicy, which adds tags to a managed policy, or changes
// their values.
type TagPolicyInput struct {
	PolicyArn *string `kms:"required,len=20..2048,log"`
	Tags      []Tag   `kms:"required,len=0..50,open,log"`
}

// UntagPolicyInput is the input of UntagPolicy, which removes tags from a managed policy.
type UntagPolicyInput struct {
	PolicyArn *string  `kms:"required,len=20..2048,log"`
	TagKeys   []string `kms:"required,len=0..50,each.len=1..128,each.pattern=tagKey,log"`
}

// Input and output of ListPolicyTags, which lists the tags of a managed policy.
type (
	ListPolicyTagsInput struct {
		PolicyArn *string `kms:"required,len=20..2048,log"`
		Marker    *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems  *int32  `kms:"range=1..1000,log"`
	}

	ListPolicyTagsOutput struct {
		Tags        []Tag
		IsTruncated *bool
		Marker      *string
	}
)
