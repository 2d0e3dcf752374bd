package policy

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A decimal is a number of any size, compared exactly: the values of conditions
// are decimal, and binary fractions would make 0.1+0.2 and 2⁵³+1 surprises.
type decimal struct {
	negative       bool
	whole, decimal string // digits, without leading and trailing zeros
}

// parseDecimal parses an optional minus sign, digits, and optionally a point
// and more digits.
func parseDecimal(s string) (d decimal, ok bool) {
	s, d.negative = strings.CutPrefix(s, "-")
	whole, fraction, point := strings.Cut(s, ".")
	if whole == "" || !only(whole, isDigit) || point && (fraction == "" || !only(fraction, isDigit)) {
		return decimal{}, false
	}
	d.whole, d.decimal = strings.TrimLeft(whole, "0"), strings.TrimRight(fraction, "0")
	if d.whole == "" && d.decimal == "" {
		d.negative = false
	}
	return d, true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// compare returns -1, 0 or 1.
func (d decimal) compare(o decimal) int {
	if d.negative != o.negative {
		if d.negative {
			return -1
		}
		return 1
	}
	order := len(d.whole) - len(o.whole)
	if order == 0 {
		order = strings.Compare(d.whole, o.whole)
	}
	if order == 0 {
		order = strings.Compare(d.decimal, o.decimal)
	}
	switch {
	case order == 0:
		return 0
	case order < 0 != d.negative:
		return -1
	default:
		return 1
	}
}

// An instant is a time of a Date condition.
type instant struct {
	seconds int64 // since the epoch, rounded down
	nanos   int
}

// The largest time that Date conditions know: the end of the year 9999.
const maxSeconds = 253402300799

// minEpochDigits is the length of the shortest number that is taken for seconds
// since the epoch. Shorter ones are rather a year or a date without hyphens.
const minEpochDigits = 9

// maxEpochDigits is that of maxSeconds. A longer number that begins with zeros is rather a
// date without hyphens, too.
const maxEpochDigits = 12

// dateLayouts are the forms of ISO 8601 that are accepted: those of the W3C's
// profile, except for a lone year, which could also be a number of seconds.
var dateLayouts = [...]string{time.RFC3339, "2006-01-02T15:04Z07:00", "2006-01-02", "2006-01"}

// parseInstant parses a date, or a number of seconds since the epoch.
func parseInstant(s string) (instant, bool) {
	if only(s, isDigit) {
		n, err := strconv.ParseInt(s, 10, 64)
		return instant{seconds: n}, err == nil && minEpochDigits <= len(s) && len(s) <= maxEpochDigits && n <= maxSeconds
	}
	if strings.Contains(s, ",") { // which package time takes for a decimal point
		return instant{}, false
	}
	for _, layout := range dateLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			return instant{t.Unix(), t.Nanosecond()}, t.Unix() <= maxSeconds
		}
	}
	return instant{}, false
}

// instantOf returns the time that a number of seconds since the epoch means.
func instantOf(d decimal) (instant, bool) {
	if len(d.whole) > len("253402300799") {
		return instant{}, false
	}
	n, err := strconv.ParseInt("0"+d.whole, 10, 64)
	if err != nil || n > maxSeconds {
		return instant{}, false
	}
	nanos, err := strconv.Atoi((d.decimal + "000000000")[:9])
	if err != nil || len(d.decimal) > 9 {
		return instant{}, false
	}
	if !d.negative {
		return instant{n, nanos}, true
	}
	if nanos == 0 {
		return instant{seconds: -n}, true
	}
	return instant{-n - 1, 1e9 - nanos}, true
}

func (i instant) compare(o instant) int {
	switch {
	case i == o:
		return 0
	case i.seconds < o.seconds || i.seconds == o.seconds && i.nanos < o.nanos:
		return -1
	default:
		return 1
	}
}

// ceil returns the first whole second that is not before i.
func (i instant) ceil() int64 {
	if i.nanos > 0 {
		return i.seconds + 1
	}
	return i.seconds
}

// parsePrefix parses an IP address or a range in CIDR notation. A range of
// IPv4-mapped IPv6 addresses is a range of IPv4 addresses.
func parsePrefix(s string) (netip.Prefix, bool) {
	if !strings.Contains(s, "/") {
		a, ok := parseAddress(s)
		if !ok || strings.Contains(s, "%") {
			return netip.Prefix{}, false
		}
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p.Masked(), true // wider than the mapped addresses
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// parseAddress parses the address of a caller. An IPv4-mapped IPv6 address is
// the IPv4 address; the zone of a link-local address does not matter.
func parseAddress(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, false
	}
	return a.Unmap().WithZone(""), true
}

// parseBool parses true or false, in any case.
func parseBool(s string) (value, ok bool) {
	switch {
	case len(s) == 4 && lowerASCII(s) == "true":
		return true, true
	case len(s) == 5 && lowerASCII(s) == "false":
		return false, true
	}
	return false, false
}
