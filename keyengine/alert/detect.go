package alert

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// denials within denialWindow are a burst.
	denials      = 20
	denialWindow = 5 * time.Minute
	// learning is for how long a principal has to be known before what is new about it is
	// worth an alert.
	learning = 7 * day
	// newKey is the age up to which a key is new to everybody.
	newKey = day
	// spikeFactor times the usual hour, and more than spikeMin requests, are a spike. The
	// usual hour is the mean of those with requests in the last spikeHistory; there must be
	// spikeHours of them.
	spikeFactor  = 10
	spikeMin     = 1000
	spikeHours   = 24
	spikeHistory = 7 * day
	historyHours = int64(spikeHistory / time.Hour)
	// maxPrincipals bounds how many principals are counted in memory. The counts are dropped
	// when there are more, which delays an alert and raises none.
	maxPrincipals = 65536
)

// memory is what is remembered of principals for longer than a node runs.
type memory interface {
	// first reports whether a value was never seen for the principal, and remembers it.
	first(principal, field, value string) (bool, error)
	// since returns when the principal was seen first, which is now if it never was.
	since(principal string, now int64) (int64, error)
	// addHour stores the number of the principal's requests in an hour.
	addHour(principal string, hour int64, requests int) error
	// hours returns the numbers of requests in the principal's hours from one on.
	hours(principal string, from int64) ([]int, error)
}

// detector applies the rules to records, in their order. It depends on nothing but the
// records, its memory and when keys were created, so that all nodes detect the same.
type detector struct {
	on      map[string]bool // rules
	created func(key string) (at int64, ok bool)
	denied  map[string]window
	hour    int64 // the hour that is counted, since 1970
	count   map[string]int
}

// window counts something from a point in cluster time on.
type window struct {
	from int64
	n    int
}

func newDetector(rules []string, created func(key string) (int64, bool)) *detector {
	d := &detector{on: make(map[string]bool), created: created, denied: make(map[string]window), count: make(map[string]int)}
	for _, r := range rules {
		d.on[r] = true
	}
	return d
}

// observe returns the alerts that a record causes.
func (d *detector) observe(it auditfeed.Item, m memory) (list []Alert, err error) {
	rec := it.Record
	if rec == nil || rec.EventType == record.KindService {
		return nil, nil
	}
	who, key := it.Principal(), keyOf(rec)
	add := func(rule, subject, format string, args ...any) {
		if d.on[rule] {
			list = append(list, Alert{
				Rule: rule, Subject: subject, Account: accountOf(rec), Key: key, Message: fmt.Sprintf(format, args...),
				Cause: it.Entry.Index, HasCause: true, Time: it.Entry.Time,
			})
		}
	}
	if rec.EventType == record.KindOperator {
		if begins(rec.EventName) {
			add(CeremonyBegun, rec.EventName, "The operator %s called %s on node %s.", who, rec.EventName, rec.Node)
		}
		return list, nil
	}
	if who == "" {
		return nil, nil
	}
	if rec.GetIdentity().GetType() == "Root" {
		add(RootUse, who, "The root user of account %s called %s.", rec.GetIdentity().GetAccountId(), rec.EventName)
	}
	switch code := kmsapi.Code(rec.ErrorCode); {
	case (code == kmsapi.ErrDisabled.Code || code == kmsapi.ErrInvalidState.Code) && key != "":
		add(KeyNotUsable, who+" "+key, "%s called %s on a key that cannot be used: %s", who, rec.EventName, rec.ErrorMessage)
	case strings.HasPrefix(rec.ErrorCode, "AccessDenied"): // of KMS and IAM
		if d.denials(who, it.Entry.Time) {
			add(DenialBurst, who, "%s was denied %d requests within %v, the last of them %s.", who, denials, denialWindow, rec.EventName)
		}
	}
	news, err := d.news(it, who, key, m)
	if err != nil {
		return nil, err
	}
	for _, n := range news {
		add(n.rule, n.subject, "%s", n.message)
	}
	spike, err := d.spike(who, it.Entry.Time, m)
	if err != nil {
		return nil, err
	}
	if spike != "" {
		add(RequestSpike, who, "%s", spike)
	}
	return list, nil
}

// finding is an alert that news has found.
type finding struct{ rule, subject, message string }

// news finds what a principal does for the first time. Nothing is new about a principal that
// was refused: it could have done nothing, and a stranger can be refused as anybody.
func (d *detector) news(it auditfeed.Item, who, key string, m memory) (list []finding, err error) {
	if !d.on[FirstUseOfKey] && !d.on[NewNetwork] || it.Record.ErrorCode != "" {
		return nil, nil
	}
	since, err := m.since(who, it.Entry.Time)
	if err != nil {
		return nil, err
	}
	known := it.Entry.Time-since >= int64(learning)
	if key != "" && d.on[FirstUseOfKey] {
		first, err := m.first(who, "key", key)
		if err != nil {
			return nil, err
		}
		if at, ok := d.created(key); first && known && ok && it.Entry.Time-at >= int64(newKey) {
			list = append(list, finding{FirstUseOfKey, who + " " + key, fmt.Sprintf("%s called %s on a key that it never used before.", who, it.Record.EventName)})
		}
	}
	if network := networkOf(it.Record.SourceIp); network != "" && d.on[NewNetwork] {
		first, err := m.first(who, "network", network)
		if err != nil {
			return nil, err
		}
		if first && known {
			list = append(list, finding{NewNetwork, who + " " + network, fmt.Sprintf("%s called %s from %s, and never did from there before.", who, it.Record.EventName, network)})
		}
	}
	return list, nil
}

// denials counts a denial, and reports whether it completes a burst.
func (d *detector) denials(who string, at int64) bool {
	if !d.on[DenialBurst] {
		return false
	}
	w, ok := d.denied[who]
	if !ok && len(d.denied) >= maxPrincipals {
		clear(d.denied)
	}
	if !ok || at-w.from > int64(denialWindow) {
		w = window{from: at}
	}
	w.n++
	d.denied[who] = w
	return w.n == denials
}

// spike counts a request. It returns a message if the principal now makes many more than it
// usually does. The principal's history is read only when its count doubles.
func (d *detector) spike(who string, at int64, m memory) (string, error) {
	if !d.on[RequestSpike] {
		return "", nil
	}
	if hour := at / int64(time.Hour); hour != d.hour {
		for p, n := range maps.All(d.count) {
			if err := m.addHour(p, d.hour, n); err != nil {
				return "", err
			}
		}
		clear(d.count)
		d.hour = hour
	}
	if _, ok := d.count[who]; !ok && len(d.count) >= maxPrincipals {
		clear(d.count)
	}
	d.count[who]++
	n := d.count[who]
	if n <= spikeMin || (n-1)%spikeMin != 0 || (n-1)/spikeMin&((n-1)/spikeMin-1) != 0 {
		return "", nil
	}
	hours, err := m.hours(who, d.hour-historyHours)
	if err != nil || len(hours) < spikeHours {
		return "", err
	}
	sum := 0
	for _, n := range hours {
		sum += n
	}
	if mean := sum / len(hours); n > spikeFactor*mean {
		return fmt.Sprintf("%s made %d requests in this hour; the mean of its hours was %d.", who, n, mean), nil
	}
	return "", nil
}

func keyOf(rec *auditpb.Record) string {
	for _, r := range rec.GetResources() {
		if r.GetType() == "AWS::KMS::Key" {
			return r.GetArn()
		}
	}
	return ""
}

func accountOf(rec *auditpb.Record) string {
	if rec.RecipientAccountId != "" {
		return rec.RecipientAccountId
	}
	return rec.GetIdentity().GetAccountId()
}

// networkOf returns the network of an address: what one organisation usually has.
func networkOf(ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return "" // requests of the service itself have a name there
	}
	bits := 24
	if a = a.Unmap(); a.Is6() {
		bits = 48
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}

// begins reports whether an operator's call begins a ceremony or takes part in one.
func begins(event string) bool {
	return event == "Init" || event == "SubmitShare" || strings.HasPrefix(event, "Begin")
}
