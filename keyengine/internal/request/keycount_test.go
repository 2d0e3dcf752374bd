package request_test

import (
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// KeyCount counts the keys of a Region, at most once a second.
func TestKeyCount(t *testing.T) {
	t.Parallel()
	c := enginetest.NewCluster(t, 1)
	n := c.NewNode("n1")
	n.Unseal(n.Initialise(enginetest.InitParams(3, 2)).Shares...)
	putKey := func(i byte) {
		n.PutKey(fsm.KeyID{Account: enginetest.AccountNumber, Region: enginetest.Region, ID: [16]byte{i}})
	}
	putKey(1)
	putKey(2)
	var count request.KeyCount
	now := c.Clock.Now()
	if count.AtLeast(c.State(), now, enginetest.Region, 3) || !count.AtLeast(c.State(), now, enginetest.Region, 2) {
		t.Error("AtLeast does not count two keys")
	}
	putKey(3)
	if count.AtLeast(c.State(), now, enginetest.Region, 3) {
		t.Error("AtLeast counted twice within a second")
	}
	if !count.AtLeast(c.State(), now.Add(time.Second), enginetest.Region, 3) {
		t.Error("AtLeast did not count again after a second")
	}
	if count.AtLeast(c.State(), now.Add(time.Second), "us-east-1", 1) {
		t.Error("AtLeast counts keys of another Region")
	}
}
