// Package keystore asks custom key stores: external key store proxies, and the tokens of a
// PKCS #11 module in binaries that are built with the tag pkcs11. It knows nothing of
// requests; what fails is a [Failure], which says how each kind of operation tells of it.
package keystore
