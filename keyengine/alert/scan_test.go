package alert

import (
	"cmp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

func TestScan(t *testing.T) {
	now := int64(1000 * day)
	key := func(change func(*fsmpb.Key)) *fsmpb.Key {
		k := &fsmpb.Key{
			Account: 111122223333, Id: make([]byte, 16), Region: "eu-west-1", Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", State: fsmpb.KeyState_KEY_STATE_ENABLED,
			Materials: []*fsmpb.Material{{Wrapped: []byte{1}, Created: now - int64(rotationLate)}},
		}
		change(k)
		return k
	}
	imported := func(validTo int64) func(k *fsmpb.Key) {
		return func(k *fsmpb.Key) { k.Origin, k.Materials[0].ValidTo = "EXTERNAL", validTo }
	}
	for _, c := range []struct {
		name   string
		change func(*fsmpb.Key)
		want   string
	}{
		{"old material", func(*fsmpb.Key) {}, KeysNotRotated},
		{"younger material", func(k *fsmpb.Key) { k.Materials[0].Created++ }, ""},
		{"rotated since", func(k *fsmpb.Key) { k.Materials[0].Rotated = now - int64(time.Hour) }, ""},
		{"disabled", func(k *fsmpb.Key) { k.State = fsmpb.KeyState_KEY_STATE_DISABLED }, ""},
		{"of a kind that is not rotated", func(k *fsmpb.Key) { k.Spec = "RSA_2048" }, ""},
		{"in a key store", func(k *fsmpb.Key) { k.Origin = "EXTERNAL_KEY_STORE" }, ""},
		{"expires soon", imported(now + int64(expirySoon)), MaterialExpires},
		{"expires later", imported(now + int64(expirySoon) + 1), ""},
		{"never expires", imported(0), ""},
		{"gone already", func(k *fsmpb.Key) { imported(now)(k); k.Materials[0].Wrapped = nil }, ""},
	} {
		list := scan(slices.Values([]*fsmpb.Key{key(c.change)}), now)
		switch {
		case c.want == "" && len(list) != 0, c.want != "" && (len(list) != 1 || list[0].Rule != c.want || list[0].Account != "111122223333"):
			t.Errorf("%s: got %+v, want the rule %q", c.name, list, c.want)
		}
	}

	// However many keys there are, each account has one alert.
	var keys []*fsmpb.Key
	for i := range 50 {
		k := key(func(k *fsmpb.Key) { k.Id[0] = byte(i) })
		if i%10 == 0 {
			k.Account = 444455556666
		}
		keys = append(keys, k)
	}
	list := scan(slices.Values(keys), now)
	slices.SortFunc(list, func(a, b Alert) int { return cmp.Compare(a.Subject, b.Subject) })
	if len(list) != 2 || !strings.HasPrefix(list[0].Message, "45 keys ") || !strings.HasSuffix(list[0].Message, " and 35 more.") || !strings.HasPrefix(list[1].Message, "5 keys ") {
		t.Errorf("of many keys: got %+v", list)
	}
}
