// Package keymat holds key material and implements everything that touches it: the locked
// memory for it, the key hierarchy below the unseal key, the ciphertexts of the KMS and the
// encrypted records of the audit log.
//
// The package guarantees the following:
//
//   - Long-lived secrets are in an [Arena]: locked, left out of core files,
//     between guard pages, and wiped when destroyed. They are accessed in
//     [Secret.With] and cannot be printed, logged or marshalled.
//   - The use of a destroyed or wiped secret returns an error. It never reads as
//     zeros, and a key of zeros causes a panic wherever it would be used.
//   - No function takes a nonce. Every key that encrypts is derived for one
//     object, one audit batch or one message, so that random nonces suffice and
//     no key serves two purposes.
//   - Data that does not authenticate leads to a single error, whatever is wrong.
//   - Formats begin with a version byte and never change: testdata has samples of
//     each, which must remain readable for ever.
//   - Everything works under GODEBUG=fips140=only.
//
// It has one limitation: the standard library keeps expanded AES and HMAC keys on the Go
// heap while it uses them, and they cannot be wiped. These are derived keys wherever
// possible. They live for one call (for an audit batch: as long as its BodySealer), and are
// overwritten when the garbage collector reuses the memory.
package keymat
