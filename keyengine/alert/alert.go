// Package alert watches the audit log for what an operator should look at: use of keys that
// are disabled, bursts of denials, root users, ceremonies, and what a principal never did
// before. See docs/operate/alerts.md.
//
// Each unsealed node follows its own copy of the log, so that all of them detect the same.
// The leader records each alert in the log, as an event with the name [EventName]: there, it
// is searched, proven and streamed like every other record, and the other nodes learn from it
// that the alert needs no second record. An alert that a leader could not record is recorded
// by the next one.
package alert

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// EventName is the eventName of the records of alerts.
const EventName = "Alert"

// Names of the rules.
const (
	KeyNotUsable    = "KeyNotUsable"
	DenialBurst     = "DenialBurst"
	FirstUseOfKey   = "FirstUseOfKey"
	NewNetwork      = "NewNetwork"
	RequestSpike    = "RequestSpike"
	MaterialExpires = "MaterialExpires"
	KeysNotRotated  = "KeysNotRotated"
	RootUse         = "RootUse"
	CeremonyBegun   = "CeremonyBegun"
)

// Rule is something that is watched for.
type Rule struct {
	Name string
	// About says what the rule detects, in a sentence.
	About string
	// Quiet is how long the rule does not raise an alert about the same subject again, in
	// cluster time.
	Quiet time.Duration
}

// Rules are all rules.
var Rules = []Rule{
	{KeyNotUsable, "A principal tried to use a key that is disabled or pending deletion.", time.Hour},
	{DenialBurst, fmt.Sprintf("A principal was denied %d requests within %v.", denials, denialWindow), time.Hour},
	{FirstUseOfKey, fmt.Sprintf("A principal that has been active for %v uses a key for the first time, and the key is older than %v.", days(learning), days(newKey)), time.Hour},
	{NewNetwork, fmt.Sprintf("A principal that has been active for %v makes a request from a network that it never used before.", days(learning)), time.Hour},
	{RequestSpike, fmt.Sprintf("A principal makes more than %d requests in an hour, and %d times as many as in its usual one.", spikeMin, spikeFactor), 6 * time.Hour},
	{MaterialExpires, fmt.Sprintf("Imported key material expires within %v.", days(expirySoon)), 24 * time.Hour},
	{KeysNotRotated, fmt.Sprintf("Keys that could be rotated have had the same material for %v.", days(rotationLate)), 7 * day},
	{RootUse, "The root user of an account makes requests.", time.Hour},
	{CeremonyBegun, "Operators begin a ceremony, or submit shares.", 15 * time.Minute},
}

const day = 24 * time.Hour

// days formats a duration in days.
func days(d time.Duration) string {
	if d == day {
		return "a day"
	}
	return fmt.Sprintf("%d days", d/day)
}

// ParseRules parses the names of rules with commas between them. "all" is all rules.
func ParseRules(s string) ([]string, error) {
	var all []string
	for _, r := range Rules {
		all = append(all, r.Name)
	}
	if s == "all" {
		return all, nil
	}
	names := strings.Split(s, ",")
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("%q is not a rule for alerts; the rules are %s, and \"all\"", name, strings.Join(all, ", "))
		}
	}
	return names, nil
}

// ruleOf returns the rule with a name.
func ruleOf(name string) (Rule, bool) {
	i := slices.IndexFunc(Rules, func(r Rule) bool { return r.Name == name })
	if i < 0 {
		return Rule{}, false
	}
	return Rules[i], true
}

// Alert is something that was detected.
type Alert struct {
	Rule string
	// Subject is what the alert is about: a principal, a key or an account. The rule raises no
	// second alert about it for a while.
	Subject string
	// Account is the account that it concerns; "" for the cluster.
	Account string
	// Key is the ARN of the key that it concerns, if there is one.
	Key string
	// Message says what happened.
	Message string
	// Cause is the index of the record that caused the alert, if HasCause.
	Cause    uint64
	HasCause bool
	// Time is the cluster time at which it was detected, in Unix nanoseconds.
	Time int64
}

// subject identifies what a rule was about.
type subject struct{ rule, about string }

func (a *Alert) subject() subject { return subject{a.Rule, a.Subject} }
