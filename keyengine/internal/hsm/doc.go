// Package hsm encrypts with keys in PKCS #11 tokens. It has something in it only
// with the build tag pkcs11, which needs cgo: the usual binary is static and loads
// no foreign code.
//
// A caller may rely on this: keys are made in the token, cannot be taken out of it,
// and are found by an id that ciphertexts carry, so that whichever key encrypted
// decrypts; a PIN is tried once for each connecting and once a process for using,
// never in a loop that would lock the token; and a module that hangs holds up its
// callers only until their context ends.
package hsm
