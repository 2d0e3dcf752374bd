package harness

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	testKey    = "4d772b10-b3e6-4f40-b944-516ff00a8a7f"
	denyPolicy = `{"Statement":[{"Effect":"Allow","Action":"kms:*"},{"Effect":"Deny","Action":["kms:Encrypt","kms:Decrypt"]}]}`
)

// goodRun is a log and a history that agree. The history is given as
// "NAME[:CODE]", one after the other in time but for those that begin with "|",
// which overlap the one before.
func goodRun(calls ...string) (log []Record, ops []Op) {
	clock := time.Duration(0)
	tick := func() time.Duration { clock += time.Millisecond; return clock }
	for i, call := range calls {
		call, overlaps := strings.CutPrefix(call, "|")
		name, code, _ := strings.Cut(call, ":")
		o := Op{Name: name, Node: "a", RequestID: fmt.Sprint("r", i), Code: code}
		o.Invoked = tick()
		o.Returned = tick()
		if overlaps {
			o.Invoked = ops[i-1].Invoked
		}
		ops = append(ops, o)
		r := Record{
			Index: uint64(i), RequestID: o.RequestID, Name: name, Type: "AwsApiCall", Code: code, Node: "a",
			Params: map[string]any{"keyId": testKey, "targetKeyId": testKey, "aliasName": "alias/x", "policy": denyPolicy},
		}
		if name == "CreateKey" {
			r.Params = nil
			r.Response = map[string]any{"keyMetadata": map[string]any{"keyId": testKey}}
		}
		log = append(log, r)
	}
	return log, ops
}

func run() ([]Record, []Op) {
	return goodRun("Encrypt:NotFoundException", "CreateKey", "Encrypt", "|Encrypt", "CreateAlias", "CreateAlias:AlreadyExistsException",
		"DisableKey", "Encrypt:DisabledException", "DescribeKey", "EnableKey", "Encrypt", "PutKeyPolicy", "Encrypt:AccessDeniedException",
		"DescribeKey", "DeleteAlias", "DeleteAlias:NotFoundException", "ScheduleKeyDeletion", "Decrypt:AccessDeniedException", "TagResource:KMSInvalidStateException", "CancelKeyDeletion")
}

func TestWitnessOfAGoodRun(t *testing.T) {
	log, ops := run()
	spec, err := CheckWitness(log, ops)
	if err != nil {
		t.Fatal(err)
	}
	if k := spec.Keys[testKey]; k == nil || k.State != "Disabled" || k.Policy != denyPolicy || len(spec.Aliases) != 0 {
		t.Errorf("the state afterwards is %+v, %v", k, spec.Aliases)
	}
	// A request whose answer was lost may have a record or none, wherever.
	ops[2].Code = "ServiceUnavailable"
	ops = append(ops, Op{Name: "Encrypt", RequestID: "nowhere", Code: "ServiceUnavailable", Invoked: 1, Returned: 2},
		Op{Name: "Encrypt", Code: unanswered})
	if _, err := CheckWitness(log, ops); err != nil {
		t.Error(err)
	}
	w := NewWitness()
	if err := errors.Join(w.Check(log, ops), w.Unexplained()); err != nil || w.Lost != 1 {
		t.Errorf("%d records of calls without an answer, want 1: %v", w.Lost, err)
	}
	// A client that was told nothing does not know the id of its request.
	log, ops = run()
	ops[2].Code, ops[2].RequestID = unanswered, ""
	w = NewWitness()
	if err := errors.Join(w.Check(log, ops), w.Unexplained()); err != nil || w.Lost != 1 {
		t.Errorf("%d records of calls without an answer, want 1: %v", w.Lost, err)
	}
	// Overlapping requests may stand in either order.
	log, ops = run()
	log[2].RequestID, log[3].RequestID = log[3].RequestID, log[2].RequestID
	if _, err := CheckWitness(log, ops); err != nil {
		t.Error(err)
	}
}

// TestWitnessFindsPlanted makes sure that each kind of violation is found.
func TestWitnessFindsPlanted(t *testing.T) {
	renumber := func(log []Record) []Record {
		for i := range log {
			log[i].Index = uint64(i)
		}
		return log
	}
	for name, plant := range map[string]func([]Record, []Op) ([]Record, []Op){
		"missing record": func(log []Record, ops []Op) ([]Record, []Op) {
			return renumber(slices.Delete(log, 2, 3)), ops
		},
		"hole": func(log []Record, ops []Op) ([]Record, []Op) {
			return slices.Delete(log, 2, 3), slices.Delete(ops, 2, 3)
		},
		"doubled record": func(log []Record, ops []Op) ([]Record, []Op) {
			return renumber(slices.Insert(log, 3, log[2])), ops
		},
		"doubled change": func(log []Record, ops []Op) ([]Record, []Op) {
			double := log[4]
			double.RequestID = "other"
			return renumber(slices.Insert(log, 5, double)), ops
		},
		"order against real time": func(log []Record, ops []Op) ([]Record, []Op) {
			log[7], log[8] = log[8], log[7] // DescribeKey is right before and after
			return renumber(log), ops
		},
		"stale allow": func(log []Record, ops []Op) ([]Record, []Op) {
			log[7].Code, ops[7].Code = "", ""
			return log, ops
		},
		"stale denial": func(log []Record, ops []Op) ([]Record, []Op) {
			log[10].Code, ops[10].Code = "DisabledException", "DisabledException"
			return log, ops
		},
		"stale policy": func(log []Record, ops []Op) ([]Record, []Op) {
			log[12].Code, ops[12].Code = "", ""
			return log, ops
		},
		"change without effect": func(log []Record, ops []Op) ([]Record, []Op) {
			log[6].Code, ops[6].Code = "ValidationException", "ValidationException"
			return log, ops
		},
		"answer other than recorded": func(log []Record, ops []Op) ([]Record, []Op) {
			ops[7].Code = ""
			return log, ops
		},
		"record of another operation": func(log []Record, ops []Op) ([]Record, []Op) {
			ops[2].Name = "Decrypt"
			return log, ops
		},
		"answer without request id": func(log []Record, ops []Op) ([]Record, []Op) {
			ops[2].RequestID = ""
			return log, ops
		},
		"answer that names another record": func(log []Record, ops []Op) ([]Record, []Op) {
			ops[2].Record = new(uint64(3))
			return log, ops
		},
		"answer that names no record after the upgrade": func(log []Record, ops []Op) ([]Record, []Op) {
			log = slices.Insert(log, 0, Record{RequestID: "other", Name: "FinalizeUpgrade", Type: "ConclaveOperatorEvent"})
			return renumber(log), ops
		},
		"record of no call": func(log []Record, ops []Op) ([]Record, []Op) {
			return log, slices.Delete(ops, 2, 3)
		},
		"record of no call, beside a call of something else": func(log []Record, ops []Op) ([]Record, []Op) {
			ops[2].Name, ops[2].Code, ops[2].RequestID = "Decrypt", unanswered, ""
			return log, ops
		},
		"key made twice": func(log []Record, ops []Op) ([]Record, []Op) {
			double := log[1]
			double.RequestID = "other"
			return renumber(slices.Insert(log, 3, double)), ops
		},
		"unknown operation": func(log []Record, ops []Op) ([]Record, []Op) {
			log[2].Name, ops[2].Name = "Frobnicate", "Frobnicate"
			return log, ops
		},
	} {
		log, ops := run()
		log, ops = plant(log, ops)
		w := NewWitness()
		if err := errors.Join(w.Check(log, ops), w.Unexplained()); err == nil {
			t.Errorf("%s: not found", name)
		}
	}
}

// TestWitnessInPieces checks a run piece by piece, and what goes wrong between pieces.
func TestWitnessInPieces(t *testing.T) {
	pieces := func(log []Record, ops []Op, cut int) error {
		w := NewWitness()
		return errors.Join(w.Check(log[:cut], ops[:cut]), w.Check(log[cut:], ops[cut:]))
	}
	log, ops := run()
	for _, cut := range []int{0, 1, 5, 10, len(log)} {
		if err := pieces(log, ops, cut); err != nil {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	// Record 8 is of a call that nobody answered, made before the cut.
	log, ops = run()
	ops[8].Code = unanswered
	w := NewWitness()
	if err := errors.Join(w.Check(log[:5], slices.Concat(ops[:5], ops[8:9])), w.Check(log[5:], slices.Concat(ops[5:8], ops[9:]))); err != nil {
		t.Errorf("a late record of a call without answer: %v", err)
	}
	log, ops = run()
	double := log[2]
	double.Index = 12
	log = slices.Insert(log, 12, double)
	for i := range log {
		log[i].Index = uint64(i)
	}
	w = NewWitness()
	if err := w.Check(log[:10], ops[:10]); err != nil {
		t.Fatal(err)
	}
	if err := w.Check(log[10:], ops[10:]); err == nil {
		t.Error("a request with records in two pieces was not found")
	}
	// Answered before the cut, and in the log after it.
	log, ops = run()
	log[8], log[10] = log[10], log[8]
	log[8].Index, log[10].Index = 8, 10
	if err := pieces(log, ops, 9); err == nil {
		t.Error("an answer that has no record yet was not found")
	}
}
