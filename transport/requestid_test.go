package transport

import (
	"regexp"
	"testing"

	"github.com/conclavekms/conclave/keyengine/iam"
)

func TestRequestID(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := make(map[iam.RequestID]bool)
	for range 1000 {
		id := NewRequestID()
		if s := FormatRequestID(id); !form.MatchString(s) {
			t.Fatalf("got %s, which is no UUIDv4", s)
		}
		if seen[id] {
			t.Fatalf("%s came twice", FormatRequestID(id))
		}
		seen[id] = true
	}
	id := iam.RequestID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10}
	if got, want := FormatRequestID(id), "01234567-89ab-cdef-fedc-ba9876543210"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func BenchmarkNewRequestID(b *testing.B) {
	for b.Loop() {
		FormatRequestID(NewRequestID())
	}
}
