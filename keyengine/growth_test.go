package keyengine

import (
	"sync/atomic"
	"testing"

	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// When the disks are nearly full, operations that make the state grow are refused, and all others
// work, such as those that take permissions away. When the disk of the node is full, every request
// is refused. When there is room again, everything works.
func TestLittleRoom(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	key, _ := c.newKey()
	var scarce, full atomic.Bool
	c.engine.services.MayGrow = func() bool { return !scarce.Load() }
	c.engine.cfg.DiskFull = full.Load

	scarce.Store(true)
	_, err := call[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{})
	wantError(t, err, kmsapi.ErrLimitExceeded, "…")
	if rec := c.lastRecord(); rec.EventName != "CreateKey" || rec.ErrorCode != string(kmsapi.ErrLimitExceeded.Code) {
		t.Errorf("got record of %s with error %s, want CreateKey with LimitExceededException", rec.EventName, rec.ErrorCode)
	}
	_, err = call[iamapi.CreateUserOutput](c, "CreateUser", &iamapi.CreateUserInput{UserName: new("ann")})
	wantError(t, err, iamapi.ErrLimitExceeded, "…")
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &key})
	full.Store(true)
	_, err = call[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &key})
	wantError(t, err, kmsapi.ErrUnavailable, "The disk of this node is full. Ask another node, or make room.")
	scarce.Store(false)
	full.Store(false)
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &key})
	must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{})
}
