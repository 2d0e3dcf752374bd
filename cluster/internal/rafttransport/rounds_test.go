package rafttransport

import "testing"

func TestRounds(t *testing.T) {
	tr := new(Transport)
	early := tr.rounds.tick()
	mark := tr.Mark()
	late := tr.rounds.tick()
	expect := func(want bool, what string) {
		t.Helper()
		if got := tr.Confirmed("n2", mark, 7); got != want {
			t.Errorf("after %s: confirmed = %v, want %v", what, got, want)
		}
	}
	expect(false, "nothing")
	tr.rounds.confirmed("n2", early, 7)
	expect(false, "an answer to a request that was sent before")
	tr.rounds.confirmed("n3", late, 7)
	expect(false, "an answer of another node")
	tr.rounds.confirmed("n2", late, 6)
	expect(false, "an answer of another term")
	last := tr.rounds.tick()
	tr.rounds.confirmed("n2", last, 7)
	expect(true, "an answer to a request that was sent after")
	tr.rounds.confirmed("n2", early, 7)
	expect(true, "a late answer to an old request")
}
