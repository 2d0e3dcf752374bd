package alert

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

const (
	key   = "arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-0000-0000-000000000001"
	fresh = "arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-0000-0000-000000000002" // created at day 10
	user  = "arn:aws:iam::111122223333:user/ada"
	role  = "arn:aws:iam::111122223333:role/deploy"
)

// kept is a memory in maps.
type kept struct {
	seen map[string]bool
	from map[string]int64
	hour map[string]map[int64]int
}

func newKept() *kept {
	return &kept{make(map[string]bool), make(map[string]int64), make(map[string]map[int64]int)}
}

func (k *kept) first(principal, field, value string) (bool, error) {
	id := fmt.Sprintf("%q %q %q", principal, field, value)
	had := k.seen[id]
	k.seen[id] = true
	return !had, nil
}

func (k *kept) since(principal string, now int64) (int64, error) {
	if _, ok := k.from[principal]; !ok {
		k.from[principal] = now
	}
	return k.from[principal], nil
}

func (k *kept) addHour(principal string, hour int64, n int) error {
	if k.hour[principal] == nil {
		k.hour[principal] = make(map[int64]int)
	}
	k.hour[principal][hour] = n
	return nil
}

func (k *kept) hours(principal string, from int64) (list []int, err error) {
	for h, n := range k.hour[principal] {
		if h >= from {
			list = append(list, n)
		}
	}
	return list, nil
}

// call is a record of a request.
func call(who, key, source, code string) *auditpb.Record {
	rec := &auditpb.Record{
		EventName: "Decrypt", EventType: record.KindCall, SourceIp: source, ErrorCode: code,
		Identity: &auditpb.Identity{Type: "IAMUser", Arn: who, AccountId: "111122223333"},
	}
	if key != "" {
		rec.Resources = []*auditpb.Resource{{Type: "AWS::KMS::Key", Arn: key}}
	}
	return rec
}

// TestDetects gives each rule what it is to find and what it is not to find.
func TestDetects(t *testing.T) {
	type step struct {
		at    time.Duration
		rec   *auditpb.Record
		times int      // default 1
		want  []string // rules, of the last one; the others must raise none
	}
	root := call("arn:aws:iam::111122223333:root", "", "192.0.2.1", "")
	root.Identity.Type = "Root"
	operator := func(event string) *auditpb.Record {
		return &auditpb.Record{EventName: event, EventType: record.KindOperator, Identity: &auditpb.Identity{Type: record.OperatorType, PrincipalId: "conclave://operator/ada"}}
	}
	session := func(name, source string) *auditpb.Record {
		rec := call("arn:aws:sts::111122223333:assumed-role/deploy/"+name, "", source, "")
		rec.Identity.SessionContext = []*auditpb.Field{auditfield.TextMap("sessionIssuer", map[string]string{"type": "Role", "arn": role})}
		return rec
	}
	service := &auditpb.Record{EventName: "RotateKey", EventType: record.KindService, Identity: &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"}}
	var day25 []step
	for h := range 24 {
		day25 = append(day25, step{at: time.Duration(h) * time.Hour, rec: call(user, "", "", ""), times: 150})
	}
	for _, c := range []struct {
		name  string
		rules []string // default all
		steps []step
	}{
		{name: "disabled key", steps: []step{{0, call(user, key, "", "DisabledException"), 1, []string{KeyNotUsable}}}},
		{name: "key pending deletion", steps: []step{{0, call(user, key, "", "KMSInvalidStateException"), 1, []string{KeyNotUsable}}}},
		{name: "invalid state of a store", steps: []step{{0, call(user, "", "", "KMSInvalidStateException"), 1, nil}}},
		{name: "another error", steps: []step{{0, call(user, key, "", "NotFoundException"), 1, nil}}},
		{name: "a rule that is off", rules: []string{RootUse}, steps: []step{{0, call(user, key, "", "DisabledException"), 1, nil}}},
		{name: "burst", steps: []step{{0, call(user, key, "", "AccessDeniedException"), denials, []string{DenialBurst}}}},
		{name: "burst, of IAM", steps: []step{{0, call(user, "", "", "AccessDenied"), denials, []string{DenialBurst}}}},
		{name: "one alert for a burst", steps: []step{{0, call(user, key, "", "AccessDeniedException"), denials, []string{DenialBurst}}, {time.Minute, call(user, key, "", "AccessDeniedException"), 50, nil}}},
		{name: "denials, but few at a time", steps: []step{
			{0, call(user, key, "", "AccessDeniedException"), denials - 1, nil}, {denialWindow + time.Second, call(user, key, "", "AccessDeniedException"), denials - 1, nil},
		}},
		{name: "denials of two", steps: []step{{0, call(user, key, "", "AccessDeniedException"), denials - 1, nil}, {0, call(role, key, "", "AccessDeniedException"), denials - 1, nil}}},
		{name: "root", steps: []step{{0, root, 1, []string{RootUse}}}},
		{name: "the service itself", steps: []step{{0, service, 1, nil}}},
		{name: "a record that cannot be read", steps: []step{{0, nil, 1, nil}}},
		{name: "ceremonies", steps: []step{
			{0, operator("BeginBreakGlass"), 1, []string{CeremonyBegun}}, {0, operator("SubmitShare"), 1, []string{CeremonyBegun}}, {0, operator("Seal"), 1, nil},
		}},
		{name: "first use", steps: []step{
			{0, call(user, "", "", ""), 1, nil}, {8 * day, call(user, key, "", ""), 1, []string{FirstUseOfKey}}, {9 * day, call(user, key, "", ""), 1, nil},
		}},
		{name: "first use by a new principal", steps: []step{{8 * day, call(user, key, "", ""), 1, nil}, {16 * day, call(user, key, "", ""), 1, nil}}},
		{name: "first use of a new key", steps: []step{{0, call(user, "", "", ""), 1, nil}, {10*day + time.Hour, call(user, fresh, "", ""), 1, nil}}},
		{name: "a refused use is none", steps: []step{
			{0, call(user, "", "", ""), 1, nil}, {8 * day, call(user, key, "", "AccessDeniedException"), 1, nil}, {9 * day, call(user, key, "", ""), 1, []string{FirstUseOfKey}},
		}},
		{name: "new network", steps: []step{
			{0, call(user, "", "192.0.2.1", ""), 1, nil}, {8 * day, call(user, "", "192.0.2.200", ""), 1, nil}, {8 * day, call(user, "", "198.51.100.1", ""), 1, []string{NewNetwork}},
			{8 * day, call(user, "", "198.51.100.2", ""), 1, nil}, {8 * day, call(user, "", "2001:db8:1:2::1", ""), 1, []string{NewNetwork}}, {8 * day, call(user, "", "2001:db8:1:3::1", ""), 1, nil},
			{8 * day, call(user, "", "AWS Internal", ""), 1, nil},
		}},
		{name: "sessions of a role are one principal", steps: []step{
			{0, session("one", "192.0.2.1"), 1, nil}, {8 * day, session("two", "192.0.2.1"), 1, nil}, {8 * day, session("three", "198.51.100.1"), 1, []string{NewNetwork}},
		}},
		{name: "spike", steps: append(slices.Clone(day25), step{25 * time.Hour, call(user, "", "", ""), 2*spikeMin + 1, []string{RequestSpike}})},
		{name: "no spike: ten times as many are not reached", steps: append(slices.Clone(day25), step{25 * time.Hour, call(user, "", "", ""), spikeMin + 1, nil})},
		{name: "no spike: a short history", steps: append(slices.Clone(day25[:20]), step{25 * time.Hour, call(user, "", "", ""), 5 * spikeMin, nil})},
		{name: "no spike: an old history", steps: append(slices.Clone(day25), step{9 * day, call(user, "", "", ""), 5 * spikeMin, nil})},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules := c.rules
			if rules == nil {
				rules, _ = ParseRules("all")
			}
			d := newDetector(rules, func(arn string) (int64, bool) {
				if arn == fresh {
					return int64(10 * day), true
				}
				return 0, arn == key
			})
			m, index := newKept(), uint64(0)
			for i, s := range c.steps {
				for n := range max(s.times, 1) {
					it := auditfeed.Item{Entry: auditlog.Entry{Index: index, Time: int64(s.at)}, Record: s.rec}
					list, err := d.observe(it, m)
					if err != nil {
						t.Fatal(err)
					}
					var got, want []string
					for _, a := range list {
						got = append(got, a.Rule)
						if a.Cause != index || !a.HasCause || a.Message == "" || a.Subject == "" {
							t.Errorf("an alert does not say enough: %+v", a)
						}
					}
					if n == max(s.times, 1)-1 {
						want = s.want
					}
					if !slices.Equal(got, want) {
						t.Fatalf("step %d, record %d: got %q, want %q", i, n, got, want)
					}
					index++
				}
			}
		})
	}
}

func TestParseRules(t *testing.T) {
	if all, err := ParseRules("all"); err != nil || len(all) != len(Rules) {
		t.Errorf("all: %q, %v", all, err)
	}
	if got, err := ParseRules("RootUse,DenialBurst"); err != nil || !slices.Equal(got, []string{RootUse, DenialBurst}) {
		t.Errorf("two: %q, %v", got, err)
	}
	for _, bad := range []string{"", "rootuse", "RootUse,", "RootUse,all"} {
		if _, err := ParseRules(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
