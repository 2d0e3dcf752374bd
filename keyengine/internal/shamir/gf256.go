package shamir

// The field is GF(2)[x] / (x^8 + x^4 + x^3 + x + 1), that of AES. Addition is exclusive or.
// Multiplication executes the same instructions for all operands; tables of logarithms
// would be faster but would leave traces of the secret in the cache.

// mul returns the product of a and b.
func mul(a, b byte) byte {
	var p byte
	for range 8 {
		p ^= a & -(b & 1)             // -1 is all ones: adds a when b's low bit is set
		a = a<<1 ^ (0x1b & -(a >> 7)) // times x, reduced
		b >>= 1
	}
	return p
}

// inverse returns the multiplicative inverse of a, and 0 for 0: a^254, since
// every non-zero element has a^255 = 1.
func inverse(a byte) byte {
	a2 := mul(a, a)
	a3 := mul(a2, a)
	a6 := mul(a3, a3)
	a12 := mul(a6, a6)
	a15 := mul(a12, a3)
	a30 := mul(a15, a15)
	a60 := mul(a30, a30)
	a120 := mul(a60, a60)
	a240 := mul(a120, a120)
	a252 := mul(a240, a12)
	return mul(a252, a2)
}
