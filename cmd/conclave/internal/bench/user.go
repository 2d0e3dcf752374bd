package bench

import (
	"context"
	"fmt"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
	"github.com/conclavekms/conclave/transport/iampb"
)

// userPolicies are the managed policies of the user. They are like those of an application: one
// allows the use of keys, and one forbids what the application must never do. All statements that
// deny something have to be looked at, and a condition of one of them evaluated.
var userPolicies = []struct{ name, document string }{
	{"use-keys", `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":["kms:DescribeKey","kms:GetPublicKey"],"Resource":"*"},
		{"Effect":"Allow","Action":"kms:List*","Resource":"*"},
		{"Effect":"Allow","Action":"kms:GenerateDataKey*","Resource":"arn:aws:kms:*:000000000000:key/*"},
		{"Effect":"Allow","Action":["kms:Encrypt","kms:Decrypt","kms:ReEncrypt*"],"Resource":"arn:aws:kms:*:000000000000:key/*"}
	]}`},
	{"guard", `{"Version":"2012-10-17","Statement":[
		{"Effect":"Deny","Action":["kms:ScheduleKeyDeletion","kms:DisableKey","kms:PutKeyPolicy"],"Resource":"*"},
		{"Effect":"Deny","Action":["iam:*","sts:AssumeRole"],"Resource":"*"},
		{"Effect":"Deny","Action":"kms:*","Resource":"*","Condition":{"StringNotEquals":{"aws:RequestedRegion":["us-east-1","eu-west-1"]}}}
	]}`},
}

// newUser creates the user with an access key.
func newUser(ctx context.Context, c *localcluster.Cluster) (p principal, err error) {
	cl, err := c.Connect(ctx, c.Nodes[0])
	if err != nil {
		return p, err
	}
	defer cl.Close()
	iam, name := cl.IAM(), "bench"
	failed := func(err error) (principal, error) {
		return p, cli.Explain("creating a user with two policies", c.Nodes[0].GRPC, err)
	}
	if _, err := iam.CreateUser(ctx, &iampb.CreateUserRequest{UserName: &name}); err != nil {
		return failed(err)
	}
	for _, m := range userPolicies {
		made, err := iam.CreatePolicy(ctx, &iampb.CreatePolicyRequest{PolicyName: &m.name, PolicyDocument: &m.document})
		if err != nil {
			return failed(err)
		}
		if _, err := iam.AttachUserPolicy(ctx, &iampb.AttachUserPolicyRequest{UserName: &name, PolicyArn: made.GetPolicy().Arn}); err != nil {
			return failed(err)
		}
	}
	made, err := iam.CreateAccessKey(ctx, &iampb.CreateAccessKeyRequest{UserName: &name})
	if err != nil {
		return failed(err)
	}
	key := made.GetAccessKey()
	if key.GetAccessKeyId() == "" || key.GetSecretAccessKey() == "" {
		return p, fmt.Errorf("%s gave out no access key", c.Nodes[0].GRPC)
	}
	return principal{key.GetAccessKeyId(), key.GetSecretAccessKey()}, nil
}
