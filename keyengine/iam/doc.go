// Package iam establishes the identity of callers: a principal, proved by a signature, a
// session token or a client certificate. An [Identity] is created from a proof only and is
// valid only as long as the credential behind it, which every evaluation of a request
// checks again.
package iam
