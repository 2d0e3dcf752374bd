package audit

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// auditRecord has the members of a record that are shown to people.
type auditRecord struct {
	UserIdentity struct{ Type, ARN, PrincipalID, AccessKeyID, InvokedBy string }
	EventTime    string
	EventName    string
	AWSRegion    string
	SourceIP     string `json:"sourceIPAddress"`
	ErrorCode    string
	ErrorMessage string
	RequestID    string
	Resources    []struct{ ARN string }
}

// auditLine returns a record on one line, or its JSON if that has another form
// than expected.
func auditLine(index uint64, raw string) string {
	var r auditRecord
	if err := json.Unmarshal([]byte(raw), &r); err != nil || r.EventName == "" {
		return fmt.Sprintf("%d %s", index, cli.Printable(raw))
	}
	var b strings.Builder
	word := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	word("%s %d %s", r.EventTime, index, r.EventName)
	for _, x := range r.Resources {
		word(" %s", resourceName(x.ARN))
	}
	if r.ErrorCode != "" {
		word(" REFUSED %s", r.ErrorCode)
		if r.ErrorMessage != "" {
			word(" (%s)", r.ErrorMessage)
		}
	} else {
		word(" ok")
	}
	for _, by := range []string{r.UserIdentity.ARN, r.UserIdentity.PrincipalID, r.UserIdentity.InvokedBy} {
		if by != "" {
			word(" by %s", by)
			break
		}
	}
	if r.UserIdentity.AccessKeyID != "" {
		word(" with %s", r.UserIdentity.AccessKeyID)
	}
	word(" from %s in %s, request %s", cli.OrDash(r.SourceIP), cli.OrDash(r.AWSRegion), r.RequestID)
	return cli.Printable(b.String())
}

// jsonLine returns the JSON of a record as one line, also if a server sends it in several.
func jsonLine(raw string) string { return cli.Printable(raw) }

// resourceName returns the part of an ARN after the Region and the account.
func resourceName(arn string) string {
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
		return parts[5]
	}
	return arn
}

// printLine prints a record for people, or in the requested format.
func printLine(a *cli.App, r *kmspb.ReadAuditResponse) error {
	form, err := a.Format()
	if err != nil {
		return err
	}
	switch form {
	case "json":
		_, err = fmt.Fprintln(a.Stdout, jsonLine(r.GetJson()))
	case "yaml":
		var doc []byte
		if doc, err = cli.JSONToYAML([]byte(r.GetJson())); err == nil {
			_, err = fmt.Fprintf(a.Stdout, "---\n%s", cli.Visible(string(doc)))
		}
	default:
		_, err = fmt.Fprintln(a.Stdout, auditLine(r.GetIndex(), r.GetJson()))
	}
	return err
}
