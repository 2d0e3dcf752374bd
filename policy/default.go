package policy

// DefaultKeyPolicy is the policy of a key that was created without one, byte
// for byte as AWS renders it: one statement that hands the key to the account,
// that is, to its root user and to its identity policies. The partition and
// the account id must be well formed.
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
