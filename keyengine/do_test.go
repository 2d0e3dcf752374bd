package keyengine

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// TestNodeThatIsBehind: whatever one node has answered, the other answers by it,
// however old the state that it looks at first.
func TestNodeThatIsBehind(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	n2 := r.engines["n2"]
	behind := r.cluster.replica("n2")
	id, arn := r.newKey()
	alice := r.user(aliceARN)
	allow := r.policyFor(rootStatement, statement("Allow", aliceARN, "kms:*"))
	enc := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	onN2 := func(op string, in any) error {
		_, err := n2.Do(t.Context(), r.caller(alice), OperationNamed(op), in)
		return err
	}
	encrypt := &EncryptInput{KeyId: &id, Plaintext: []byte("x")}
	decrypt := &DecryptInput{CiphertextBlob: enc.CiphertextBlob}

	steps := []struct {
		name   string
		change func()
		op     string
		in     any
		want   *Error
	}{
		{"denied", func() {}, "Encrypt", encrypt, ErrAccessDenied},
		{"allowed", func() { r.setPolicy(id, allow) }, "Encrypt", encrypt, nil},
		{"disabled", func() { must[none](r, "DisableKey", &DisableKeyInput{KeyId: &id}) }, "Decrypt", decrypt, ErrDisabled},
		{"enabled", func() { must[none](r, "EnableKey", &EnableKeyInput{KeyId: &id}) }, "Decrypt", decrypt, nil},
		{"alias made", func() {
			must[none](r, "CreateAlias", &CreateAliasInput{AliasName: ptr("alias/x"), TargetKeyId: &id})
		}, "Encrypt", &EncryptInput{KeyId: ptr("alias/x"), Plaintext: []byte("x")}, nil},
		{"alias deleted", func() { must[none](r, "DeleteAlias", &DeleteAliasInput{AliasName: ptr("alias/x")}) },
			"Encrypt", &EncryptInput{KeyId: ptr("alias/x"), Plaintext: []byte("x")}, ErrNotFound},
		{"permission withdrawn", func() {
			must[none](r, "PutKeyPolicy", &PutKeyPolicyInput{KeyId: &id, Policy: ptr(r.policyFor(rootStatement))})
		},
			"Decrypt", decrypt, ErrAccessDenied},
		{"permission given", func() { r.setPolicy(id, allow) }, "Decrypt", decrypt, nil},
		{"deletion scheduled", func() {
			must[ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &ScheduleKeyDeletionInput{KeyId: &id})
		}, "Decrypt", decrypt, ErrInvalidState},
	}
	for _, s := range steps {
		behind.freeze()
		s.change()
		if s.name != "denied" && behind.State() == r.cluster.state() {
			t.Fatalf("%s: the node is not behind", s.name)
		}
		before := behind.proposals
		err := onN2(s.op, s.in)
		if n := behind.proposals - before; n > 2 {
			t.Errorf("%s: %d proposals; a conflict should have been waited out", s.name, n)
		}
		if s.want == nil && err != nil || s.want != nil && !errors.Is(err, s.want) {
			t.Errorf("%s: a node that is behind answered %v, want %v", s.name, err, s.want)
		}
		behind.thaw()
	}
	// What was changed on a node can be read there and on the other at once.
	behind.freeze()
	must[none](r, "UpdateKeyDescription", &UpdateKeyDescriptionInput{KeyId: ptr(r.keyOf("second")), Description: ptr("new")})
	out, err := callAs[ListKeysOutput](r, n2, r.root, "ListKeys", &ListKeysInput{})
	if err != nil || len(out.Keys) != 2 || *out.Keys[0].KeyArn != arn && *out.Keys[1].KeyArn != arn {
		t.Errorf("ListKeys on a node that is behind: %v, %v", out, err)
	}
}

func (r *room) keyOf(description string) string {
	return *must[CreateKeyOutput](r, "CreateKey", &CreateKeyInput{Description: &description}).KeyMetadata.KeyId
}

// TestConflictsEndOnTheLeader: after three conflicts the leader executes the
// request, and every answer, good or bad, comes back whole.
func TestConflictsEndOnTheLeader(t *testing.T) {
	for _, node := range []string{"n1", "n2"} {
		t.Run("from "+node, func(t *testing.T) {
			r := newRoom(t, "n1", "n2")
			id, arn := r.newKey()
			other, _ := r.newKey()
			context := map[string]string{"k": "v"}
			replica := r.cluster.replica(node)
			conflicts := 0
			replica.before = func(*fsmpb.Record) {
				conflicts++
				r.mangle(id, func(k *fsmpb.Key) { k.Description += "." })
				r.mangle(other, func(k *fsmpb.Key) { k.Description += "." })
			}
			do := func(op string, in any) (any, error) {
				conflicts = 0
				out, err := r.engines[node].Do(t.Context(), r.caller(r.root), OperationNamed(op), in)
				if conflicts != maxTries {
					t.Errorf("%s: %d tries before the leader took over, want %d", op, conflicts, maxTries)
				}
				return out, err
			}
			out, err := do("Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("secret"), EncryptionContext: context})
			if err != nil {
				t.Fatal(err)
			}
			out, err = do("Decrypt", &DecryptInput{CiphertextBlob: out.(*EncryptOutput).CiphertextBlob, EncryptionContext: context})
			if err != nil {
				t.Fatal(err)
			}
			if d := out.(*DecryptOutput); string(d.Plaintext) != "secret" || *d.KeyId != arn || *d.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" {
				t.Errorf("Decrypt gave %+v", d)
			}
			out, err = do("ScheduleKeyDeletion", &ScheduleKeyDeletionInput{KeyId: &id})
			if err != nil {
				t.Fatal(err)
			}
			want := r.cluster.clock.Now().Add(30 * 24 * time.Hour)
			if s := out.(*ScheduleKeyDeletionOutput); !s.DeletionDate.Equal(want) || *s.PendingWindowInDays != 30 {
				t.Errorf("ScheduleKeyDeletion gave %+v, want %v", s, want)
			}
			_, err = do("Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
			wantError(t, err, ErrInvalidState, arn+" is pending deletion.")
			if out, err = do("EnableKey", &EnableKeyInput{KeyId: &other}); err != nil || out == nil {
				t.Errorf("EnableKey: %v, %v", out, err)
			}
			rec := r.lastRecord()
			if rec.Node != "n1" || rec.SourceIp != "192.0.2.1" || rec.UserAgent != "test/1" || rec.Transport != "aws" || rec.Identity.Certificate != rootURI {
				t.Errorf("the leader's record: %v", rec)
			}
			if node == "n2" && replica.forwarded == 0 {
				t.Error("nothing was forwarded")
			}
		})
	}
}

func TestForwardingFails(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, _ := r.newKey()
	replica := r.cluster.replica("n2")
	replica.before = func(*fsmpb.Record) { r.mangle(id, func(k *fsmpb.Key) { k.Description += "." }) }
	do := func() error {
		_, err := callAs[EncryptOutput](r, r.engines["n2"], r.root, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		return err
	}
	r.cluster.replica("n1").lost = true
	wantError(t, do(), ErrUnavailable, "The cluster did not say in time what became of the request. It may have taken effect.")
	r.cluster.replica("n1").lost = false
	if err := r.first.Seal(t.Context(), Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	wantError(t, do(), ErrUnavailable, "The cluster's leader is sealed. Try again.")
	leader := r.cluster.leader
	r.cluster.leader = nil
	wantError(t, do(), ErrUnavailable, "The cluster has no leader that this node can reach. Try again.")
	r.cluster.leader = leader
	replica.before = nil
	leader.serve = nil
	if err := do(); err != nil {
		t.Errorf("without conflicts no leader is needed: %v", err)
	}
}

func TestForwardedRequestsAreChecked(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	op, in := OperationNamed("Encrypt"), &EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: map[string]string{}}
	good, err := encodeForwarded(r.caller(r.root), op, in)
	if err != nil {
		t.Fatal(err)
	}
	serve := func(payload []byte) error {
		answer, err := r.first.ServeForwarded(t.Context(), payload)
		if err != nil {
			return err
		}
		_, err = decodeAnswer(op, answer)
		return err
	}
	if err := serve(good); err != nil {
		t.Fatalf("a good request: %v", err)
	}
	forged := r.root
	forged.proof[0] ^= 1
	bad, _ := encodeForwarded(r.caller(forged), op, in)
	wantError(t, serve(bad), ErrUnrecognizedClient, "The security token included in the request is invalid.")
	other := r.user(aliceARN)
	other.principal = r.root.principal
	bad, _ = encodeForwarded(r.caller(other), op, in)
	wantError(t, serve(bad), ErrUnrecognizedClient, "…")
	for name, payload := range map[string][]byte{
		"nothing": nil, "no JSON": []byte("x"), "no operation": []byte(`{"Version":1,"Operation":"Nothing"}`),
		"other version": []byte(`{"Version":2,"Operation":"Encrypt"}`), "no identity": []byte(`{"Version":1,"Operation":"Encrypt"}`),
		"too long": make([]byte, maxForwarded+1), "cut": good[:len(good)-1],
	} {
		if err := serve(payload); !errors.Is(err, ErrForwarded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := encodeForwarded(r.caller(r.root), op, &EncryptInput{KeyId: ptr("\xff"), Plaintext: []byte("x")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("text that would arrive as another: %v", err)
	}
}

func FuzzDecodeForwarded(f *testing.F) {
	f.Add([]byte(`{"Version":1,"Operation":"Encrypt","RequestID":"AAAAAAAAAAAAAAAAAAAAAA==","Principal":"arn:aws:iam::111122223333:root","Proof":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","Input":{"KeyId":"x"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, op, in, err := decodeForwarded(b)
		if err == nil {
			_ = op.plan.validate(in)
			wipeBlobs(in)
		}
	})
}

// TestNothingIsGivenWithoutARecord: no answer leaves when the record was not
// committed, or too late, and what it held is wiped.
func TestNothingIsGivenWithoutARecord(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	replica := r.cluster.replica("n1")
	do := func() error {
		_, err := call[GenerateDataKeyOutput](r, "GenerateDataKey", &GenerateDataKeyInput{KeyId: &id, KeySpec: ptr("AES_256")})
		return err
	}
	size := r.cluster.audit.Size()
	for _, tt := range []struct {
		err     error
		kind    *Error
		message string
	}{
		{fsm.ErrNoLeader, ErrUnavailable, "The cluster has no leader that this node can reach. Try again."},
		{fsm.ErrNodeStopped, ErrUnavailable, "The cluster has no leader that this node can reach. Try again."},
		{fsm.ErrOverloaded, ErrThrottling, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."},
		{fsm.ErrOutcomeUnknown, ErrUnavailable, "The cluster did not say in time what became of the request. It may have taken effect."},
		{context.DeadlineExceeded, ErrUnavailable, "The request was not answered in time."},
		{errors.New("disk on fire at /dev/sda"), ErrInternal, ""},
	} {
		replica.err = tt.err
		wantError(t, do(), tt.kind, tt.message)
	}
	if n := r.cluster.audit.Size() - size; n != 0 {
		t.Errorf("%d records of requests that were never committed", n)
	}
	replica.err = nil
	replica.late = true
	wantError(t, do(), ErrUnavailable, "The answer was held up for too long and is withheld. Try again.")
	must[none](r, "DisableKey", &DisableKeyInput{KeyId: &id}) // has happened, and is answered
	wantError(t, do(), ErrUnavailable, "…")                   // a denial may be outdated too
	replica.late = false
	replica.decide = func() fsm.Verdict { return fsm.Invalid }
	wantError(t, do(), ErrInternal, "")

	// What the answer held is gone.
	for name, decision := range map[string]struct {
		d   fsm.Decision
		err error
	}{
		"conflict": {fsm.Decision{Verdict: fsm.Conflict}, nil}, "invalid": {fsm.Decision{Verdict: fsm.Invalid}, nil},
		"late": {fsm.Decision{Verdict: fsm.Accepted, Late: true}, nil}, "failed": {fsm.Decision{}, fsm.ErrOutcomeUnknown},
	} {
		ev := r.first.evaluate(t.Context(), r.cluster.state(), r.caller(r.root), OperationNamed("GenerateRandom"), &GenerateRandomInput{NumberOfBytes: ptr(int32(32))})
		plaintext := ev.out.(*GenerateRandomOutput).Plaintext
		if out, err := r.first.settle(t.Context(), ev, decision.d, decision.err); err == nil || out != nil {
			t.Errorf("%s: got %v, %v", name, out, err)
		}
		if string(plaintext) != string(make([]byte, 32)) {
			t.Errorf("%s: the answer was not wiped", name)
		}
	}
}

// TestFailureChangesNothing: an operation that fails after it proposed changes
// commits its failure, and none of them.
func TestFailureChangesNothing(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	op := define(Operation{Name: "Fail", states: anyState}, func(ev *eval, in *EnableKeyInput) (*none, error) {
		ev.putTags(r.keyID(*in.KeyId), []*fsmpb.Tag{{Key: "k"}})
		ev.later = func(*fsm.State) (any, error) { return &none{}, nil }
		return nil, ErrDisabled
	}, nil)
	out, err := r.first.Do(t.Context(), r.caller(r.root), op, &EnableKeyInput{KeyId: &id})
	if wantError(t, err, ErrDisabled, ""); out != nil {
		t.Errorf("a failure gave %v", out)
	}
	if tags, _ := r.cluster.state().KeyTags(r.keyID(id)); tags != nil {
		t.Error("a failure changed the key's tags")
	}
	if rec := r.lastRecord(); rec.EventName != "Fail" || rec.ErrorCode != "DisabledException" {
		t.Errorf("record of %s with %s", rec.EventName, rec.ErrorCode)
	}
}

// TestSealedNode answers nothing and records nothing.
func TestSealedNode(t *testing.T) {
	r := newRoom(t)
	r.newKey()
	if err := r.first.Seal(t.Context(), Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	size := r.cluster.audit.Size()
	for _, op := range Operations() {
		out, err := r.first.Do(t.Context(), r.caller(r.root), op, op.NewInput())
		if !errors.Is(err, ErrUnavailable) || out != nil {
			t.Errorf("%s on a sealed node: %v, %v", op.Name, out, err)
		}
	}
	if r.cluster.audit.Size() != size {
		t.Error("a sealed node wrote records")
	}
}

// TestBrokenPolicy: a stored policy that cannot be read allows nobody anything,
// and says nothing of why.
func TestBrokenPolicy(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	r.setPolicy(id, "{")
	_, err := call[DescribeKeyOutput](r, "DescribeKey", &DescribeKeyInput{KeyId: &id})
	wantError(t, err, ErrInternal, "")
	if rec := r.lastRecord(); rec.ErrorCode != "KMSInternalException" || rec.ErrorMessage != "" {
		t.Errorf("record: %s %s", rec.ErrorCode, rec.ErrorMessage)
	}
}

// TestDeletionTime: never early by cluster time, whatever the node's own clock
// says.
func TestDeletionTime(t *testing.T) {
	r := newRoom(t)
	schedule := func(id string) time.Time {
		return *must[ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: ptr(int32(7))}).DeletionDate
	}
	r.cluster.clock.advance(time.Hour + 123*time.Millisecond)
	r.cluster.commit(&fsmpb.Entry{})
	for _, behind := range []time.Duration{0, 5 * time.Second, 48 * time.Hour} {
		id, _ := r.newKey()
		r.cluster.clock.advance(-behind) // the clocks go back; cluster time does not
		at := schedule(id)
		if earliest := time.Unix(0, r.cluster.state().Time()).Add(7 * 24 * time.Hour); at.Before(earliest) || at.Sub(earliest) > time.Second || at.Nanosecond() != 0 {
			t.Errorf("with clocks %v behind: %v, want up to a second after %v", behind, at, earliest)
		}
		r.cluster.clock.advance(behind)
	}
	// Time goes on between evaluation and commit: the record is refused and made
	// anew.
	id, _ := r.newKey()
	tries := 0
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		if tries++; tries == 1 {
			r.cluster.clock.advance(90 * time.Second)
		}
	}
	at := schedule(id)
	if earliest := time.Unix(0, r.cluster.state().Time()).Add(7 * 24 * time.Hour); tries != 2 || at.Before(earliest) {
		t.Errorf("after %d tries: %v, want 2 tries and %v", tries, at, earliest)
	}
}

func TestRefusalsAreLimited(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	r.first.limits = newLimits(Config{Clock: r.cluster.clock, RefusalRate: 1, RefusalBurst: 3})
	alice, bob := r.user(aliceARN), r.user("arn:aws:iam::111122223333:user/bob")
	ask := func(who Identity) error {
		_, err := callAs[DescribeKeyOutput](r, r.first, who, "DescribeKey", &DescribeKeyInput{KeyId: &id})
		return err
	}
	for range 3 {
		wantError(t, ask(alice), ErrAccessDenied, "…")
	}
	size := r.cluster.audit.Size()
	wantError(t, ask(alice), ErrThrottling, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")
	if r.cluster.audit.Size() != size {
		t.Error("a throttled request left a record")
	}
	wantError(t, ask(bob), ErrAccessDenied, "…")
	for range 10 {
		if err := ask(r.root); err != nil {
			t.Fatalf("what is allowed is not limited: %v", err)
		}
	}
	r.cluster.clock.advance(time.Second)
	wantError(t, ask(alice), ErrAccessDenied, "…")
	wantError(t, ask(alice), ErrThrottling, "…")
}

func TestLimitsAreBounded(t *testing.T) {
	clock := &fakeClock{now: time.Unix(1e9, 0)}
	l := newLimits(Config{Clock: clock})
	c := &Caller{}
	for i := range 3 * maxLimited {
		c.Identity.principal.ARN = string(rune('a'+i%26)) + time.Duration(i).String()
		l.refused(c, ErrAccessDenied)
		if i == maxLimited {
			clock.advance(time.Hour)
		}
	}
	if n := len(l.left); n > maxLimited {
		t.Errorf("%d principals are watched, want at most %d", n, maxLimited)
	}
	l.refused(c, ErrDryRun)
	l.refused(c, ErrInternal)
	if got := l.left[c.Identity.principal.ARN].TokensAt(clock.Now()); got != 499 {
		t.Errorf("%v refusals are left, want 499", got)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRoom(t)
	r.first.metrics = newMetrics(Config{Metrics: reg}, r.first)
	id, _ := r.newKey()
	_, _ = call[DescribeKeyOutput](r, "DescribeKey", &DescribeKeyInput{KeyId: ptr("alias/none")})
	c := r.caller(r.root)
	c.Transport = "made up"
	if _, err := r.first.Do(t.Context(), c, OperationNamed("DescribeKey"), &DescribeKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	first := true
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		if first {
			first = false
			r.mangle(id, func(k *fsmpb.Key) { k.Description = "x" })
		}
	}
	must[DescribeKeyOutput](r, "DescribeKey", &DescribeKeyInput{KeyId: &id})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"conclave_requests_total CreateKey ok aws":                  1,
		"conclave_requests_total DescribeKey NotFoundException aws": 1,
		"conclave_requests_total DescribeKey ok other":              1,
		"conclave_requests_total DescribeKey ok aws":                1,
		"conclave_request_conflicts_total DescribeKey":              1,
		"conclave_request_duration_seconds DescribeKey":             3,
		"conclave_sealed":      0,
		"conclave_cached_keys": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if l := outcomeLabel(&Error{Code: "FromTheFuture"}); l != "other" {
		t.Errorf("an unknown code has the label %s", l)
	}
}

// TestConcurrent: requests of all kinds at once, on two nodes, under the race
// detector; every accepted one is one record.
func TestConcurrent(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, _ := r.newKey()
	var wg sync.WaitGroup
	for _, e := range r.engines {
		for i := range 4 {
			wg.Go(func() {
				for range 25 {
					out, err := callAs[EncryptOutput](r, e, r.root, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
					if err != nil {
						t.Errorf("Encrypt: %v", err)
						continue
					}
					if _, err := callAs[DecryptOutput](r, e, r.root, "Decrypt", &DecryptInput{CiphertextBlob: out.CiphertextBlob}); err != nil {
						t.Errorf("Decrypt: %v", err)
					}
					if i == 0 {
						if _, err := callAs[none](r, e, r.root, "UpdateKeyDescription", &UpdateKeyDescriptionInput{KeyId: &id, Description: ptr("d")}); err != nil {
							t.Errorf("UpdateKeyDescription: %v", err)
						}
						if _, err := callAs[none](r, e, r.root, "TagResource", &TagResourceInput{KeyId: &id, Tags: manyTags(2)}); err != nil {
							t.Errorf("TagResource: %v", err)
						}
					}
				}
			})
		}
	}
	wg.Wait()
}
