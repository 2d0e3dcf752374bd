// Package auditsink streams the audit log to receivers outside of the cluster, which are called
// sinks: files, syslog servers, webhooks and collectors of OpenTelemetry.
//
// The node that leads sends, and remembers in the replicated state which record each receiver
// has confirmed last, so that whichever node leads next goes on from there. Requests never wait
// for any of that: what they leave behind is in the audit log, and is read from there.
//
// Every record is delivered at least once, in the order of the log. It is delivered twice if a
// node that sends ends without warning, or if a receiver does not confirm what it has got. The
// record's index, and its event id, tell the receiver that it has it already.
package auditsink

import (
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/conclavekms/conclave/keyengine/internal/auditsend"
	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

const (
	// maxSinks bounds the sinks of a cluster, and maxFile their configuration, in bytes.
	maxSinks = 16
	maxFile  = 1 << 20
	maxName  = 64
)

// Sink is the configuration of a receiver, which is one of the four.
type Sink struct {
	Name string `json:"name"` // of lower-case letters, digits and hyphens
	// From says which record is the first one, if the receiver has not confirmed any yet:
	// "beginning" or "end" of the log; the default is the beginning.
	From string `json:"from,omitzero"`
	// Only limits what the receiver gets to events with these names, or of these classes:
	// "alerts", "key-events" (for which AWS KMS sends events: rotation, expiry, deletion) and
	// "failures". The default is everything.
	Only []string `json:"only,omitzero"`
	// Format is the form of the records: "cloudtrail", which is the default, or "eventbridge".
	Format string `json:"format,omitzero"`

	File    *auditsend.File    `json:"file,omitzero"`
	Syslog  *auditsend.Syslog  `json:"syslog,omitzero"`
	Webhook *auditsend.Webhook `json:"webhook,omitzero"`
	OTLP    *auditsend.OTLP    `json:"otlp,omitzero"`
}

// opener is what the configuration of a receiver has in common with the others.
type opener interface {
	Open() (auditsend.Sender, error)
}

// Load reads the sinks from a file of JSON, {"sinks": […]}, and checks them. Files with secrets
// and certificates are read too, but no receiver is called.
func Load(name string) ([]Sink, error) {
	b, err := outbound.ReadFile(name, maxFile)
	if err != nil {
		return nil, err
	}
	var list struct {
		Sinks []Sink `json:"sinks"`
	}
	if err := json.Unmarshal(b, &list, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(list.Sinks) > maxSinks {
		return nil, fmt.Errorf("%s has more than %d sinks", name, maxSinks)
	}
	seen := make(map[string]bool)
	for i, s := range list.Sinks {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("%s: sink %d (%q): %w", name, i+1, s.Name, err)
		}
		if seen[s.Name] {
			return nil, fmt.Errorf("%s: two sinks have the name %q", name, s.Name)
		}
		seen[s.Name] = true
	}
	return list.Sinks, nil
}

func (s *Sink) check() error {
	if s.Name == "" || len(s.Name) > maxName || strings.Trim(s.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return errors.New("the name is not of lower-case letters, digits and hyphens")
	}
	if s.From != "" && s.From != "beginning" && s.From != "end" {
		return errors.New(`from is neither "beginning" nor "end"`)
	}
	to, err := s.receiver()
	if err != nil {
		return err
	}
	if err := s.checkChoice(); err != nil {
		return err
	}
	sender, err := to.Open()
	if err != nil {
		return err
	}
	return sender.Close()
}

// receiver returns the one receiver that is configured.
func (s *Sink) receiver() (to opener, err error) {
	n := 0
	if s.File != nil {
		file := *s.File
		file.Gaps = len(s.Only) > 0
		to, n = &file, n+1
	}
	if s.Syslog != nil {
		to, n = s.Syslog, n+1
	}
	if s.Webhook != nil {
		to, n = s.Webhook, n+1
	}
	if s.OTLP != nil {
		to, n = s.OTLP, n+1
	}
	if n != 1 {
		return nil, errors.New("it has not exactly one of file, syslog, webhook and otlp")
	}
	return to, nil
}
