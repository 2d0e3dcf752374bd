// Package iam tells who callers are: a principal, proved by a signature, a session token or
// a client certificate. An [Identity] is made from a proof only, and stays good only while
// the credential behind it does, which every evaluation of a request asks again.
package iam
