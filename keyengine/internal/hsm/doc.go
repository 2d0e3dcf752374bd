// Package hsm encrypts with keys in PKCS #11 tokens. Its code is built only with the build
// tag pkcs11, because it needs cgo: the usual binary is static and loads no foreign code.
//
// The package guarantees the following. Keys are generated in the token and cannot be
// extracted. Ciphertexts contain the id of their key, so that they can be decrypted
// whichever key was used. A PIN is tried once for each Connect and once per process for
// other calls, and never in a loop that could lock the token. A module that hangs delays
// its callers only until their contexts end.
package hsm
