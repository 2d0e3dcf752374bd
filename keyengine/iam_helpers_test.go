package keyengine

import (
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A person is a user with an access key.
type person struct {
	name, arn, id string
	key           *ceremony.InitResult // AccessKeyID and SecretAccessKey
	identity      iam.Identity
}

// newPerson creates a user with an access key and, unless it is empty, an inline policy with
// the given statements.
func (c *testCluster) newPerson(name string, statements ...string) *person {
	c.t.Helper()
	u := must[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: &name}).User
	if len(statements) > 0 {
		must[request.None](c, "PutUserPolicy", &iamapi.PutUserPolicyInput{UserName: &name, PolicyName: new("own"), PolicyDocument: new(policyDocument(statements...))})
	}
	p := &person{name: name, arn: *u.Arn, id: *u.UserId}
	p.key = c.newAccessKey(&name)
	p.identity = c.signIn(c.engine, p.key)
	return p
}

// newAccessKey creates an access key of a user, or of the root user for nil.
func (c *testCluster) newAccessKey(name *string) *ceremony.InitResult {
	c.t.Helper()
	k := must[iamapi.CreateAccessKeyOutput](c, "CreateAccessKey", &iamapi.CreateAccessKeyInput{UserName: name}).AccessKey
	return &ceremony.InitResult{AccessKeyID: *k.AccessKeyId, SecretAccessKey: *k.SecretAccessKey}
}

// signIn authenticates on a node with a signature.
func (c *testCluster) signIn(e *Engine, key *ceremony.InitResult) iam.Identity {
	c.t.Helper()
	id, err := e.AuthenticateSigV4(c.t.Context(), enginetest.SigV4Proof(key, testRegion, "text"))
	if err != nil {
		c.t.Fatalf("signing in with %s: %v", key.AccessKeyID, err)
	}
	return id
}

// refused checks that an identity is no longer valid on a node.
func (c *testCluster) refused(e *Engine, id iam.Identity, when string) {
	c.t.Helper()
	_, err := callAs[iamapi.GetUserOutput](c, e, id, "GetUser", &iamapi.GetUserInput{})
	if err == nil || err.Error() != iam.ErrUnrecognized.Error() {
		c.t.Errorf("%s: got error %v, want ErrUnrecognized", when, err)
	}
}

// newPolicy creates a managed policy and returns its ARN.
func (c *testCluster) newPolicy(name string, statements ...string) string {
	c.t.Helper()
	return *must[iamapi.CreatePolicyOutput](c, "CreatePolicy", &iamapi.CreatePolicyInput{PolicyName: &name, PolicyDocument: new(policyDocument(statements...))}).Policy.Arn
}

// trust returns a trust policy for the given principal.
func trust(principal string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":` + principal + `,"Action":"sts:AssumeRole"}]}`
}

// newRole creates a role that the account trusts, and returns its ARN.
func (c *testCluster) newRole(name string) string {
	c.t.Helper()
	return *must[iamapi.CreateRoleOutput](c, "CreateRole", &iamapi.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: new(trust(`{"AWS":"` + testAccount + `"}`))}).Role.Arn
}

// fails checks that a request of the root user is refused.
func (c *testCluster) fails(name string, in any, kind *kmsapi.Error, message string) {
	c.t.Helper()
	_, err := c.engine.Do(c.t.Context(), c.caller(c.root), operationNamed(name), in)
	wantError(c.t, err, kind, message)
}

// arnOf returns an ARN of IAM in the test's account.
func arnOf(resource string) string { return "arn:aws:iam::" + testAccount + ":" + resource }

const awsAdmin = "arn:aws:iam::aws:policy/AdministratorAccess"
