package iam

import (
	"fmt"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// Used proofs are forgotten once their time is no longer valid, and their number is bounded.
func TestUsedProofsAreBounded(t *testing.T) {
	t.Parallel()
	var u UsedProofs
	now := time.Unix(1_000_000, 0)
	for i := range MaxProofs {
		if err := u.Use(now, &SessionProof{Time: now.Unix(), MAC: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.Use(now, &SessionProof{Time: now.Unix(), MAC: []byte("more")}); err != record.ErrThrottled {
		t.Errorf("with the maximum number of proofs in use: got error %v, want ErrThrottled", err)
	}
	later := now.Add(SessionSkew + time.Second)
	if err := u.Use(later, &SessionProof{Time: later.Unix(), MAC: []byte("more")}); err != nil || len(u.Seen) != 1 {
		t.Errorf("after their time, %d proofs are remembered, want 1 (%v)", len(u.Seen), err)
	}
}
