package usage

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/conclavekms/conclave/transport/kmspb"
)

//go:embed prices.json
var defaultPrices []byte

// Prices is a table of prices in AWS KMS's terms.
type Prices struct {
	// Known is when these were the prices.
	Known    string `json:"known"`
	Currency string `json:"currency"`
	// KeyMonth is for a key that exists for a month, and RotationMonth is added for each of the
	// first BilledRotations rotations, from the rotation on.
	KeyMonth        float64 `json:"key_month"`
	RotationMonth   float64 `json:"rotation_month"`
	BilledRotations int     `json:"billed_rotations"`
	// FreeRequests of the kinds FreeKinds together are free in a month.
	FreeRequests uint64   `json:"free_requests"`
	FreeKinds    []string `json:"free_kinds"`
	// Requests are the prices of 10,000 requests by kind.
	Requests map[string]float64 `json:"per_10000_requests"`
}

// readPrices parses a table of prices. It refuses members that it does not know, which would be
// prices that are not applied.
func readPrices(raw []byte) (*Prices, error) {
	p := new(Prices)
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(p); err != nil {
		return nil, fmt.Errorf("price table: %w", err)
	}
	for _, v := range append(slices.Collect(maps.Values(p.Requests)), p.KeyMonth, p.RotationMonth) {
		if v < 0 || math.IsInf(v, 0) || math.IsNaN(v) {
			return nil, fmt.Errorf("price table: %v is not a price", v)
		}
	}
	if p.Known == "" || p.Currency == "" || p.Requests == nil || p.BilledRotations < 0 || p.BilledRotations > maxRotations {
		return nil, fmt.Errorf("price table: known, currency and per_10000_requests are required, and billed_rotations is 0 to %d", maxRotations)
	}
	return p, nil
}

// maxRotations is how many rotations of a key a node notes.
const maxRotations = 8

// A Line of a bill.
type Line struct {
	What     string  `json:"what"`
	Quantity float64 `json:"quantity"`
	Unit     string  `json:"unit"`
	Price    float64 `json:"price"` // of a unit
	Amount   float64 `json:"amount"`
}

// Bill is what AWS KMS would have charged for a month.
type Bill struct {
	Month   string  `json:"month"`
	Account string  `json:"account"`
	Until   string  `json:"until"` // the end of the month, or now
	Known   string  `json:"prices_known"`
	Lines   []Line  `json:"lines"`
	Total   float64 `json:"total"`
	Coin    string  `json:"currency"`
	Keys    int     `json:"keys"`
	// Unreadable is how many records of the audit log cannot be decrypted and are not counted.
	Unreadable uint64 `json:"unreadable_records"`
}

// A meter adds up what a bill is for.
type meter struct {
	from, to  time.Time // the month
	until     time.Time // the end of what is billed: of the month, or now
	prices    *Prices
	keyHours  uint64
	rotations uint64 // hours of rotations
	keys      int
	requests  map[string]uint64
}

func newMeter(from, now time.Time, p *Prices) *meter {
	m := &meter{from: from, to: from.AddDate(0, 1, 0), prices: p, requests: make(map[string]uint64)}
	m.until = m.to
	if now.Before(m.until) {
		m.until = now
	}
	return m
}

// hours returns how many hours of the month lie between two times. An hour that has begun counts.
func (m *meter) hours(begin, end time.Time) uint64 {
	if begin.Before(m.from) {
		begin = m.from
	}
	if end.After(m.until) {
		end = m.until
	}
	if !begin.Before(end) {
		return 0
	}
	return uint64((end.Sub(begin) + time.Hour - 1) / time.Hour)
}

// key adds a key. AWS charges nothing from when a deletion is scheduled, unless it is cancelled.
func (m *meter) key(k *kmspb.KeyUsage) {
	end := m.until
	if t := k.GetDeleted(); t != nil && t.AsTime().Before(end) {
		end = t.AsTime()
	}
	if t := k.GetDeletionScheduled(); t != nil && t.AsTime().Before(end) {
		end = t.AsTime()
	}
	h := m.hours(k.GetCreated().AsTime(), end)
	if h == 0 {
		return
	}
	m.keys++
	m.keyHours += h
	for i, t := range k.GetRotations() {
		if i < m.prices.BilledRotations {
			m.rotations += m.hours(t.AsTime(), end)
		}
	}
}

// row adds requests. What was refused or failed is not charged.
func (m *meter) row(r *kmspb.UsageRow) { m.requests[r.GetKind()] += r.GetRequests() }

// bill returns the bill. It fails if a kind of requests has no price.
func (m *meter) bill() (*Bill, error) {
	b := &Bill{Month: m.from.Format("2006-01"), Until: m.until.Format(time.RFC3339), Known: m.prices.Known, Coin: m.prices.Currency, Keys: m.keys, Lines: []Line{}}
	add := func(what string, quantity float64, unit string, price float64) {
		l := Line{what, quantity, unit, price, quantity * price}
		b.Lines = append(b.Lines, l)
		b.Total += l.Amount
	}
	month := m.to.Sub(m.from).Hours()
	add("keys", float64(m.keyHours)/month, "key-months", m.prices.KeyMonth)
	add("rotations of keys", float64(m.rotations)/month, "months", m.prices.RotationMonth)
	free := m.prices.FreeRequests
	for _, kind := range slices.Sorted(maps.Keys(m.requests)) {
		price, ok := m.prices.Requests[kind]
		if !ok {
			return nil, errors.New("the price table has no price for requests of the kind " + kind)
		}
		if price == 0 {
			continue
		}
		n := m.requests[kind]
		if slices.Contains(m.prices.FreeKinds, kind) && free > 0 {
			f := min(free, n)
			free -= f
			n -= f
			add(kind+" requests, free", float64(f)/10000, "10,000 requests", 0)
		}
		add(kind+" requests", float64(n)/10000, "10,000 requests", price)
	}
	b.Total = math.Round(b.Total*1e6) / 1e6
	return b, nil
}
