package access

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/permissions"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// sortedKeys returns the keys of a map, sorted.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// requestID is the form of request ids.
var requestID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// explanation writes what AWS's form of a decoded message says, or, if it has another form, all
// of it.
func explanation(w io.Writer, raw json.RawMessage) {
	var m struct {
		Allowed, ExplicitDeny bool
		MatchedStatements     struct{ Items []json.RawMessage }
		Context               struct {
			Principal        struct{ ID, ARN string }
			Action, Resource string
			Conditions       struct {
				Items []struct {
					Key    string
					Values struct{ Items []struct{ Value string } }
				}
			}
		}
	}
	if json.Unmarshal(raw, &m) != nil || m.Context.Action == "" {
		var b bytes.Buffer
		if json.Indent(&b, raw, "", "  ") == nil {
			fmt.Fprintln(w, cli.Visible(b.String()))
		}
		return
	}
	decision := "denied: no policy allows it"
	switch {
	case m.Allowed:
		decision = "allowed"
	case m.ExplicitDeny:
		decision = "denied by a statement"
	}
	cli.Line(w, "decision", decision)
	cli.Line(w, "principal", m.Context.Principal.ARN)
	cli.Line(w, "action", m.Context.Action)
	cli.Line(w, "resource", m.Context.Resource)
	for _, c := range m.Context.Conditions.Items {
		values := make([]string, len(c.Values.Items))
		for i, v := range c.Values.Items {
			values[i] = v.Value
		}
		cli.Line(w, "context", c.Key+" = "+strings.Join(values, ", "))
	}
	for _, s := range m.MatchedStatements.Items {
		var b bytes.Buffer
		if json.Compact(&b, s) == nil {
			cli.Line(w, "statement", b.String())
		}
	}
	// What the server says beyond AWS's members.
	var rest map[string]json.RawMessage
	_ = json.Unmarshal(raw, &rest) // it is an object, as above
	for _, k := range sortedKeys(rest) {
		var b bytes.Buffer
		switch k {
		case "allowed", "explicitDeny", "matchedStatements", "context", "failures":
		default:
			if json.Compact(&b, rest[k]) == nil {
				cli.Line(w, k, b.String())
			}
		}
	}
}

var errFound = errors.New("found")

// whyRequest looks a request up in the audit log, and explains its denial.
func whyRequest(ctx context.Context, a *cli.App, id string) error {
	return a.WithEach(ctx, "reading the audit log", func(ctx context.Context, c *cli.Connection) error {
		var found *permissions.Record
		err := c.ReadAudit(ctx, 0, false, func(r *kmspb.ReadAuditResponse) error {
			if !strings.Contains(r.GetJson(), id) {
				return nil
			}
			var rec permissions.Record
			if json.Unmarshal([]byte(r.GetJson()), &rec) != nil || rec.RequestID != id {
				return nil
			}
			found = &rec
			return errFound
		})
		if err != nil && !errors.Is(err, errFound) {
			return err
		}
		if found == nil {
			return fmt.Errorf("the audit log has no request %s", id)
		}
		if found.ErrorCode == "" {
			return fmt.Errorf("request %s was not denied: %s %s", id, found.EventName, found.EventTime)
		}
		return a.Print(found, func(w io.Writer) {
			cli.Line(w, "time", found.EventTime)
			cli.Line(w, "principal", cli.OrDash(found.UserIdentity.ARN))
			cli.Line(w, "event", found.EventName)
			for _, r := range found.Resources {
				cli.Line(w, "resource", r.ARN)
			}
			for _, d := range found.Additional.Authorization {
				cli.Line(w, "decision", d)
			}
			cli.Line(w, "error", found.ErrorCode)
			cli.Line(w, "message", cli.OrDash(found.ErrorMessage))
		})
	})
}
