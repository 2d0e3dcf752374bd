package iamapi

// Simulation of policies.

// ContextEntry is a condition key of the simulated request with its values.
type ContextEntry struct {
	ContextKeyName   *string  `kms:"len=5..256,log"`
	ContextKeyValues []string `kms:"log"`
	ContextKeyType   *string  `kms:"enum=ContextKeyTypeEnum,log"`
}

// Position is a place in a policy document. Lines and columns begin at 1.
type Position struct {
	Line   *int32
	Column *int32
}

// Statement is a statement that a decision rests on.
type Statement struct {
	SourcePolicyId   *string
	SourcePolicyType *string
	StartPosition    *Position
	EndPosition      *Position
}

// OrganizationsDecisionDetail says whether the policies of AWS Organizations allow a request.
// Conclave has none.
type OrganizationsDecisionDetail struct{ AllowedByOrganizations *bool }

// PermissionsBoundaryDecisionDetail says whether the permissions boundary allows a request.
type PermissionsBoundaryDecisionDetail struct{ AllowedByPermissionsBoundary *bool }

// ResourceSpecificResult is the decision for one resource of a simulation.
type ResourceSpecificResult struct {
	EvalResourceName                  *string
	EvalResourceDecision              *string
	MatchedStatements                 []Statement
	MissingContextValues              []string
	EvalDecisionDetails               map[string]string
	PermissionsBoundaryDecisionDetail *PermissionsBoundaryDecisionDetail
}

// EvaluationResult is the decision for one action of a simulation.
type EvaluationResult struct {
	EvalActionName                    *string
	EvalResourceName                  *string
	EvalDecision                      *string
	MatchedStatements                 []Statement
	MissingContextValues              []string
	OrganizationsDecisionDetail       *OrganizationsDecisionDetail
	PermissionsBoundaryDecisionDetail *PermissionsBoundaryDecisionDetail
	EvalDecisionDetails               map[string]string
	ResourceSpecificResults           []ResourceSpecificResult
}

// Input and output of SimulateCustomPolicy, which says how requests would be decided with the
// policies in the input.
type (
	SimulateCustomPolicyInput struct {
		PolicyInputList                    []string       `kms:"required,each.len=1..131072,each.pattern=policy,narrows,nolog"`
		PermissionsBoundaryPolicyInputList []string       `kms:"each.len=1..131072,each.pattern=policy,narrows,nolog"`
		ActionNames                        []string       `kms:"required,each.len=3..128,log"`
		ResourceArns                       []string       `kms:"each.len=1..2048,log"`
		ResourcePolicy                     *string        `kms:"len=1..131072,pattern=policy,narrows,nolog"`
		ResourceOwner                      *string        `kms:"len=1..2048,log"`
		CallerArn                          *string        `kms:"len=1..2048,log"`
		ContextEntries                     []ContextEntry `kms:"narrows,nolog"`
		ResourceHandlingOption             *string        `kms:"len=1..64,log"`
		MaxItems                           *int32         `kms:"range=1..1000,log"`
		Marker                             *string        `kms:"len=1..320,pattern=iamMarker,log"`
	}

	SimulateCustomPolicyOutput struct {
		EvaluationResults []EvaluationResult
		IsTruncated       *bool
		Marker            *string
	}
)

// Input and output of SimulatePrincipalPolicy, which says how requests of a user, a group or a
// role would be decided.
type (
	SimulatePrincipalPolicyInput struct {
		PolicySourceArn                    *string        `kms:"required,len=20..2048,log"`
		PolicyInputList                    []string       `kms:"each.len=1..131072,each.pattern=policy,narrows,nolog"`
		PermissionsBoundaryPolicyInputList []string       `kms:"each.len=1..131072,each.pattern=policy,narrows,nolog"`
		ActionNames                        []string       `kms:"required,each.len=3..128,log"`
		ResourceArns                       []string       `kms:"each.len=1..2048,log"`
		ResourcePolicy                     *string        `kms:"len=1..131072,pattern=policy,narrows,nolog"`
		ResourceOwner                      *string        `kms:"len=1..2048,log"`
		CallerArn                          *string        `kms:"len=1..2048,log"`
		ContextEntries                     []ContextEntry `kms:"narrows,nolog"`
		ResourceHandlingOption             *string        `kms:"len=1..64,log"`
		MaxItems                           *int32         `kms:"range=1..1000,log"`
		Marker                             *string        `kms:"len=1..320,pattern=iamMarker,log"`
	}

	SimulatePrincipalPolicyOutput SimulateCustomPolicyOutput
)

// Input and output of GetContextKeysForCustomPolicy, which lists the condition keys that the
// policies in the input use.
type (
	GetContextKeysForCustomPolicyInput struct {
		PolicyInputList []string `kms:"required,each.len=1..131072,each.pattern=policy,narrows,nolog"`
	}

	GetContextKeysForCustomPolicyOutput struct{ ContextKeyNames []string }
)

// Input and output of GetContextKeysForPrincipalPolicy, which lists the condition keys that
// the policies of a principal use.
type (
	GetContextKeysForPrincipalPolicyInput struct {
		PolicySourceArn *string  `kms:"required,len=20..2048,log"`
		PolicyInputList []string `kms:"each.len=1..131072,each.pattern=policy,narrows,nolog"`
	}

	GetContextKeysForPrincipalPolicyOutput GetContextKeysForCustomPolicyOutput
)
