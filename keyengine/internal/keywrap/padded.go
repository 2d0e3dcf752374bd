package keywrap

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
)

const (
	semiblock = 8 // bytes that AES key wrap works on
	rounds    = 6
)

// prefix begins the alternative initial value of RFC 5649, section 3. The length of
// the plaintext follows it.
var prefix = [4]byte{0xa6, 0x59, 0x59, 0xa6}

// wrapPadded wraps 1 to MaxMaterial bytes by RFC 5649, section 4.1 (KWP-AE of SP
// 800-38F).
func wrapPadded(kek, plaintext []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	n := (len(plaintext) + semiblock - 1) / semiblock
	out := make([]byte, semiblock*(n+1))
	copy(out, prefix[:])
	binary.BigEndian.PutUint32(out[len(prefix):], uint32(len(plaintext)))
	copy(out[semiblock:], plaintext)
	if n == 1 {
		block.Encrypt(out, out)
		return out, nil
	}
	mix(block, out)
	return out, nil
}

// mix is the wrapping process of RFC 3394, section 2.2.1, in place: the integrity
// check is the first semiblock.
func mix(block cipher.Block, buf []byte) {
	var b [aes.BlockSize]byte
	defer clear(b[:])
	a, r := buf[:semiblock], buf[semiblock:]
	n := len(r) / semiblock
	for t := range rounds * n {
		ri := r[t%n*semiblock:][:semiblock]
		copy(b[:], a)
		copy(b[semiblock:], ri)
		block.Encrypt(b[:], b[:])
		count(a, b[:semiblock], t+1)
		copy(ri, b[semiblock:])
	}
}

// unmix undoes mix (RFC 3394, section 2.2.2).
func unmix(block cipher.Block, buf []byte) {
	var b [aes.BlockSize]byte
	defer clear(b[:])
	a, r := buf[:semiblock], buf[semiblock:]
	n := len(r) / semiblock
	for t := rounds*n - 1; t >= 0; t-- {
		ri := r[t%n*semiblock:][:semiblock]
		count(b[:semiblock], a, t+1)
		copy(b[semiblock:], ri)
		block.Decrypt(b[:], b[:])
		copy(a, b[:semiblock])
		copy(ri, b[semiblock:])
	}
}

// count sets dst to src with the step's number mixed in.
func count(dst, src []byte, step int) {
	binary.BigEndian.PutUint64(dst, binary.BigEndian.Uint64(src)^uint64(step))
}

// unwrapPadded reverses wrapPadded (RFC 5649, section 4.2; KWP-AD). The result is checked
// as a whole and in constant time: a caller must not learn whether the prefix, the length
// or the padding is wrong.
func unwrapPadded(kek, wrapped []byte) ([]byte, error) {
	n := len(wrapped)/semiblock - 1
	if len(wrapped)%semiblock != 0 || n < 1 || n*semiblock > MaxMaterial {
		return nil, ErrUnwrap
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, ErrUnwrap
	}
	buf := append([]byte(nil), wrapped...)
	if n == 1 {
		block.Decrypt(buf, buf)
	} else {
		unmix(block, buf)
	}
	length, ok := checkPadded(buf)
	if !ok {
		clear(buf)
		return nil, ErrUnwrap
	}
	return buf[semiblock:][:length:length], nil
}

// checkPadded returns the length in the initial value, and whether it and the padding are
// valid. MaxMaterial ensures that the length fits in the lower two bytes.
func checkPadded(buf []byte) (length int, ok bool) {
	padded := len(buf) - semiblock
	length = int(binary.BigEndian.Uint16(buf[6:]))
	good := subtle.ConstantTimeCompare(buf[:len(prefix)], prefix[:])
	good &= subtle.ConstantTimeCompare(buf[4:6], []byte{0, 0})
	good &= subtle.ConstantTimeLessOrEq(padded-semiblock+1, length)
	good &= subtle.ConstantTimeLessOrEq(length, padded)
	for at := padded - semiblock; at < padded; at++ {
		isText := subtle.ConstantTimeLessOrEq(at+1, length)
		good &= isText | subtle.ConstantTimeByteEq(buf[semiblock+at], 0)
	}
	return length, good == 1
}
