// Package cryptops implements the cryptographic operations: those that encrypt, decrypt,
// sign and verify, create data keys and agree on secrets. Each is a function of an
// evaluation and an input.
package cryptops
