package usage

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// at returns a time of November 2026, which has 720 hours, or of another month.
func at(day, hour int) *timestamppb.Timestamp {
	return timestamppb.New(time.Date(2026, 11, day, hour, 0, 0, 0, time.UTC))
}

// TestBill compares the bill of a month with one that is computed by hand.
func TestBill(t *testing.T) {
	prices, err := readPrices(defaultPrices)
	if err != nil {
		t.Fatal(err)
	}
	m := newMeter(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), prices)
	for _, k := range []*kmspb.KeyUsage{
		// The whole month, with three rotations before it, of which two are charged: 720 h, 1440 h.
		{Created: at(-400, 0), Rotations: []*timestamppb.Timestamp{at(-300, 0), at(-200, 0), at(-100, 0)}},
		// From the 16th on, rotated on the 21st: 15 days are 360 h, and 10 days 240 h.
		{Created: at(16, 0), Rotations: []*timestamppb.Timestamp{at(21, 0)}},
		// Scheduled for deletion on the 11th, deleted on the 18th: 10 days are 240 h.
		{Created: at(-10, 0), DeletionScheduled: at(11, 0), Deleted: at(18, 0)},
		// Half an hour counts as one: 1 h.
		{Created: at(30, 23), Deleted: timestamppb.New(time.Date(2026, 11, 30, 23, 30, 0, 0, time.UTC))},
		// Deleted before the month, and made after it.
		{Created: at(-100, 0), Deleted: at(-1, 0)},
		{Created: at(31, 0)},
	} {
		m.key(k)
	}
	for kind, n := range map[string]uint64{"symmetric": 1020000, "rsa-2048": 50000, "asymmetric": 200000, "key-pair-ecc": 5000, "key-pair-rsa": 2500, "uncharged": 77777} {
		m.row(&kmspb.UsageRow{Kind: kind, Requests: n, Errors: 1000})
	}
	b, err := m.bill()
	if err != nil {
		t.Fatal(err)
	}
	// Keys: 720 + 360 + 240 + 1 = 1321 hours of 720: 1.834722 USD. Rotations: 1440 + 240 = 1680: 2.333333.
	// Requests: 1,000,000 symmetric beyond the free ones: 3.00; 50,000 RSA_2048: 0.15; 200,000
	// asymmetric: 3.00; 5,000 pairs of ECC: 0.05; 2,500 of RSA: 3.00.
	want := map[string]float64{
		"keys": 1.834722, "rotations of keys": 2.333333, "symmetric requests, free": 0, "symmetric requests": 3, "rsa-2048 requests": 0.15,
		"asymmetric requests": 3, "key-pair-ecc requests": 0.05, "key-pair-rsa requests": 3,
	}
	for _, l := range b.Lines {
		if w, ok := want[l.What]; !ok || math.Abs(w-l.Amount) > 1e-6 {
			t.Errorf("%s: %f, want %f", l.What, l.Amount, w)
		}
		delete(want, l.What)
	}
	if len(want) > 0 {
		t.Errorf("the bill lacks %v", want)
	}
	if math.Abs(b.Total-13.368056) > 1e-6 || b.Keys != 4 || b.Month != "2026-11" || b.Known != "2026-11" || b.Until != "2026-12-01T00:00:00Z" {
		t.Errorf("the bill is %+v", b)
	}

	// On the 16th, half of the month is charged.
	m = newMeter(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), at(16, 0).AsTime(), prices)
	m.key(&kmspb.KeyUsage{Created: at(-400, 0)})
	if b, err = m.bill(); err != nil || b.Total != 0.5 {
		t.Errorf("the bill so far is %+v, %v", b, err)
	}
	m.row(&kmspb.UsageRow{Kind: "new", Requests: 1})
	if _, err := m.bill(); err == nil {
		t.Error("requests without a price are billed")
	}
}

func TestPrices(t *testing.T) {
	for _, bad := range []string{
		`{`, `{}`, `{"known": "2026", "currency": "USD", "per_10000_requests": {"symmetric": -1}}`, `{"known": "2026", "currency": "USD", "per_10000_requests": {}, "key_moth": 1}`,
		`{"known": "2026", "currency": "USD", "per_10000_requests": {}, "billed_rotations": 9}`,
	} {
		if _, err := readPrices([]byte(bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestSums(t *testing.T) {
	s := newSums([]string{"operation", "principal"})
	for _, r := range []*kmspb.UsageRow{
		{Principal: "alice", Operation: "Encrypt", Key: "1", Requests: 2}, {Principal: "alice", Operation: "Encrypt", Key: "2", Requests: 3, Errors: 1},
		{Principal: "=HYPERLINK(\"x\")\x1b", Operation: "Decrypt", Requests: 9},
	} {
		s.add(r)
	}
	var out bytes.Buffer
	if err := s.csv(&out); err != nil {
		t.Fatal(err)
	}
	if want := "principal,operation,requests,errors\n\"'=HYPERLINK(\"\"x\"\")\\u001b\",Decrypt,9,0\nalice,Encrypt,5,1\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	s.table(&out)
	if !strings.HasPrefix(out.String(), "PRINCIPAL\tOPERATION\tREQUESTS\tERRORS\n") {
		t.Errorf("got %q", out.String())
	}
}
