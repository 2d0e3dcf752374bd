package keyengine

import (
	"context"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/auditsink"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// AuditSink says how far a receiver of the audit log is.
type AuditSink = auditsink.Status

// streaming are the operations of an engine on the receivers of the audit log.
type streaming struct{ engine *Engine }

// AuditSinks returns the receivers of the audit log that the cluster remembers, and those that
// this node is configured with. The caller needs what ReadAudit needs. Errors: ErrAccessDenied,
// ErrUnrecognizedClient, ErrUnavailable.
func (s streaming) AuditSinks(ctx context.Context, c *iam.Caller) ([]AuditSink, error) {
	size := s.engine.feed.Size() // that this was asked for is not what it is about
	err := s.engine.requested(ctx, c, "ListAuditSinks", record.Event{ReadOnly: true}, func(ev *request.Evaluation, _ *record.Event) error {
		return mustAdminister(ev, "conclave:ReadAudit")
	})
	if err != nil {
		return nil, err
	}
	if err := s.engine.replica.Barrier(ctx); err != nil { // for what other nodes have stored
		return nil, err
	}
	list, err := s.engine.Sinks.List(size)
	if err != nil {
		return nil, request.AuditError(err)
	}
	return list, nil
}

// ForgetAuditSink forgets up to where a receiver of the audit log has confirmed the records. If
// it is configured again, it is new. The caller needs conclave:ForgetAuditSink in the account
// that the cluster was initialised with. Errors: ErrValidation, ErrNotFound,
// ErrInvalidState, ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (s streaming) ForgetAuditSink(ctx context.Context, c *iam.Caller, name string) error {
	if name == "" || len(name) > form.MaxSettingName {
		return kmsapi.Errorf(kmsapi.ErrValidation, "The name of an audit sink has 1 to %d bytes.", form.MaxSettingName)
	}
	ask := record.Event{Parameters: []*auditpb.Field{auditfield.Text("sink", name)}}
	return s.engine.requested(ctx, c, "ForgetAuditSink", ask, func(ev *request.Evaluation, _ *record.Event) error {
		if err := mustAdminister(ev, "conclave:ForgetAuditSink"); err != nil {
			return err
		}
		id, err := s.engine.Sinks.Forgettable(ev.State, name, s.engine.replica.IsLeader())
		if err != nil {
			return err
		}
		_, version := fsm.Object[*fsmpb.Setting](ev.State, []byte(id))
		ev.Note(fsmpb.Kind_KIND_SETTING, []byte(id), version)
		ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteSetting{DeleteSetting: &fsmpb.SettingName{Name: id}}})
		return nil
	})
}
