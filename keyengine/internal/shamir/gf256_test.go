package shamir

import "testing"

// slowMul multiplies as one does on paper: shift and add, then reduce.
func slowMul(a, b byte) byte {
	var p uint
	for i := range 8 {
		if b>>i&1 == 1 {
			p ^= uint(a) << i
		}
	}
	for i := 14; i >= 8; i-- {
		if p>>i&1 == 1 {
			p ^= 0x11b << (i - 8)
		}
	}
	return byte(p)
}

func TestMulAgainstReference(t *testing.T) {
	for a := range 256 {
		for b := range 256 {
			if got, want := mul(byte(a), byte(b)), slowMul(byte(a), byte(b)); got != want {
				t.Fatalf("mul(%#x, %#x) = %#x, want %#x", a, b, got, want)
			}
		}
	}
	// FIPS 197, section 4.2.
	if got := mul(0x57, 0x83); got != 0xc1 {
		t.Errorf("mul(0x57, 0x83) = %#x, want 0xc1", got)
	}
	if got := mul(0x57, 0x13); got != 0xfe {
		t.Errorf("mul(0x57, 0x13) = %#x, want 0xfe", got)
	}
}

func TestFieldAxioms(t *testing.T) {
	if inverse(0) != 0 {
		t.Errorf("inverse(0) = %#x, want 0", inverse(0))
	}
	for i := range 256 {
		a := byte(i)
		if mul(a, 1) != a || mul(a, 0) != 0 {
			t.Fatalf("%#x: 1 or 0 does not behave", a)
		}
		if a != 0 && mul(a, inverse(a)) != 1 {
			t.Fatalf("%#x times its inverse is %#x", a, mul(a, inverse(a)))
		}
		for j := range 256 {
			b := byte(j)
			if mul(a, b) != mul(b, a) {
				t.Fatalf("%#x, %#x do not commute", a, b)
			}
			if a != 0 && b != 0 && mul(a, b) == 0 {
				t.Fatalf("%#x, %#x are divisors of zero", a, b)
			}
			for _, c := range []byte{1, 2, 3, 0x1b, 0x53, 0x80, 0xca, 0xff} {
				if mul(mul(a, b), c) != mul(a, mul(b, c)) {
					t.Fatalf("%#x, %#x, %#x do not associate", a, b, c)
				}
				if mul(a, b^c) != mul(a, b)^mul(a, c) {
					t.Fatalf("%#x, %#x, %#x do not distribute", a, b, c)
				}
			}
		}
	}
}
