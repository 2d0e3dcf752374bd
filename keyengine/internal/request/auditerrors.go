package request

import (
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/keyengine/internal/auditindex"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ErrIndexBehind is what callers get while the index lacks records that they ask for.
var ErrIndexBehind = kmsapi.Errorf(kmsapi.ErrUnavailable, "The index of the audit log on this node is being made. Try again later, or ask another node.")

// AuditError returns the error that a caller gets for one of reading the audit log or its index;
// nil for nil.
func AuditError(err error) error {
	if moved, ok := errors.AsType[*auditlog.ArchivedError](err); ok {
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "Record %d of the audit log is in the archive %s, which this node cannot read now.", moved.Index, moved.Place)
	}
	switch {
	case errors.Is(err, auditindex.ErrBehind):
		return ErrIndexBehind
	case errors.Is(err, auditlog.ErrMissing):
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "This node does not have all records of the audit log yet. Try again later, or ask another node.")
	case err != nil:
		return fmt.Errorf("reading the audit log: %w", err)
	}
	return nil
}
