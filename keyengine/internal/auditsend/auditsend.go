// Package auditsend delivers records of the audit log to receivers outside of the cluster: to
// files, to syslog servers, to webhooks and to collectors of OpenTelemetry.
//
// A receiver may be slow, broken or hostile. So each wait has an end, no more of an answer is
// read than is needed, and nothing that a receiver answers is logged in full. Package outbound
// says which addresses are called.
package auditsend

import (
	"context"
	"strings"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/outbound"
)

const (
	// sendTimeout bounds how long a receiver may take to confirm what was sent together.
	sendTimeout = 30 * time.Second
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 64 << 10
	// maxSecret bounds files with secrets, in bytes.
	maxSecret = 64 << 10
)

// Record is a record of the audit log in the clear.
type Record struct {
	Index   uint64
	EventID string    // a UUID; it is the same whenever and wherever the record is delivered
	Time    time.Time // cluster time
	Name    string    // the event's name; it has no control characters or spaces
	Failed  bool      // the event has an error code
	// Line is the record as a line of JSON, without the line break. For webhooks, it may be
	// several lines with breaks between them.
	Line []byte
}

// Sender delivers records to one receiver. It is not safe for concurrent use.
type Sender interface {
	// Send delivers records, at least one, which are in the order of the log, and returns once
	// the receiver has them. After an error, some may have been delivered and all are to be
	// sent again.
	Send(ctx context.Context, records []Record) error
	// Confirms reports whether a Send without an error proves that the receiver has the
	// records. Otherwise, those of the last seconds may be lost when a later Send fails.
	Confirms() bool
	Close() error
}

// secret reads a file with a secret. White space around it does not count.
func secret(file string) (string, error) {
	b, err := outbound.ReadFile(file, maxSecret)
	return strings.TrimSpace(string(b)), err
}
