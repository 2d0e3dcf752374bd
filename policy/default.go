package policy

// DefaultKeyPolicy returns the policy of a key that was created without one,
// byte for byte as AWS renders it: one statement that gives the account, that
// is, its root user and its identity policies, control of the key. The
// partition and the account id must be well formed.
func DefaultKeyPolicy(partition, account string) string {
	return `{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:` + partition + `:iam::` + account + `:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`
}
