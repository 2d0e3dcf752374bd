// Package cryptops has the operations that use keys: to encrypt, decrypt, sign, verify,
// make data keys and agree on secrets. Each is a function of an evaluation and an input.
package cryptops
