package access

import (
	"context"
	"fmt"
	"strings"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/keys"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/iampb"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// caller returns the caller.
func caller(ctx context.Context, c *cli.Connection) (policy.Principal, error) {
	res, err := c.STS().GetCallerIdentity(ctx, &iampb.GetCallerIdentityRequest{})
	if err != nil {
		return policy.Principal{}, fmt.Errorf("asking who calls: %w", err)
	}
	return policy.ParsePrincipal(res.GetArn())
}

// policyARN returns the ARN of a managed policy that may be given by its name.
func policyARN(ctx context.Context, c *cli.Connection, name string) (string, error) {
	if strings.HasPrefix(name, "arn:") {
		return name, nil
	}
	who, err := caller(ctx, c)
	if err != nil {
		return "", err
	}
	prefix := "arn:" + who.Partition + ":iam::"
	if arn := prefix + "aws:policy/" + name; isAWSManaged(arn) {
		return arn, nil
	}
	return prefix + who.Account + ":policy/" + name, nil
}

func isAWSManaged(arn string) bool {
	_, ok := policy.AWSManaged(arn)
	return ok
}

// principalARN returns the ARN of a user, group or role of the caller's account that may be
// given as user/NAME, group/NAME or role/NAME, with its path if it has one.
func principalARN(ctx context.Context, c *cli.Connection, name string) (string, error) {
	if strings.HasPrefix(name, "arn:") {
		return name, nil
	}
	kind, rest, _ := strings.Cut(name, "/")
	switch {
	case rest == "":
	case kind == "user" || kind == "group" || kind == "role":
		who, err := caller(ctx, c)
		if err != nil {
			return "", err
		}
		return "arn:" + who.Partition + ":iam::" + who.Account + ":" + name, nil
	}
	return "", cli.Usagef("principal %q is neither an ARN nor user/NAME, group/NAME or role/NAME", name)
}

// keyARN returns the ARN of a key that may be given in any form of KEY.
func keyARN(ctx context.Context, c *cli.Connection, name string) (string, error) {
	m, err := describeKey(ctx, c, name)
	return m.GetArn(), err
}

func describeKey(ctx context.Context, c *cli.Connection, name string) (*kmspb.KeyMetadata, error) {
	name = keys.Name(name)
	res, err := c.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: &name})
	if err != nil {
		return nil, fmt.Errorf("looking up key %s: %w", name, err)
	}
	return res.GetKeyMetadata(), nil
}
