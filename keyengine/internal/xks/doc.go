// Package xks calls external key store proxies, according to AWS's "External Key Store
// Proxy API" version 1: JSON over HTTPS, signed with SigV4.
//
// The package guarantees the following. A call ends within the client's timeout and with
// its context. It goes to the store's own host only: redirects and proxies in the
// environment are not followed, and addresses that are private to the node's network are
// refused unless the operator allows them. An answer is limited in size before it is
// parsed, and is either valid in everything that the specification requires, or leads to an
// error. Every error is or wraps a [Failure]. The proxy's own messages are not passed on.
//
// Apart from signatures, no secrets are sent: what a proxy encrypts is ciphertext already.
package xks
