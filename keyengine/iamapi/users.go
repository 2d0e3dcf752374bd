package iamapi

import "time"

// Users, what is attached to them, and their tags.

// Tag is a tag of a user, a role, a policy, a provider or a session.
type Tag struct {
	Key   *string `kms:"required,len=1..128,pattern=tagKey,log"`
	Value *string `kms:"required,len=0..256,pattern=tagValue,log"`
}

// AttachedPermissionsBoundary names the managed policy that bounds a principal's permissions.
type AttachedPermissionsBoundary struct {
	PermissionsBoundaryType *string
	PermissionsBoundaryArn  *string
}

// User is a user of the account.
type User struct {
	Path                *string
	UserName            *string
	UserId              *string
	Arn                 *string
	CreateDate          *time.Time
	PasswordLastUsed    *time.Time
	PermissionsBoundary *AttachedPermissionsBoundary
	Tags                []Tag
}

// Input and output of CreateUser, which creates a user.
type (
	CreateUserInput struct {
		Path                *string `kms:"len=1..512,pattern=path,log"`
		UserName            *string `kms:"required,len=1..64,pattern=entityName,log"`
		PermissionsBoundary *string `kms:"len=20..2048,narrows,log"`
		Tags                []Tag   `kms:"len=0..50,open,log"`
	}

	CreateUserOutput struct{ User *User }
)

// Input and output of GetUser, which returns a user, or the caller's own if it names none.
type (
	GetUserInput struct {
		UserName *string `kms:"len=1..128,pattern=entityName,log"`
	}

	GetUserOutput struct{ User *User }
)

// Input and output of ListUsers, which lists the users of the account.
type (
	ListUsersInput struct {
		PathPrefix *string `kms:"len=1..512,pattern=pathPrefix,narrows,log"`
		Marker     *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems   *int32  `kms:"range=1..1000,log"`
	}

	ListUsersOutput struct {
		Users       []User
		IsTruncated *bool
		Marker      *string
	}
)

// UpdateUserInput is the input of UpdateUser, which changes the name or the path of a user.
type UpdateUserInput struct {
	UserName    *string `kms:"required,len=1..128,pattern=entityName,log"`
	NewPath     *string `kms:"len=1..512,pattern=path,log"`
	NewUserName *string `kms:"len=1..64,pattern=entityName,log"`
}

// DeleteUserInput is the input of DeleteUser, which deletes a user that nothing is attached to
// any more.
type DeleteUserInput struct {
	UserName *string `kms:"required,len=1..128,pattern=entityName,log"`
}

// TagUserInput is the input of TagUser, which adds tags to a user, or changes their values.
type TagUserInput struct {
	UserName *string `kms:"required,len=1..128,pattern=entityName,log"`
	Tags     []Tag   `kms:"required,len=0..50,open,log"`
}

// UntagUserInput is the input of UntagUser, which removes tags from a user.
type UntagUserInput struct {
	UserName *string  `kms:"required,len=1..128,pattern=entityName,log"`
	TagKeys  []string `kms:"required,len=0..50,each.len=1..128,each.pattern=tagKey,log"`
}

// Input and output of ListUserTags, which lists the tags of a user.
type (
	ListUserTagsInput struct {
		UserName *string `kms:"required,len=1..128,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListUserTagsOutput struct {
		Tags        []Tag
		IsTruncated *bool
		Marker      *string
	}
)

// PutUserPermissionsBoundaryInput is the input of PutUserPermissionsBoundary, which sets the
// permissions boundary of a user.
type PutUserPermissionsBoundaryInput struct {
	UserName            *string `kms:"required,len=1..64,pattern=entityName,log"`
	PermissionsBoundary *string `kms:"required,len=20..2048,narrows,log"`
}

// DeleteUserPermissionsBoundaryInput is the input of DeleteUserPermissionsBoundary, which
// removes the permissions boundary of a user.
type DeleteUserPermissionsBoundaryInput struct {
	UserName *string `kms:"required,len=1..64,pattern=entityName,log"`
}

// PutUserPolicyInput is the input of PutUserPolicy, which adds an inline policy to a user, or
// replaces it.
type PutUserPolicyInput struct {
	UserName       *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyName     *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyDocument *string `kms:"required,len=1..131072,pattern=policy,narrows,log"`
}

// Input and output of GetUserPolicy, which returns an inline policy of a user.
type (
	GetUserPolicyInput struct {
		UserName   *string `kms:"required,len=1..128,pattern=entityName,log"`
		PolicyName *string `kms:"required,len=1..128,pattern=entityName,log"`
	}

	GetUserPolicyOutput struct {
		UserName       *string
		PolicyName     *string
		PolicyDocument *string
	}
)

// Input and output of ListUserPolicies, which lists the names of a user's inline policies.
type (
	ListUserPoliciesInput struct {
		UserName *string `kms:"required,len=1..128,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListUserPoliciesOutput struct {
		PolicyNames []string
		IsTruncated *bool
		Marker      *string
	}
)

// DeleteUserPolicyInput is the input of DeleteUserPolicy, which deletes an inline policy of a
// user.
type DeleteUserPolicyInput struct {
	UserName   *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyName *string `kms:"required,len=1..128,pattern=entityName,log"`
}

// AttachUserPolicyInput is the input of AttachUserPolicy, which attaches a managed policy to a
// user.
type AttachUserPolicyInput struct {
	UserName  *string `kms:"required,len=1..64,pattern=entityName,log"`
	PolicyArn *string `kms:"required,len=20..2048,log"`
}

// DetachUserPolicyInput is the input of DetachUserPolicy, which detaches a managed policy from
// a user.
type DetachUserPolicyInput struct {
	UserName  *string `kms:"required,len=1..64,pattern=entityName,log"`
	PolicyArn *string `kms:"required,len=20..2048,log"`
}

// AttachedPolicy is a managed policy that is attached to a principal or a group.
type AttachedPolicy struct {
	PolicyName *string
	PolicyArn  *string
}

// Input and output of ListAttachedUserPolicies, which lists the managed policies that are
// attached to a user.
type (
	ListAttachedUserPoliciesInput struct {
		UserName   *string `kms:"required,len=1..64,pattern=entityName,log"`
		PathPrefix *string `kms:"len=1..512,pattern=policyPath,narrows,log"`
		Marker     *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems   *int32  `kms:"range=1..1000,log"`
	}

	ListAttachedUserPoliciesOutput struct {
		AttachedPolicies []AttachedPolicy
		IsTruncated      *bool
		Marker           *string
	}
)

// Group is a group of users.
type Group struct {
	Path       *string
	GroupName  *string
	GroupId    *string
	Arn        *string
	CreateDate *time.Time
}

// Input and output of ListGroupsForUser, which lists the groups that a user is in.
type (
	ListGroupsForUserInput struct {
		UserName *string `kms:"required,len=1..128,pattern=entityName,log"`
		Marker   *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems *int32  `kms:"range=1..1000,log"`
	}

	ListGroupsForUserOutput struct {
		Groups      []Group
		IsTruncated *bool
		Marker      *string
	}
)
