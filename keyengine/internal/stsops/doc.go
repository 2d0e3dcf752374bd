// Package stsops implements the operations of AWS's security token service (STS): who the
// caller is, and temporary credentials for sessions of roles and users.
//
// Temporary credentials are not stored. Their session token has all that makes up the
// session, encrypted with the keyring, and each evaluation of a request with it checks again
// that the role, the long-term credential or the identity provider behind it still exists
// and that its sessions were not revoked (see keyengine/iam). So a session that was revoked
// has ended on all nodes when the call that revoked it returns.
package stsops
