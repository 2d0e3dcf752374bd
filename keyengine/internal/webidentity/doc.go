// Package webidentity verifies the tokens of identity providers (OpenID Connect), such as the
// service account tokens of Kubernetes. A token is parsed, which proves nothing; its issuer
// says which provider must be registered for it; and then it is verified with the
// provider's keys, which come from the provider's registration or from the issuer itself.
//
// Strangers choose what a token says. So nothing is fetched that it names: keys are only
// asked of issuers that the caller of this package has found registered, at a limited
// rate, within limits of size and time, and never at addresses that are not public unless
// the operator allows it. Keys that have to be shared with a verifier (HS256 and the like)
// are no proof, and algorithm "none" is none.
package webidentity
