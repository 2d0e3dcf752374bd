package client

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/transport/kmspb"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		list string
		want []string
		err  string
	}{
		{"a:1", []string{"a:1"}, ""},
		{"a:1, b:2 ,[::1]:3", []string{"a:1", "b:2", "[::1]:3"}, ""},
		{"", nil, "is empty"},
		{"a:1,", nil, "is empty"},
		{"a:1,b:1,a:1", nil, "duplicate address a:1"},
	} {
		got, err := Addresses(c.list)
		if !cmp.Equal(got, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: got %q, %v; want %q, %q", c.list, got, err, c.want, c.err)
		}
	}
	for _, bad := range []string{"a:1,b", "a:1,:2", "a,b:1"} {
		if _, err := Dial(t.Context(), Config{Address: bad, Plaintext: true}); err == nil || !strings.Contains(err.Error(), "host:port") {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

// TestNextAddressIsTried: a node that is down is skipped, and if the node in
// use goes down, the client uses the next one.
func TestNextAddressIsTried(t *testing.T) {
	t.Parallel()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	f := &fakeServer{}
	alive := start(t, f)
	c := dial(t, withKey(dead.Addr().String()+","+alive))
	for range 3 {
		if _, err := c.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if opened, calls := f.counts(); opened != 1 || calls != 3 {
		t.Errorf("%d sessions and %d calls, want 1 and 3", opened, calls)
	}
	none := dial(t, withKey(dead.Addr().String()+",127.0.0.1:1"))
	if _, err := none.KMS().ListKeys(timed(t), &kmspb.ListKeysRequest{}); err == nil {
		t.Error("there is nobody, and yet an answer")
	}
}
