// Package custodian encrypts shares to the public keys of those who keep them, so that no
// share leaves the node that made it in the clear.
//
// A key is one of three kinds, which its text tells apart: a recipient of age, an OpenPGP
// public key, or a point on P-256 for HPKE. Age and OpenPGP are for custodians who have such
// a key, perhaps on a smart card, and decrypt by their own tools. HPKE is for those who have
// none, and is the only one where the FIPS module is enforced.
//
// The reader may rely on this: a key that [Parse] accepts can be encrypted to, now and by the
// algorithms that are listed here; what [Key.Encrypt] returns is text that can be mailed or
// printed. It bounds everything that it reads: a hostile key cannot make it use much memory
// or time, and a private key that was given by mistake is refused.
package custodian
