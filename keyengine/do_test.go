package keyengine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/forward"
	"github.com/conclavekms/conclave/keyengine/internal/forwardpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
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
	enc := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	onN2 := func(op string, in any) error {
		_, err := n2.Do(t.Context(), r.caller(alice), OperationNamed(op), in)
		return err
	}
	encrypt := &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}
	decrypt := &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob}

	steps := []struct {
		name   string
		change func()
		op     string
		in     any
		want   *kmsapi.Error
	}{
		{"denied", func() {}, "Encrypt", encrypt, kmsapi.ErrAccessDenied},
		{"allowed", func() { r.setPolicy(id, allow) }, "Encrypt", encrypt, nil},
		{"disabled", func() { must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id}) }, "Decrypt", decrypt, kmsapi.ErrDisabled},
		{"enabled", func() { must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id}) }, "Decrypt", decrypt, nil},
		{"alias made", func() {
			must[request.None](r, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/x"), TargetKeyId: &id})
		}, "Encrypt", &kmsapi.EncryptInput{KeyId: new("alias/x"), Plaintext: []byte("x")}, nil},
		{"alias deleted", func() { must[request.None](r, "DeleteAlias", &kmsapi.DeleteAliasInput{AliasName: new("alias/x")}) },
			"Encrypt", &kmsapi.EncryptInput{KeyId: new("alias/x"), Plaintext: []byte("x")}, kmsapi.ErrNotFound},
		{"permission withdrawn", func() {
			must[request.None](r, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: new(r.policyFor(rootStatement))})
		},
			"Decrypt", decrypt, kmsapi.ErrAccessDenied},
		{"permission given", func() { r.setPolicy(id, allow) }, "Decrypt", decrypt, nil},
		{"deletion scheduled", func() {
			must[kmsapi.ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
		}, "Decrypt", decrypt, kmsapi.ErrInvalidState},
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
	must[request.None](r, "UpdateKeyDescription", &kmsapi.UpdateKeyDescriptionInput{KeyId: new(r.keyOf("second")), Description: new("new")})
	out, err := callAs[kmsapi.ListKeysOutput](r, n2, r.root, "ListKeys", &kmsapi.ListKeysInput{})
	if err != nil || len(out.Keys) != 2 || *out.Keys[0].KeyArn != arn && *out.Keys[1].KeyArn != arn {
		t.Errorf("ListKeys on a node that is behind: %v, %v", out, err)
	}
}

func (r *room) keyOf(description string) string {
	return *must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{Description: &description}).KeyMetadata.KeyId
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
				if conflicts != record.MaxTries {
					t.Errorf("%s: %d tries before the leader took over, want %d", op, conflicts, record.MaxTries)
				}
				return out, err
			}
			out, err := do("Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("secret"), EncryptionContext: context})
			if err != nil {
				t.Fatal(err)
			}
			out, err = do("Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.(*kmsapi.EncryptOutput).CiphertextBlob, EncryptionContext: context})
			if err != nil {
				t.Fatal(err)
			}
			if d := out.(*kmsapi.DecryptOutput); string(d.Plaintext) != "secret" || *d.KeyId != arn || *d.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" {
				t.Errorf("Decrypt gave %+v", d)
			}
			out, err = do("ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
			if err != nil {
				t.Fatal(err)
			}
			want := r.cluster.clock.Now().Add(30 * 24 * time.Hour)
			if s := out.(*kmsapi.ScheduleKeyDeletionOutput); !s.DeletionDate.Equal(want) || *s.PendingWindowInDays != 30 {
				t.Errorf("ScheduleKeyDeletion gave %+v, want %v", s, want)
			}
			_, err = do("Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
			wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending deletion.")
			if out, err = do("EnableKey", &kmsapi.EnableKeyInput{KeyId: &other}); err != nil || out == nil {
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
		_, err := callAs[kmsapi.EncryptOutput](r, r.engines["n2"], r.root, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		return err
	}
	r.cluster.replica("n1").lost = true
	wantError(t, do(), kmsapi.ErrUnavailable, "The cluster did not say in time what became of the request. It may have taken effect.")
	r.cluster.replica("n1").lost = false
	if err := r.first.Seal(t.Context(), ceremony.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	wantError(t, do(), kmsapi.ErrUnavailable, "The cluster has no leader that this node can reach. Try again.") // as it is sealed
	leader := r.cluster.leader
	r.cluster.leader = nil
	wantError(t, do(), kmsapi.ErrUnavailable, "The cluster has no leader that this node can reach. Try again.")
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
	op, in := OperationNamed("Encrypt"), &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("a plaintext that nobody reads on its way"), EncryptionContext: map[string]string{}}
	o, err := r.first.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	encode := func(who iam.Identity) []byte {
		t.Helper()
		payload, err := encodeForwarded(o, "n2", r.caller(who), op, in)
		if err != nil {
			t.Fatal(err)
		}
		return payload
	}
	requestID := r.caller(r.root).RequestID
	serve := func(payload []byte) error {
		answer, err := r.first.ServeForwarded(t.Context(), "n2", payload)
		if err != nil {
			return err
		}
		_, err = decodeAnswer(o, "n2", requestID, op, answer)
		return err
	}
	good := encode(r.root)
	if bytes.Contains(good, in.Plaintext) {
		t.Error("the plaintext travels in the clear")
	}
	c, _, _, err := decodeForwarded(o, "n2", good)
	if err != nil {
		t.Fatal(err)
	}
	requestID = c.RequestID
	if err := serve(good); err != nil {
		t.Fatalf("a good request: %v", err)
	}
	// One that a sealed node was given, as it led, and sends on in its own name.
	if _, err := r.first.ServeForwarded(t.Context(), "thief", good); !errors.Is(err, ErrForwarded) {
		t.Errorf("another node's request: %v", err)
	}
	// An answer to another request.
	answer, err := r.first.ServeForwarded(t.Context(), "n2", good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeAnswer(o, "n2", iam.RequestID{1}, op, answer); !errors.Is(err, keymat.ErrTransit) {
		t.Errorf("an answer to another request: %v", err)
	}
	proof := [32]byte(r.root.Proof())
	proof[0] ^= 1
	forged := iam.ForwardedIdentity(r.root.Principal(), r.root.Credential(), proof, "")
	refused := func(payload []byte) {
		t.Helper()
		c, _, _, err := decodeForwarded(o, "n2", payload)
		if err != nil {
			t.Fatal(err)
		}
		requestID = c.RequestID
		wantError(t, serve(payload), kmsapi.ErrUnrecognizedClient, "The security token included in the request is invalid.")
	}
	refused(encode(forged))
	other := r.user(aliceARN)
	refused(encode(iam.ForwardedIdentity(r.root.Principal(), other.Credential(), [32]byte(other.Proof()), "")))

	seal := func(m proto.Message) []byte {
		t.Helper()
		payload, err := sealMessage(o, forwardContext("request", "n2", iam.RequestID{}), m)
		if err != nil {
			t.Fatal(err)
		}
		return payload
	}
	request := func(edit func(*forwardpb.Request)) []byte {
		m := &forwardpb.Request{
			Operation: "Encrypt", RequestId: make([]byte, 16), Principal: r.root.Principal().ARN, Proof: make([]byte, 32), Input: &forwardpb.Struct{},
		}
		edit(m)
		return seal(m)
	}
	member := func(name string, v *forwardpb.Value) func(*forwardpb.Request) {
		return func(m *forwardpb.Request) {
			m.Input.Members = append(m.Input.Members, &forwardpb.Member{Name: name, Value: v})
		}
	}
	text := &forwardpb.Value{Kind: &forwardpb.Value_Text{Text: "x"}}
	deep := &forwardpb.Value{Kind: &forwardpb.Value_Text{Text: "x"}}
	deep.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	for name, payload := range map[string][]byte{
		"nothing": nil, "in the clear": []byte("{}"), "cut": good[:len(good)-1],
		"no operation":        request(func(m *forwardpb.Request) { m.Operation = "Nothing" }),
		"no proof":            request(func(m *forwardpb.Request) { m.Proof = nil }),
		"no request id":       request(func(m *forwardpb.Request) { m.RequestId = nil }),
		"no principal":        request(func(m *forwardpb.Request) { m.Principal = "me" }),
		"an unknown member":   request(member("NewMember", text)),
		"of another kind":     request(member("Plaintext", text)),
		"a member of nothing": request(member("KeyId", &forwardpb.Value{})),
		"an unknown field":    request(func(m *forwardpb.Request) { m.ProtoReflect().SetUnknown(deep.ProtoReflect().GetUnknown()) }),
		"one deep inside":     request(member("KeyId", deep)),
		"a member twice":      request(func(m *forwardpb.Request) { member("KeyId", text)(m); member("KeyId", text)(m) }),
	} {
		if err := serve(payload); !errors.Is(err, ErrForwarded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := encodeForwarded(o, "n2", r.caller(r.root), op, &kmsapi.EncryptInput{KeyId: new("\xff"), Plaintext: []byte("x")}); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("text that would arrive as another: %v", err)
	}
	r.first.vault.Seal()
	if err := serve(good); !errors.Is(err, fsm.ErrNoLeader) {
		t.Errorf("a sealed leader: %v", err)
	}
}

// TestForwardingLeavesTheStateAlone: what the leader wipes once it has answered another node are
// the secrets of the answer. A public key in it is the state's own.
func TestForwardingLeavesTheStateAlone(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKeyOf("ECC_NIST_P256", kmsapi.UsageSign)
	want := bytes.Clone(r.publicKey(id))
	o, err := r.first.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	c, op := r.caller(r.root), OperationNamed("GetPublicKey")
	payload, err := encodeForwarded(o, "n2", c, op, &kmsapi.GetPublicKeyInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := r.first.ServeForwarded(t.Context(), "n2", payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := decodeAnswer(o, "n2", c.RequestID, op, answer)
	if err != nil {
		t.Fatal(err)
	}
	if got := out.(*kmsapi.GetPublicKeyOutput).PublicKey; !bytes.Equal(got, want) {
		t.Errorf("the caller got %x, want %x", got, want)
	}
	if got := r.publicKey(id); !bytes.Equal(got, want) {
		t.Errorf("the leader has %x left of its public key, want %x", got, want)
	}
}

func FuzzReadForwarded(f *testing.F) {
	seed, _ := proto.Marshal(&forwardpb.Request{
		Operation: "Encrypt", RequestId: make([]byte, 16), Principal: "arn:aws:iam::111122223333:root", Proof: make([]byte, 32),
		Input: &forwardpb.Struct{Members: []*forwardpb.Member{{Name: "KeyId", Value: &forwardpb.Value{Kind: &forwardpb.Value_Text{Text: "x"}}}}},
	})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(forwardpb.Request)
		if proto.Unmarshal(b, m) != nil || forward.AllKnown(m.ProtoReflect()) != nil {
			return
		}
		_, op, in, err := readForwarded(m)
		if err == nil {
			_ = op.Input().Validate(in)
			op.Input().WipeAll(in)
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
		_, err := call[kmsapi.GenerateDataKeyOutput](r, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")})
		return err
	}
	size := r.cluster.audit.Size()
	for _, tt := range []struct {
		err     error
		kind    *kmsapi.Error
		message string
	}{
		{fsm.ErrNoLeader, kmsapi.ErrUnavailable, "The cluster has no leader that this node can reach. Try again."},
		{fsm.ErrNodeStopped, kmsapi.ErrUnavailable, "The cluster has no leader that this node can reach. Try again."},
		{fsm.ErrOverloaded, kmsapi.ErrThrottling, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."},
		{fsm.ErrOutcomeUnknown, kmsapi.ErrUnavailable, "The cluster did not say in time what became of the request. It may have taken effect."},
		{context.DeadlineExceeded, kmsapi.ErrUnavailable, "The request was not answered in time."},
		{errors.New("disk on fire at /dev/sda"), kmsapi.ErrInternal, ""},
	} {
		replica.err = tt.err
		wantError(t, do(), tt.kind, tt.message)
	}
	if n := r.cluster.audit.Size() - size; n != 0 {
		t.Errorf("%d records of requests that were never committed", n)
	}
	replica.err = nil
	replica.late = true
	wantError(t, do(), kmsapi.ErrUnavailable, "The response missed its release deadline and was discarded. Retry the request.")
	must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id}) // has happened, and is answered
	wantError(t, do(), kmsapi.ErrUnavailable, "…")                           // a denial may be outdated too
	replica.late = false
	replica.decide = func() fsm.Verdict { return fsm.Invalid }
	wantError(t, do(), kmsapi.ErrInternal, "")

	// What the answer held is gone.
	for name, decision := range map[string]struct {
		d   fsm.Decision
		err error
	}{
		"conflict": {fsm.Decision{Verdict: fsm.Conflict}, nil}, "invalid": {fsm.Decision{Verdict: fsm.Invalid}, nil},
		"late": {fsm.Decision{Verdict: fsm.Accepted, Late: func() bool { return true }}, nil}, "failed": {fsm.Decision{}, fsm.ErrOutcomeUnknown},
	} {
		ev := request.Evaluate(t.Context(), r.first.services, r.cluster.state(), r.caller(r.root), OperationNamed("GenerateRandom"), &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(32))})
		plaintext := ev.Out.(*kmsapi.GenerateRandomOutput).Plaintext
		if out, err := r.first.finish(t.Context(), ev, decision.d, r.first.events.Settle(t.Context(), decision.d, decision.err)); err == nil || out != nil {
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
	op := request.Define(request.Operation{Name: "Fail", States: request.AnyState}, func(ev *request.Evaluation, in *kmsapi.EnableKeyInput) (*request.None, error) {
		ops.PutTags(ev, r.keyID(*in.KeyId), []*fsmpb.Tag{{Key: "k"}})
		ev.Later = func(*fsm.State) (any, error) { return &request.None{}, nil }
		return nil, kmsapi.ErrDisabled
	}, nil)
	out, err := r.first.Do(t.Context(), r.caller(r.root), op, &kmsapi.EnableKeyInput{KeyId: &id})
	if wantError(t, err, kmsapi.ErrDisabled, ""); out != nil {
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
	if err := r.first.Seal(t.Context(), ceremony.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	size := r.cluster.audit.Size()
	for _, op := range Operations() {
		out, err := r.first.Do(t.Context(), r.caller(r.root), op, op.NewInput())
		if !errors.Is(err, kmsapi.ErrUnavailable) || out != nil {
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
	r.setPolicy(id, "{}")
	var log bytes.Buffer
	r.first.log = slog.New(slog.NewTextHandler(&log, nil))
	r.first.services.Log = r.first.log
	_, err := call[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrInternal, "")
	if rec := r.lastRecord(); rec.ErrorCode != "KMSInternalException" || rec.ErrorMessage != "" {
		t.Errorf("record: %s %s", rec.ErrorCode, rec.ErrorMessage)
	}
	if got := log.String(); strings.Count(got, "request failed") != 1 || !strings.Contains(got, "stored policy of key") {
		t.Errorf("the log should say once why the request failed:\n%s", got)
	}
}

// TestDeletionTime: never early by cluster time, whatever the node's own clock
// says.
func TestDeletionTime(t *testing.T) {
	r := newRoom(t)
	schedule := func(id string) time.Time {
		return *must[kmsapi.ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: new(int32(7))}).DeletionDate
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

// TestDeletionByAClockThatIsAhead: a node whose clock is days ahead puts no deletion off
// beyond the longest waiting period. The leader counts it instead.
func TestDeletionByAClockThatIsAhead(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	id, _ := r.newKey()
	now := r.cluster.clock.Now()
	setClock(r.engines["n2"], &fakeClock{now: now.Add(48 * time.Hour)})
	out, err := callAs[kmsapi.ScheduleKeyDeletionOutput](r, r.engines["n2"], r.root, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	if want := now.Add(30 * 24 * time.Hour); !out.DeletionDate.Equal(want) || r.stored(id).DeletionTime != want.UnixNano() {
		t.Errorf("the key is deleted at %v, stored %d, want %v", out.DeletionDate, r.stored(id).DeletionTime, want)
	}
}

func TestRefusalsAreLimited(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	r.first.limits = newLimits(Config{Clock: r.cluster.clock, RefusalRate: 1, RefusalBurst: 3})
	alice, bob := r.user(aliceARN), r.user("arn:aws:iam::111122223333:user/bob")
	ask := func(who iam.Identity) error {
		_, err := callAs[kmsapi.DescribeKeyOutput](r, r.first, who, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id})
		return err
	}
	for range 3 {
		wantError(t, ask(alice), kmsapi.ErrAccessDenied, "…")
	}
	size := r.cluster.audit.Size()
	wantError(t, ask(alice), kmsapi.ErrThrottling, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")
	if r.cluster.audit.Size() != size {
		t.Error("a throttled request left a record")
	}
	wantError(t, ask(bob), kmsapi.ErrAccessDenied, "…")
	for range 10 {
		if err := ask(r.root); err != nil {
			t.Fatalf("what is allowed is not limited: %v", err)
		}
	}
	r.cluster.clock.advance(time.Second)
	wantError(t, ask(alice), kmsapi.ErrAccessDenied, "…")
	wantError(t, ask(alice), kmsapi.ErrThrottling, "…")

	// One record says what was throttled, and there is nothing more to say.
	size = r.cluster.audit.Size()
	r.first.recordThrottled(t.Context())
	r.first.recordThrottled(t.Context())
	if n := r.cluster.audit.Size() - size; n != 1 {
		t.Fatalf("%d records of what was throttled, want 1", n)
	}
	rec := r.lastRecord()
	if rec.EventName != "ThrottleRequests" || rec.Identity.GetArn() != aliceARN || rec.ErrorCode != "ThrottlingException" ||
		rec.ServiceEventDetails[0].GetNumber() != 2 {
		t.Errorf("the record is %v", rec)
	}
}

func TestLimitsAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	clock := &fakeClock{now: time.Unix(1e9, 0)}
	l := newLimits(Config{Clock: clock})
	c := &iam.Caller{}
	for i := range 3 * maxLimited {
		who := policy.Principal{ARN: string(rune('a'+i%26)) + time.Duration(i).String()}
		c.Identity = iam.ForwardedIdentity(who, "", [32]byte{}, "")
		l.refused(c, kmsapi.ErrAccessDenied)
		if i == maxLimited {
			clock.advance(time.Hour)
		}
	}
	if n := len(l.left); n > maxLimited {
		t.Errorf("%d principals are watched, want at most %d", n, maxLimited)
	}
	l.refused(c, kmsapi.ErrDryRun)
	l.refused(c, kmsapi.ErrInternal)
	if got := l.left[c.Identity.Principal().ARN].TokensAt(clock.Now()); got != 499 {
		t.Errorf("%v refusals are left, want 499", got)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRoom(t)
	r.first.metrics = newMetrics(Config{Metrics: reg}, r.first)
	id, _ := r.newKey()
	_, _ = call[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: new("alias/none")})
	c := r.caller(r.root)
	c.Transport = "made up"
	if _, err := r.first.Do(t.Context(), c, OperationNamed("DescribeKey"), &kmsapi.DescribeKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	first := true
	r.cluster.replica("n1").before = func(*fsmpb.Record) {
		if first {
			first = false
			r.mangle(id, func(k *fsmpb.Key) { k.Description = "x" })
		}
	}
	must[kmsapi.DescribeKeyOutput](r, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id})
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
	if l := outcomeLabel(&kmsapi.Error{Code: "FromTheFuture"}); l != "other" {
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
					out, err := callAs[kmsapi.EncryptOutput](r, e, r.root, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
					if err != nil {
						t.Errorf("Encrypt: %v", err)
						continue
					}
					if _, err := callAs[kmsapi.DecryptOutput](r, e, r.root, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.CiphertextBlob}); err != nil {
						t.Errorf("Decrypt: %v", err)
					}
					if i == 0 {
						if _, err := callAs[request.None](r, e, r.root, "UpdateKeyDescription", &kmsapi.UpdateKeyDescriptionInput{KeyId: &id, Description: new("d")}); err != nil {
							t.Errorf("UpdateKeyDescription: %v", err)
						}
						if _, err := callAs[request.None](r, e, r.root, "TagResource", &kmsapi.TagResourceInput{KeyId: &id, Tags: manyTags(2)}); err != nil {
							t.Errorf("TagResource: %v", err)
						}
					}
				}
			})
		}
	}
	wg.Wait()
}

// TestInvalidInputIsRecorded: an authenticated caller's request leaves a record
// whatever is wrong with it.
func TestInvalidInputIsRecorded(t *testing.T) {
	r := newRoom(t)
	size := r.cluster.audit.Size()
	_, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: new("bad\xfftext"), Plaintext: make([]byte, 5000), EncryptionContext: map[string]string{"\xff": "x"}})
	wantError(t, err, kmsapi.ErrValidation, "…")
	if n := r.cluster.audit.Size() - size; n != 1 {
		t.Fatalf("the request left %d records", n)
	}
	rec := r.lastRecord()
	if rec.EventName != "Encrypt" || rec.ErrorCode != "ValidationException" || !utf8.ValidString(fmt.Sprint(rec)) {
		t.Errorf("record of %s with %s", rec.EventName, rec.ErrorCode)
	}
}
