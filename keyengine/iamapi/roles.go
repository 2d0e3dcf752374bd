package iamapi

import "time"

// Roles, who may assume them, what is attached to them, and their tags.

// RoleLastUsed says when and where a role was last used.
type RoleLastUsed struct {
	LastUsedDate *time.Time
	Region       *string
}

// Role is a role of the account.
type Role struct {
	Path                     *string
	RoleName                 *string
	RoleId                   *string
	Arn                      *string
	CreateDate               *time.Time
	AssumeRolePolicyDocument *string
	Description              *string
	MaxSessionDuration       *int32
	PermissionsBoundary      *AttachedPermissionsBoundary
	Tags                     []Tag
	RoleLastUsed             *RoleLastUsed
}

// Input and output of CreateRole, which creates a role.
type (
	CreateRoleInput struct {
		Path                     *string `kms:"len=1..512,pattern=path,log"`
		RoleName                 *string `kms:"required,len=1..64,pattern=entityName,log"`
		AssumeRolePolicyDocument *string `kms:"required,len=1..131072,pattern=policy,narrows,log"`
		Description              *string `kms:"len=0..1000,pattern=roleDescription,log"`
		MaxSessionDuration       *int32  `kms:"range=3600..43200,narrows,log"`
		PermissionsBoundary      *string `kms:"len=20..2048,narrows,log"`
		Tags                     []Tag   `kms:"len=0..50,open,log"`
	}

	CreateRoleOutput struct{ Role *Role }
)

// Input and output of GetRole, which returns a role.
type (
	GetRoleInput struct {
		RoleName *string `kms:"required,len=1..64,pattern=entityName,log"`
	}

	GetRoleOutput struct{ Role *Role }
)

// Input and output of ListRoles, which lists the roles of the account.
type (
	ListRolesInput struct {
		PathPrefix *string `kms:"len=1..512,pattern=pathPrefix,narrows,log"`
		Marker     *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems   *int32  `kms:"range=1..1000,log"`
	}

	ListRolesOutput struct {
		Roles       []Role
		IsTruncated *bool
		Marker      *string
	}
)

// Input and output of UpdateRole, which changes the description or the longest session of a
// role. Durations are in seconds.
type (
	UpdateRoleInput struct {
		RoleName           *string `kms:"required,len=1..64,pattern=entityName,log"`
		Description        *string `kms:"len=0..1000,pattern=roleDescription,log"`
		MaxSessionDuration *int32  `kms:"range=3600..43200,narrows,log"`
	}

	UpdateRoleOutput struct{}
)

// Input and output of UpdateRoleDescription, which changes the description of a role.
type (
	UpdateRoleDescriptionInput struct {
		RoleName    *string `kms:"required,len=1..64,pattern=entityName,log"`
		Description *string `kms:"required,len=0..1000,pattern=roleDescription,log"`
	}

	UpdateRoleDescriptionOutput struct{ Role *Role }
)

// DeleteRoleInput is the input of DeleteRole, which deletes a role that nothing is attached to
// any more.
type DeleteRoleInput struct {
	RoleName *string `kms:"required,len=1..64,pattern=entityName,log"`
}

// UpdateAssumeRolePolicyInput is the input of UpdateAssumeRolePolicy, which replaces the
// policy that says who may assume a role.
type UpdateAssumeRolePolicyInput struct {
	RoleName       *string `kms:"required,len=1..64,pattern=entityName,log"`
	PolicyDocument *string `kms:"required,len=1..131072,pattern=policy,narrows,log"`
}

// PutRolePermissionsBoundaryInput is the input of PutRolePermissionsBoundary, which sets the
// permissions boundary of a role.
type PutRolePermissionsBoundaryInput struct {
	RoleName            *string `kms:"required,len=1..64,pattern=entityName,log"`
	PermissionsBoundary *string `kms:"required,len=20..2048,narrows,log"`
}

// DeleteRolePermissionsBoundaryInput is the input of DeleteRolePermissionsBoundary, which
// removes the permissions boundary of a role.
type DeleteRolePermissionsBoundaryInput struct {
	RoleName *string `kms:"required,len=1..64,pattern=entityName,log"`
}

// TagRoleInput is the input of TagRole, which adds tags to a role, or changes their values.
type TagRoleInput struct {
	RoleName *string `kms:"required,len=1..64,pattern=entityName,log"`
	Tags     []Tag   `kms:"required,len=0..50,open,log"`
}

// UntagRoleInput is the input of UntagRole, which removes tags from a role.
type UntagRoleInput struct {
	RoleName *string  `kms:"required,len=1..64,pattern=entityName,log"`
	TagKeys  []string `kms:"required,len=0..50,each.len=1..128,each.pattern=tagKey,log"`
}

// Input and output of ListRoleTags, which lists the tags of a role.
type (
	ListRoleTagsInput struct {
		RoleName *string `kms:"required,len=1..64,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListRoleTagsOutput struct {
		Tags        []Tag
		IsTruncated *bool
		Marker      *string
	}
)

// PutRolePolicyInput is the input of PutRolePolicy, which adds an inline policy to a role, or
// replaces it.
type PutRolePolicyInput struct {
	RoleName       *string `kms:"required,len=1..64,pattern=entityName,log"`
	PolicyName     *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyDocument *string `kms:"required,len=1..131072,pattern=policy,narrows,log"`
}

// Input and output of GetRolePolicy, which returns an inline policy of a role.
type (
	GetRolePolicyInput struct {
		RoleName   *string `kms:"required,len=1..64,pattern=entityName,log"`
		PolicyName *string `kms:"required,len=1..128,pattern=entityName,log"`
	}

	GetRolePolicyOutput struct {
		RoleName       *string
		PolicyName     *string
		PolicyDocument *string
	}
)

// Input and output of ListRolePolicies, which lists the names of a role's inline policies.
type (
	ListRolePoliciesInput struct {
		RoleName *string `kms:"required,len=1..64,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListRolePoliciesOutput struct {
		PolicyNames []string
		IsTruncated *bool
		Marker      *string
	}
)

// DeleteRolePolicyInput is the input of DeleteRolePolicy, which deletes an inline policy of a
// role.
type DeleteRolePolicyInput struct {
	RoleName   *string `kms:"required,len=1..64,pattern=entityName,log"`
	PolicyName *string `kms:"required,len=1..128,pattern=entityName,log"`
}

// AttachRolePolicyInput is the input of AttachRolePolicy, which attaches a managed policy to a
// role.
type AttachRolePolicyInput struct {
	RoleName  *string `kms:"required,len=1..64,pattern=entityName,log"`
	PolicyArn *string `kms:"required,len=20..2048,log"`
}

// DetachRolePolicyInput is the input of DetachRolePolicy, which detaches a managed policy from
// a role.
type DetachRolePolicyInput struct {
	RoleName  *string `kms:"required,len=1..64,pattern=entityName,log"`
	PolicyArn *string `kms:"required,len=20..2048,log"`
}

// Input and output of ListAttachedRolePolicies, which lists the managed policies that are
// attached to a role.
type (
	ListAttachedRolePoliciesInput struct {
		RoleName   *string `kms:"required,len=1..64,pattern=entityName,log"`
		PathPrefix *string `kms:"len=1..512,pattern=policyPath,narrows,log"`
		Marker     *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems   *int32  `kms:"range=1..1000,log"`
	}

	ListAttachedRolePoliciesOutput struct {
		AttachedPolicies []AttachedPolicy
		IsTruncated      *bool
		Marker           *string
	}
)
