package keymat

import (
	"bytes"
	"errors"
	"testing"
)

func TestTransit(t *testing.T) {
	a := newArena(t, 0)
	k := newKeyring(t, a)
	plaintext, context := []byte("what one node tells another"), []byte("from a")
	message, err := k.SealTransit(PurposeForward, context, plaintext)
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.OpenTransit(PurposeForward, context, message)
	if err != nil || !bytes.Equal(got, plaintext) {
		t.Fatalf("%q, %v", got, err)
	}
	if again, _ := k.SealTransit(PurposeForward, context, plaintext); bytes.Equal(again, message) {
		t.Error("the same message twice")
	}
	for i := range message {
		bad := bytes.Clone(message)
		bad[i] ^= 1
		if _, err := k.OpenTransit(PurposeForward, context, bad); !errors.Is(err, ErrTransit) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
		if _, err := k.OpenTransit(PurposeForward, context, message[:i]); !errors.Is(err, ErrTransit) {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
	if _, err := k.OpenTransit(PurposeForward, []byte("from b"), message); !errors.Is(err, ErrTransit) {
		t.Errorf("another context: %v", err)
	}
	if _, err := k.OpenTransit(PurposeSession, context, message); !errors.Is(err, ErrTransit) {
		t.Errorf("another purpose: %v", err)
	}
	if _, err := k.SealTransit("nothing", context, plaintext); !errors.Is(err, ErrPurpose) {
		t.Errorf("no purpose: %v", err)
	}
	k.Wipe()
	if _, err := k.OpenTransit(PurposeForward, context, message); !errors.Is(err, ErrWiped) {
		t.Errorf("wiped: %v", err)
	}
	if _, err := k.SealTransit(PurposeForward, context, plaintext); !errors.Is(err, ErrWiped) {
		t.Errorf("wiped: %v", err)
	}
}
