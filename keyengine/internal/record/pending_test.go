package record

import (
	"fmt"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
)

// The number of pending events is bounded, however many operators there are and however many
// steps each takes. No step is missing from the counts.
func TestPendingEventsAreBounded(t *testing.T) {
	t.Parallel()
	p := NewPending()
	const operators = MaxPendingOperators + 8
	at := time.Unix(1, 0)
	for i := range operators {
		op := fmt.Sprintf("conclave://operator/%d", i)
		for range 3 * MaxPendingSteps {
			at = at.Add(time.Second)
			ev := Event{Name: "ResetShares", Kind: KindOperator, At: at, Identity: &auditpb.Identity{Certificate: op}}
			p.Add(ev)
		}
	}
	if n, most := len(p.Events), MaxPendingOperators*(MaxPendingSteps+1)+1; n != most {
		t.Errorf("got %d pending events, want %d", n, most)
	}
	times := make(map[string]int)
	for len(p.Events) > 0 {
		ev, _ := p.First()
		times[ev.Actor()] += max(1, ev.Times)
		if ev.Summary && ev.Actor() == "" {
			// Another step is added to the summary while it is being recorded.
			p.Events[0].Times++
			p.Done(ev)
			if len(p.Events) != 1 || p.Events[0].Times != 1 {
				t.Fatalf("after Done, the pending events are %+v, want one summary of the step that was added meanwhile", p.Events)
			}
			times[""]++
			p.Events = nil
			break
		}
		p.Done(ev)
	}
	if len(times) != MaxPendingOperators+1 || times["conclave://operator/0"] != 3*MaxPendingSteps {
		t.Errorf("got events of %d operators, the first with %d steps; want %d and %d", len(times), times["conclave://operator/0"], MaxPendingOperators+1, 3*MaxPendingSteps)
	}
	if want := (operators-MaxPendingOperators)*3*MaxPendingSteps + 1; times[""] != want {
		t.Errorf("the summary counts %d steps, want %d", times[""], want)
	}
}
