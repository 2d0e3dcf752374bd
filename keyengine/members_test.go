package keyengine

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// TestDeadNodesAreRecorded: the removal of a dead node is recorded before it happens and when it
// has ended, with nobody as the one who requested it, and nothing happens without a record.
func TestDeadNodesAreRecorded(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	failed := errors.New("not now")
	err := c.engine.RemoveDeadNode(t.Context(), "n9", 72*time.Hour, func(context.Context) error {
		if r := c.lastRecord(); r.EventName != "RemoveDeadNode" || r.EventType != record.KindOperator || r.GetIdentity().GetInvokedBy() != "Conclave" {
			t.Errorf("the record before it is %v", r)
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("got error %v", err)
	}
	if r := c.lastRecord(); r.EventName != "RemoveDeadNode" || r.ErrorCode == "" {
		t.Errorf("the record after it is %v", r)
	}
	c.engine.vault.Seal()
	err = c.engine.RemoveDeadNode(t.Context(), "n9", time.Hour, func(context.Context) error {
		t.Error("the node is removed without a record")
		return nil
	})
	if err == nil {
		t.Error("a sealed node removes a node")
	}
}
