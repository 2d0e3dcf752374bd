package primitive

import (
	"bytes"
	"crypto/sha3"
	"encoding/binary"
)

// Verification of an ML-DSA signature over a message representative µ that the caller
// computed: ML-DSA.Verify_internal of FIPS 204 (algorithm 8) from line 8 on. The library
// signs over µ but does not verify over it. Nothing here is secret, so constant time is not
// needed.

const (
	mldsaN = 256     // coefficients of a polynomial
	mldsaQ = 8380417 // their modulus
	mldsaD = 13      // bits dropped from t
)

// mldsaSet is a parameter set of FIPS 204, table 1.
type mldsaSet struct {
	k, l      int    // rows and columns of A
	tau       int    // non-zero coefficients of the challenge
	challenge int    // bytes of c~: lambda/4
	zBits     int    // 1 + log2(gamma1)
	gamma1    uint32 // range of z
	gamma2    uint32 // half of the range of low bits
	beta      uint32 // tau * eta
	omega     int    // most hints in a signature
	w1Bits    int    // bits of a coefficient of w1
}

var mldsaSets = map[string]mldsaSet{
	"ML_DSA_44": {k: 4, l: 4, tau: 39, challenge: 32, zBits: 18, gamma1: 1 << 17, gamma2: (mldsaQ - 1) / 88, beta: 78, omega: 80, w1Bits: 6},
	"ML_DSA_65": {k: 6, l: 5, tau: 49, challenge: 48, zBits: 20, gamma1: 1 << 19, gamma2: (mldsaQ - 1) / 32, beta: 196, omega: 55, w1Bits: 4},
	"ML_DSA_87": {k: 8, l: 7, tau: 60, challenge: 64, zBits: 20, gamma1: 1 << 19, gamma2: (mldsaQ - 1) / 32, beta: 120, omega: 75, w1Bits: 4},
}

// poly is a polynomial, in either domain, with coefficients in [0, q).
type poly [mldsaN]uint32

// zetas are the powers of the root of unity 1753 in the order of the NTT's loops.
var zetas = func() (z [mldsaN]uint32) {
	for i := range z {
		z[i] = 1
		for range bitReverse8(i) {
			z[i] = mulMod(z[i], 1753)
		}
	}
	return z
}()

func bitReverse8(i int) int {
	r := 0
	for b := range 8 {
		r |= i >> b & 1 << (7 - b)
	}
	return r
}

func mulMod(a, b uint32) uint32 { return uint32(uint64(a) * uint64(b) % mldsaQ) }
func addMod(a, b uint32) uint32 { return (a + b) % mldsaQ }
func subMod(a, b uint32) uint32 { return (a + mldsaQ - b) % mldsaQ }

// ntt is algorithm 41.
func (p *poly) ntt() {
	m := 0
	for length := 128; length >= 1; length /= 2 {
		for start := 0; start < mldsaN; start += 2 * length {
			m++
			for j := start; j < start+length; j++ {
				t := mulMod(zetas[m], p[j+length])
				p[j+length] = subMod(p[j], t)
				p[j] = addMod(p[j], t)
			}
		}
	}
}

// inverseNTT is algorithm 42.
func (p *poly) inverseNTT() {
	m := mldsaN
	for length := 1; length < mldsaN; length *= 2 {
		for start := 0; start < mldsaN; start += 2 * length {
			m--
			for j := start; j < start+length; j++ {
				t := p[j]
				p[j] = addMod(t, p[j+length])
				p[j+length] = mulMod(mldsaQ-zetas[m], subMod(t, p[j+length]))
			}
		}
	}
	for j := range p {
		p[j] = mulMod(p[j], 8347681) // 1/256
	}
}

// addProduct adds a*b, all in the NTT domain.
func (p *poly) addProduct(a, b *poly) {
	for i := range p {
		p[i] = addMod(p[i], mulMod(a[i], b[i]))
	}
}

// verifyMu returns ErrSignature if signature is not a signature over mu.
func verifyMu(spec string, public, mu, signature []byte) error {
	s := mldsaSets[spec]
	challenge, z, hints, ok := s.decode(signature)
	if !ok {
		return ErrSignature
	}
	rho, t1 := public[:32], public[32:]
	c := sampleInBall(challenge, s.tau)
	c.ntt()
	for i := range z {
		z[i].ntt()
	}
	h := sha3.NewSHAKE256()
	h.Write(mu)
	for i := range s.k {
		w := s.row(rho, i, z)
		t := unpackT1(t1[320*i:])
		t.ntt()
		for j := range w {
			w[j] = subMod(w[j], mulMod(c[j], t[j]))
		}
		w.inverseNTT()
		h.Write(s.encodeW1(&w, &hints[i]))
	}
	want := make([]byte, s.challenge)
	h.Read(want)
	if !bytes.Equal(want, challenge) {
		return ErrSignature
	}
	return nil
}

// decode is sigDecode (algorithm 27) with the check of z's range.
func (s mldsaSet) decode(signature []byte) (challenge []byte, z []poly, hints [][mldsaN]bool, ok bool) {
	zSize := 32 * s.zBits
	if len(signature) != s.challenge+s.l*zSize+s.omega+s.k {
		return nil, nil, nil, false
	}
	challenge, rest := signature[:s.challenge], signature[s.challenge:]
	z = make([]poly, s.l)
	for i := range z {
		if !s.unpackZ(&z[i], rest[i*zSize:]) {
			return nil, nil, nil, false
		}
	}
	hints, ok = s.unpackHints(rest[s.l*zSize:])
	return challenge, z, hints, ok
}

// unpackZ reads gamma1 - z_i of zBits bits each and checks that |z_i| < gamma1 - beta.
func (s mldsaSet) unpackZ(p *poly, b []byte) bool {
	r := bitReader{b: b}
	for i := range p {
		v := r.next(s.zBits)
		if v <= s.beta || v >= 2*s.gamma1-s.beta {
			return false
		}
		p[i] = subMod(s.gamma1, v)
	}
	return true
}

// unpackHints is HintBitUnpack (algorithm 21). Each set of hints has a single encoding.
func (s mldsaSet) unpackHints(y []byte) ([][mldsaN]bool, bool) {
	hints := make([][mldsaN]bool, s.k)
	index := 0
	for i := range hints {
		first, end := index, int(y[s.omega+i])
		if end < index || end > s.omega {
			return nil, false
		}
		for ; index < end; index++ {
			if index > first && y[index-1] >= y[index] {
				return nil, false
			}
			hints[i][y[index]] = true
		}
	}
	for _, b := range y[index:s.omega] {
		if b != 0 {
			return nil, false
		}
	}
	return hints, true
}

// bitReader reads little-endian integers of up to 24 bits.
type bitReader struct {
	b     []byte
	value uint32
	have  int
}

func (r *bitReader) next(n int) uint32 {
	for ; r.have < n; r.have += 8 {
		r.value |= uint32(r.b[0]) << r.have
		r.b = r.b[1:]
	}
	v := r.value & (1<<n - 1)
	r.value >>= n
	r.have -= n
	return v
}

// unpackT1 reads t1 and multiplies it by 2^d.
func unpackT1(b []byte) poly {
	var p poly
	r := bitReader{b: b}
	for i := range p {
		p[i] = r.next(10) << mldsaD % mldsaQ
	}
	return p
}

// sampleInBall is algorithm 29.
func sampleInBall(seed []byte, tau int) poly {
	h := sha3.NewSHAKE256()
	h.Write(seed)
	var b [8]byte
	h.Read(b[:])
	signs := binary.LittleEndian.Uint64(b[:])
	var c poly
	for i := mldsaN - tau; i < mldsaN; i++ {
		j := mldsaN
		for j > i {
			h.Read(b[:1])
			j = int(b[0])
		}
		c[i] = c[j]
		c[j] = 1
		if signs&1 == 1 {
			c[j] = mldsaQ - 1
		}
		signs >>= 1
	}
	return c
}

// row is a row of A multiplied by z, in the NTT domain. A is expanded from rho on the
// way (algorithms 30 and 32).
func (s mldsaSet) row(rho []byte, i int, z []poly) poly {
	var w poly
	for j := range z {
		h := sha3.NewSHAKE128()
		h.Write(rho)
		h.Write([]byte{byte(j), byte(i)})
		var a poly
		for n := 0; n < mldsaN; {
			var b [168]byte
			h.Read(b[:])
			for t := b[:]; len(t) > 0 && n < mldsaN; t = t[3:] {
				v := uint32(t[0]) | uint32(t[1])<<8 | uint32(t[2]&0x7f)<<16
				if v < mldsaQ {
					a[n] = v
					n++
				}
			}
		}
		w.addProduct(&a, &z[j])
	}
	return w
}

// encodeW1 applies the hints to w (algorithm 40) and packs the result.
func (s mldsaSet) encodeW1(w *poly, hints *[mldsaN]bool) []byte {
	out := make([]byte, 32*s.w1Bits)
	for i, v := range w {
		at := i * s.w1Bits
		bits := uint16(s.useHint(hints[i], v)) << (at % 8)
		out[at/8] |= byte(bits)
		if bits > 0xff {
			out[at/8+1] |= byte(bits >> 8)
		}
	}
	return out
}

func (s mldsaSet) useHint(hint bool, r uint32) uint32 {
	m := (mldsaQ - 1) / (2 * s.gamma2)
	r1, low := s.decompose(r)
	switch {
	case !hint:
		return r1
	case low > 0:
		return (r1 + 1) % m
	default:
		return (r1 + m - 1) % m
	}
}

// decompose is algorithm 36.
func (s mldsaSet) decompose(r uint32) (high uint32, low int32) {
	low = int32(r % (2 * s.gamma2))
	if low > int32(s.gamma2) {
		low -= int32(2 * s.gamma2)
	}
	if int32(r)-low == mldsaQ-1 {
		return 0, low - 1
	}
	return uint32(int32(r)-low) / (2 * s.gamma2), low
}
