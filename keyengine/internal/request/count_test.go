package request_test

import (
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// A count of keys is of an account and a Region, and is made at most once a second.
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
	count, here := request.NewKeyCount(), request.Place{Account: enginetest.AccountNumber, Region: enginetest.Region}
	now := c.Clock.Now()
	if count.AtLeast(c.State(), now, here, 3) || !count.AtLeast(c.State(), now, here, 2) {
		t.Error("AtLeast does not count two keys")
	}
	putKey(3)
	if count.AtLeast(c.State(), now, here, 3) {
		t.Error("AtLeast counted twice within a second")
	}
	if !count.AtLeast(c.State(), now.Add(time.Second), here, 3) {
		t.Error("AtLeast did not count again after a second")
	}
	for _, there := range []request.Place{{Account: enginetest.AccountNumber, Region: "us-east-1"}, {Account: enginetest.AccountNumber + 1, Region: enginetest.Region}} {
		if count.AtLeast(c.State(), now.Add(time.Second), there, 1) {
			t.Errorf("AtLeast counts keys in %s", there)
		}
	}
}
