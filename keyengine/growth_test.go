package keyengine

import (
	"sync/atomic"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestLittleRoom: with little room on the disks nothing grows, and everything else,
// what takes authority away above all, goes on; with none there is no answer, and all
// comes back with the room.
func TestLittleRoom(t *testing.T) {
	r := newRoom(t)
	key, _ := r.newKey()
	var scarce, full atomic.Bool
	r.first.services.MayGrow = func() bool { return !scarce.Load() }
	r.first.cfg.DiskFull = full.Load

	scarce.Store(true)
	_, err := call[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{})
	wantError(t, err, kmsapi.ErrLimitExceeded, "…")
	if rec := r.lastRecord(); rec.EventName != "CreateKey" || rec.ErrorCode != string(kmsapi.ErrLimitExceeded.Code) {
		t.Errorf("the refusal is recorded as %s, %s", rec.EventName, rec.ErrorCode)
	}
	must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &key})
	full.Store(true)
	_, err = call[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &key})
	wantError(t, err, kmsapi.ErrUnavailable, "The disk of this node is full. Ask another node, or make room.")
	scarce.Store(false)
	full.Store(false)
	must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &key})
	must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{})
}

func TestGrowingOperationsExist(t *testing.T) {
	for name := range request.Growing {
		if op := OperationNamed(name); op == nil || op.ReadOnly {
			t.Errorf("%s is no operation that changes something", name)
		}
	}
}
