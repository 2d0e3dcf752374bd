// Package keystore calls custom key stores: external key store proxies, and the tokens of a
// PKCS #11 module in binaries that are built with the tag pkcs11. It is independent of
// requests. Its errors are a [Failure], which has the error for each kind of operation.
package keystore
