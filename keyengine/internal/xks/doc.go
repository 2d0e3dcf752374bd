// Package xks speaks to external key store proxies, by AWS's "External Key Store
// Proxy API" version 1: JSON over HTTPS, signed with SigV4.
//
// A caller may rely on this: a call ends within the client's timeout and with its
// context; it goes to the store's own host and nowhere else (no redirect, no
// proxy of the environment, and unless the operator allows it to no address that
// is private to the node's network); an answer is bounded before it is parsed,
// and is either well-formed in all that the specification asks for, or an error.
// Every error is or wraps a [Failure]. The proxy's own words reach nobody.
//
// Nothing secret goes through here but signatures: what a proxy encrypts is
// ciphertext already.
package xks
