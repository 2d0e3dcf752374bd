package policy

import (
	"maps"
	"slices"
	"strings"
)

// awsManaged are the policies of AWS that exist in every account, by their names. The
// documents are AWS's; services that the cluster does not have do no harm in them.
var awsManaged = map[string]string{
	"AdministratorAccess": `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`,
	"IAMFullAccess":       `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:*"],"Resource":"*"}]}`,
	"IAMReadOnlyAccess": `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:GenerateCredentialReport",` +
		`"iam:GenerateServiceLastAccessedDetails","iam:Get*","iam:List*","iam:SimulateCustomPolicy","iam:SimulatePrincipalPolicy"],"Resource":"*"}]}`,
	"AWSKeyManagementServicePowerUser": `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["kms:CreateAlias","kms:CreateKey",` +
		`"kms:DeleteAlias","kms:Describe*","kms:GenerateRandom","kms:Get*","kms:List*","kms:TagResource","kms:UntagResource",` +
		`"iam:ListGroups","iam:ListRoles","iam:ListUsers"],"Resource":"*"}]}`,
}

// AWSManaged returns the document of a policy of AWS, given its ARN, such as
// arn:aws:iam::aws:policy/AdministratorAccess. It reports false for all others.
func AWSManaged(arn string) (document string, ok bool) {
	_, name, ok := strings.Cut(arn, ":iam::aws:policy/")
	if !ok || !strings.HasPrefix(arn, "arn:") {
		return "", false
	}
	document, ok = awsManaged[name]
	return document, ok
}

// AWSManagedNames returns the names of the policies that AWSManaged knows.
func AWSManagedNames() []string { return slices.Sorted(maps.Keys(awsManaged)) }
