// Package iamops has the operations of IAM that manage an account: its users with their
// access keys, groups, roles, managed policies, identity providers and its alias. Nobody
// reaches another account with them: a request concerns the account of its caller.
//
// An operation first authorises the caller for the ARN that the request names, whether or
// not there is something with that ARN, and only then says that there is nothing. What users,
// groups and roles have in common is written once, for a [kind] of entity.
//
// A change takes effect on all nodes before its request is answered: everything that a
// decision depends on is in the read set of its record.
package iamops
