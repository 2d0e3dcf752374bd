package iamapi

// Groups of users, and what is attached to them.

// Input and output of CreateGroup, which creates a group.
type (
	CreateGroupInput struct {
		Path      *string `kms:"len=1..512,pattern=path,log"`
		GroupName *string `kms:"required,len=1..128,pattern=entityName,log"`
	}

	CreateGroupOutput struct{ Group *Group }
)

// Input and output of GetGroup, which returns a group and lists the users in it.
type (
	GetGroupInput struct {
		GroupName *string `kms:"required,len=1..128,pattern=entityName,log"`
		Marker    *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems  *int32  `kms:"range=1..1000,log"`
	}

	GetGroupOutput struct {
		Group       *Group
		Users       []User
		IsTruncated *bool
		Marker      *string
	}
)

// UpdateGroupInput is the input of UpdateGroup, which changes the name or the path of a group.
type UpdateGroupInput struct {
	GroupName    *string `kms:"required,len=1..128,pattern=entityName,log"`
	NewPath      *string `kms:"len=1..512,pattern=path,log"`
	NewGroupName *string `kms:"len=1..128,pattern=entityName,log"`
}

// DeleteGroupInput is the input of DeleteGroup, which deletes a group that has no users and no
// policies any more.
type DeleteGroupInput struct {
	GroupName *string `kms:"required,len=1..128,pattern=entityName,log"`
}

// Input and output of ListGroups, which lists the groups of the account.
type (
	ListGroupsInput struct {
		PathPrefix *string `kms:"len=1..512,pattern=pathPrefix,narrows,log"`
		Marker     *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems   *int32  `kms:"range=1..1000,log"`
	}

	ListGroupsOutput struct {
		Groups      []Group
		IsTruncated *bool
		Marker      *string
	}
)

// AddUserToGroupInput is the input of AddUserToGroup, which adds a user to a group.
type AddUserToGroupInput struct {
	GroupName *string `kms:"required,len=1..128,pattern=entityName,log"`
	UserName  *string `kms:"required,len=1..128,pattern=entityName,log"`
}

// RemoveUserFromGroupInput is the input of RemoveUserFromGroup, which removes a user from a
// group.
type RemoveUserFromGroupInput struct {
	GroupName *string `kms:"required,len=1..128,pattern=entityName,log"`
	UserName  *string `kms:"required,len=1..128,pattern=entityName,log"`
}

// PutGroupPolicyInput is the input of PutGroupPolicy, which adds an inline policy to a group,
// or replaces it.
type PutGroupPolicyInput struct {
	GroupName      *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyName     *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyDocument *string `kms:"required,len=1..131072,pattern=policy,narrows,log"`
}

// Input and output of GetGroupPolicy, which returns an inline policy of a group.
type (
	GetGroupPolicyInput struct {
		GroupName  *string `kms:"required,len=1..128,pattern=entityName,log"`
		PolicyName *string `kms:"required,len=1..128,pattern=entityName,log"`
	}

	GetGroupPolicyOutput struct {
		GroupName      *string
		PolicyName     *string
		PolicyDocument *string
	}
)

// Input and output of ListGroupPolicies, which lists the names of a group's inline policies.
type (
	ListGroupPoliciesInput struct {
		GroupName *string `kms:"required,len=1..128,pattern=entityName,log"`
		Marker    *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems  *int32  `kms:"range=1..1000,log"`
	}

	ListGroupPoliciesOutput struct {
		PolicyNames []string
		IsTruncated *bool
		Marker      *string
	}
)

// DeleteGroupPolicyInput is the input of DeleteGroupPolicy, which deletes an inline policy of
// a group.
type DeleteGroupPolicyInput struct {
	GroupName  *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyName *string `kms:"required,len=1..128,pattern=entityName,log"`
}

// AttachGroupPolicyInput is the input of AttachGroupPolicy, which attaches a managed policy to
// a group.
type AttachGroupPolicyInput struct {
	GroupName *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyArn *string `kms:"required,len=20..2048,log"`
}

// DetachGroupPolicyInput is the input of DetachGroupPolicy, which detaches a managed policy
// from a group.
type DetachGroupPolicyInput struct {
	GroupName *string `kms:"required,len=1..128,pattern=entityName,log"`
	PolicyArn *string `kms:"required,len=20..2048,log"`
}

// Input and output of ListAttachedGroupPolicies, which lists the managed policies that are
// attached to a group.
type (
	ListAttachedGroupPoliciesInput struct {
		GroupName  *string `kms:"required,len=1..128,pattern=entityName,log"`
		PathPrefix *string `kms:"len=1..512,pattern=policyPath,narrows,log"`
		Marker     *string `kms:"len=1..320,pattern=iamMarker,log"`
		MaxItems   *int32  `kms:"range=1..1000,log"`
	}

	ListAttachedGroupPoliciesOutput struct {
		AttachedPolicies []AttachedPolicy
		IsTruncated      *bool
		Marker           *string
	}
)
