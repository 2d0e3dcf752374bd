package intern

import (
	"bytes"
	"fmt"
	"testing"
)

func TestTextsAreSharedAndForgotten(t *testing.T) {
	texts := NewTexts()
	a, b := string([]byte("the same")), string([]byte("the same"))
	texts.Share(&a)
	texts.Share(&b)
	if len(texts.known) != 1 || texts.size != len(a) {
		t.Errorf("%d texts of %d bytes, want one", len(texts.known), texts.size)
	}
	for i := range 100 {
		long := fmt.Sprint(i) + string(bytes.Repeat([]byte("x"), maxTexts/10))
		want := long
		if texts.Share(&long); long != want {
			t.Fatal("a text became another")
		}
	}
	if texts.size > maxTexts {
		t.Errorf("%d bytes of texts are kept, want %d at the most", texts.size, maxTexts)
	}
}

func TestJoinedSlicesDoNotOverlap(t *testing.T) {
	a, b, none := []byte("first"), []byte("second"), []byte(nil)
	Join(&a, &none, &b)
	_ = append(a, "overwritten"...)
	if string(a) != "first" || string(b) != "second" || none != nil {
		t.Errorf("they became %q, %q and %q", a, b, none)
	}
	if n := testing.AllocsPerRun(10, func() { Join(&a, &b) }); n != 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}
