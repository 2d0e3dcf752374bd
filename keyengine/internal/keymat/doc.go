// Package keymat holds key material and does everything that touches it: the
// locked memory it lives in, the key hierarchy from the unseal key down, the
// ciphertexts of the KMS and the sealed bodies of the audit log.
//
// A caller may rely on this:
//
//   - Long-lived secrets stand in an [Arena]: locked, left out of core files,
//     between guard pages, and wiped when destroyed. They are borrowed inside
//     [Secret.With] and cannot be printed, logged or marshalled.
//   - A destroyed or wiped secret gives an error. It never reads as zeros, and
//     a key of zeros panics wherever it would be used.
//   - No function takes a nonce. Every key that encrypts is derived for one
//     object, one audit batch or one message, so that random nonces suffice and
//     one key never serves two purposes.
//   - What does not authenticate gives one error, whatever is wrong with it.
//   - Formats carry a version byte and never change: testdata holds samples of
//     each that must open for ever.
//   - All of it works under GODEBUG=fips140=only.
//
// What it cannot do: the standard library keeps expanded AES and HMAC keys on
// the Go heap while it uses them, and nothing can wipe those. They are of
// derived keys wherever possible, live for one call (for an audit batch: as
// long as its sealer), and are overwritten when the collector reuses the memory.
package keymat
