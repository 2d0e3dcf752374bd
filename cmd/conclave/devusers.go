package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/iampb"
)

// devUsersFile has the access keys of the users that dev makes, in its directory.
const devUsersFile = "users.json"

// devUser is a user of the development server, with an access key.
type devUser struct {
	Name            string `json:"name"`
	About           string `json:"about"`
	AccessKeyID     string `json:"access_key_id"`
	SecretAccessKey string `json:"secret_access_key"`
}

// devUsers are the users that dev makes, with their policies.
var devUsers = []struct{ name, about, attach, policy string }{
	{"admin", "may do everything", "arn:aws:iam::aws:policy/AdministratorAccess", ""},
	{"app", "may use the key with the alias alias/app", "", `{"Version":"2012-10-17","Statement":[{"Sid":"UseTheKey","Effect":"Allow",` +
		`"Action":["kms:Encrypt","kms:Decrypt","kms:ReEncrypt*","kms:GenerateDataKey*","kms:DescribeKey"],"Resource":"*",` +
		`"Condition":{"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/app"}}}]}`},
	{"auditor", "may read the audit log, and see what there is", "", `{"Version":"2012-10-17","Statement":[{"Sid":"ReadOnly","Effect":"Allow",` +
		`"Action":["conclave:ReadAudit","cloudtrail:LookupEvents","kms:Describe*","kms:Get*","kms:List*","iam:Get*","iam:List*"],"Resource":"*"}]}`},
}

// secondRoot is the root user of the second account.
const secondRoot = "second-account"

// secondAccount returns the number of the second account.
func secondAccount(first string) string {
	if first == "111111111111" {
		return "222222222222"
	}
	return "111111111111"
}

// users returns the access keys of dev's users. At the first start, it makes the users.
func (d *devServer) users(ctx context.Context, at node.Addresses) ([]devUser, error) {
	name := filepath.Join(d.Dir, devUsersFile)
	raw, err := os.ReadFile(name)
	if err == nil {
		var users []devUser
		if err := json.Unmarshal(raw, &users); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return users, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	info := d.info(at)
	c, err := client.Dial(ctx, client.Config{
		Address: at.GRPC, Plaintext: !d.TLS, CAFile: info.CA, CertFile: info.Cert, KeyFile: info.Key, UserAgent: "conclave-dev/" + cli.Version,
		AccessKeyID: info.AccessKeyID, SecretAccessKey: client.Secret(info.SecretAccessKey),
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var users []devUser
	for _, u := range devUsers {
		key, err := makeDevUser(ctx, c.IAM(), u.name, u.attach, u.policy)
		if err != nil {
			return nil, fmt.Errorf("making the user %s: %w", u.name, err)
		}
		users = append(users, devUser{u.name, u.about, key.GetAccessKeyId(), key.GetSecretAccessKey()})
	}
	second := secondAccount(d.Account)
	id, secret, err := client.CreateAccount(ctx, c.Accounts(), second, "second")
	if err != nil && !hasType(err, "EntityAlreadyExists") {
		return nil, fmt.Errorf("making the account %s: %w", second, err)
	}
	if err == nil {
		users = append(users, devUser{secondRoot, "the root user of the account " + second, id, string(secret)})
		clear(secret)
	}
	if raw, err = json.MarshalIndent(users, "", "  "); err != nil {
		return nil, err
	}
	return users, files.Write(name, append(raw, '\n'))
}

// makeDevUser makes a user with an access key. If an earlier start was interrupted, the user
// exists already, and the access key replaces those whose secrets nobody has.
func makeDevUser(ctx context.Context, c iampb.IAMClient, name, attach, policy string) (*iampb.AccessKey, error) {
	_, err := c.CreateUser(ctx, &iampb.CreateUserRequest{UserName: &name})
	if err != nil && !hasType(err, "EntityAlreadyExists") {
		return nil, err
	}
	if err != nil {
		lost, err := c.ListAccessKeys(ctx, &iampb.ListAccessKeysRequest{UserName: &name})
		if err != nil {
			return nil, err
		}
		for _, k := range lost.GetAccessKeyMetadata() {
			if _, err := c.DeleteAccessKey(ctx, &iampb.DeleteAccessKeyRequest{UserName: &name, AccessKeyId: k.AccessKeyId}); err != nil {
				return nil, err
			}
		}
	}
	if attach != "" {
		if _, err := c.AttachUserPolicy(ctx, &iampb.AttachUserPolicyRequest{UserName: &name, PolicyArn: &attach}); err != nil {
			return nil, err
		}
	}
	if policy != "" {
		if _, err := c.PutUserPolicy(ctx, &iampb.PutUserPolicyRequest{UserName: &name, PolicyName: &name, PolicyDocument: &policy}); err != nil {
			return nil, err
		}
	}
	res, err := c.CreateAccessKey(ctx, &iampb.CreateAccessKeyRequest{UserName: &name})
	return res.GetAccessKey(), err
}

// hasType reports whether an error is one that the server calls so.
func hasType(err error, name string) bool {
	e, ok := client.FromError(err)
	return ok && e.Type == name
}

// as returns the server's information with the access key of another user than root.
func (i *devInfo) as(user string) (*devInfo, error) {
	if user == "" || user == "root" {
		return i, nil
	}
	at := slices.IndexFunc(i.Users, func(u devUser) bool { return u.Name == user })
	if at < 0 {
		return nil, cli.Usagef("the development server has no user %q: choose root, admin, app, auditor or %s", user, secondRoot)
	}
	other := *i
	other.AccessKeyID, other.SecretAccessKey = i.Users[at].AccessKeyID, i.Users[at].SecretAccessKey
	return &other, nil
}
