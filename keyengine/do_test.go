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
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/forward"
	"github.com/conclavekms/conclave/keyengine/internal/forwardpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trailapi"
	"github.com/conclavekms/conclave/policy"
)

// A node whose state is behind answers in accordance with what other nodes have answered.
func TestNodeThatIsBehind(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	n2 := c.engines["n2"]
	behind := c.Replica("n2")
	id, arn := c.newKey()
	alice := c.newUser(aliceARN)
	allow := policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*"))
	enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	onN2 := func(op string, in any) error {
		_, err := n2.Do(t.Context(), c.caller(alice), OperationNamed(KMS, op), in)
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
		{"allowed", func() { c.setPolicy(id, allow) }, "Encrypt", encrypt, nil},
		{"disabled", func() { must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id}) }, "Decrypt", decrypt, kmsapi.ErrDisabled},
		{"enabled", func() { must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id}) }, "Decrypt", decrypt, nil},
		{"alias made", func() {
			must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/x"), TargetKeyId: &id})
		}, "Encrypt", &kmsapi.EncryptInput{KeyId: new("alias/x"), Plaintext: []byte("x")}, nil},
		{"alias deleted", func() { must[request.None](c, "DeleteAlias", &kmsapi.DeleteAliasInput{AliasName: new("alias/x")}) },
			"Encrypt", &kmsapi.EncryptInput{KeyId: new("alias/x"), Plaintext: []byte("x")}, kmsapi.ErrNotFound},
		{"permission withdrawn", func() {
			must[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: new(policyDocument(rootStatement))})
		},
			"Decrypt", decrypt, kmsapi.ErrAccessDenied},
		{"permission given", func() { c.setPolicy(id, allow) }, "Decrypt", decrypt, nil},
		{"deletion scheduled", func() {
			must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
		}, "Decrypt", decrypt, kmsapi.ErrInvalidState},
	}
	for _, s := range steps {
		behind.FallBehind()
		s.change()
		if s.name != "denied" && behind.State() == c.State() {
			t.Fatalf("%s: the state of n2 is not behind", s.name)
		}
		before := behind.Proposals.Load()
		err := onN2(s.op, s.in)
		if n := behind.Proposals.Load() - before; n > 2 {
			t.Errorf("%s: got %d proposals, want at most 2: after a conflict the node should wait for a newer state", s.name, n)
		}
		if s.want == nil && err != nil || s.want != nil && !errors.Is(err, s.want) {
			t.Errorf("%s: got error %v, want %v", s.name, err, s.want)
		}
		behind.CatchUp()
	}
	// A list on a node that is behind shows what was changed on another node.
	behind.FallBehind()
	second, _ := c.newKey()
	must[request.None](c, "UpdateKeyDescription", &kmsapi.UpdateKeyDescriptionInput{KeyId: &second, Description: new("new")})
	out, err := callAs[kmsapi.ListKeysOutput](c, n2, c.root, "ListKeys", &kmsapi.ListKeysInput{})
	if err != nil || len(out.Keys) != 2 || *out.Keys[0].KeyArn != arn && *out.Keys[1].KeyArn != arn {
		t.Errorf("ListKeys on a node that is behind: got %v, error %v; want both keys", out, err)
	}
}

// After three conflicts the leader executes the request. Its answer is the same as without
// forwarding, whether the request succeeds or fails.
func TestConflictsEndOnTheLeader(t *testing.T) {
	t.Parallel()
	for _, node := range []string{"n1", "n2"} {
		t.Run("from "+node, func(t *testing.T) {
			c := newTestCluster(t, withNodes(2))
			id, arn := c.newKey()
			other, _ := c.newKey()
			context := map[string]string{"k": "v"}
			replica := c.Replica(node)
			conflicts := 0
			replica.BeforeCommit = func(*fsmpb.Record) {
				conflicts++
				c.modifyKey(id, func(k *fsmpb.Key) { k.Description += "." })
				c.modifyKey(other, func(k *fsmpb.Key) { k.Description += "." })
			}
			do := func(op string, in any) (any, error) {
				conflicts = 0
				out, err := c.engines[node].Do(t.Context(), c.caller(c.root), OperationNamed(KMS, op), in)
				if conflicts != record.MaxTries {
					t.Errorf("%s: got %d conflicts before the leader executed the request, want %d", op, conflicts, record.MaxTries)
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
				t.Errorf("unexpected answer of Decrypt: %+v", d)
			}
			out, err = do("ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
			if err != nil {
				t.Fatal(err)
			}
			want := c.Clock.Now().Add(30 * 24 * time.Hour)
			if s := out.(*kmsapi.ScheduleKeyDeletionOutput); !s.DeletionDate.Equal(want) || *s.PendingWindowInDays != 30 {
				t.Errorf("ScheduleKeyDeletion returned %+v, want deletion at %v", s, want)
			}
			_, err = do("Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
			wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending deletion.")
			if out, err = do("EnableKey", &kmsapi.EnableKeyInput{KeyId: &other}); err != nil || out == nil {
				t.Errorf("EnableKey: got %v, error %v", out, err)
			}
			rec := c.lastRecord()
			if rec.Node != "n1" || rec.SourceIp != "192.0.2.1" || rec.UserAgent != "test/1" || rec.Transport != "aws" || rec.Identity.Certificate != rootURI {
				t.Errorf("unexpected record of the leader: %v", rec)
			}
			if node == "n2" && replica.Forwarded.Load() == 0 {
				t.Error("the request was not forwarded")
			}
		})
	}
}

func TestForwardingFails(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, _ := c.newKey()
	replica := c.Replica("n2")
	replica.BeforeCommit = func(*fsmpb.Record) { c.modifyKey(id, func(k *fsmpb.Key) { k.Description += "." }) }
	do := func() error {
		_, err := callAs[kmsapi.EncryptOutput](c, c.engines["n2"], c.root, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		return err
	}
	c.Replica("n1").LoseOutcome = true
	wantError(t, do(), kmsapi.ErrUnavailable, "The cluster did not say in time what became of the request. It may have taken effect.")
	c.Replica("n1").LoseOutcome = false
	if err := c.engine.Seal(t.Context(), ceremony.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	wantError(t, do(), kmsapi.ErrUnavailable, "The cluster has no leader that this node can reach. Try again.") // as it is sealed
	leader := c.Leader
	c.Leader = nil
	wantError(t, do(), kmsapi.ErrUnavailable, "The cluster has no leader that this node can reach. Try again.")
	c.Leader = leader
	replica.BeforeCommit = nil
	leader.Serve = nil
	if err := do(); err != nil {
		t.Errorf("without conflicts and without a leader's engine: %v", err)
	}
}

// TestForwardedRequestsAreChecked checks that the leader refuses forwarded requests that are
// forged, replayed by another node, or that it does not understand, and that nothing travels in
// the clear.
func TestForwardedRequestsAreChecked(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	op, in := OperationNamed(KMS, "Encrypt"), &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("a plaintext that nobody reads on its way"), EncryptionContext: map[string]string{}}
	o, err := c.engine.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	encode := func(who iam.Identity) []byte {
		t.Helper()
		payload, err := encodeForwarded(o, "n2", c.caller(who), op, in)
		if err != nil {
			t.Fatal(err)
		}
		return payload
	}
	requestID := c.caller(c.root).RequestID
	serve := func(payload []byte) error {
		answer, err := c.engine.ServeForwarded(t.Context(), "n2", payload)
		if err != nil {
			return err
		}
		_, err = decodeAnswer(o, "n2", &iam.Caller{RequestID: requestID}, op, answer)
		return err
	}
	good := encode(c.root)
	if bytes.Contains(good, in.Plaintext) {
		t.Error("the forwarded request has the plaintext in the clear")
	}
	caller, _, _, err := decodeForwarded(o, "n2", good)
	if err != nil {
		t.Fatal(err)
	}
	requestID = caller.RequestID
	if err := serve(good); err != nil {
		t.Fatalf("serving a genuine request: %v", err)
	}
	// A node sends on, as its own, a request that another node forwarded to it.
	if _, err := c.engine.ServeForwarded(t.Context(), "thief", good); !errors.Is(err, ErrForwarded) {
		t.Errorf("request of another node: got error %v, want ErrForwarded", err)
	}
	// The answer to another request.
	answer, err := c.engine.ServeForwarded(t.Context(), "n2", good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeAnswer(o, "n2", &iam.Caller{RequestID: iam.RequestID{1}}, op, answer); !errors.Is(err, keymat.ErrTransit) {
		t.Errorf("answer to another request: got error %v, want ErrTransit", err)
	}
	proof := [32]byte(c.root.Proof())
	proof[0] ^= 1
	forged := forwarded(t, c.root, c.root.Account(), c.root.Credential(), proof)
	refused := func(payload []byte) {
		t.Helper()
		caller, _, _, err := decodeForwarded(o, "n2", payload)
		if err != nil {
			t.Fatal(err)
		}
		requestID = caller.RequestID
		wantError(t, serve(payload), kmsapi.ErrUnrecognizedClient, "The security token included in the request is invalid.")
	}
	refused(encode(forged))

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
			Operation: "Encrypt", RequestId: make([]byte, 16), Principal: c.root.Principal().ARN, Proof: make([]byte, 32), Input: &forwardpb.Struct{},
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
			t.Errorf("%s: got error %v, want ErrForwarded", name, err)
		}
	}
	if _, err := encodeForwarded(o, "n2", c.caller(c.root), op, &kmsapi.EncryptInput{KeyId: new("\xff"), Plaintext: []byte("x")}); !errors.Is(err, kmsapi.ErrUnavailable) {
		t.Errorf("with text that is not UTF-8: got error %v, want KMSUnavailable", err)
	}
	c.engine.vault.Seal()
	if err := serve(good); !errors.Is(err, fsm.ErrNoLeader) {
		t.Errorf("on a sealed leader: got error %v, want ErrNoLeader", err)
	}
}

// After the leader has answered another node, it wipes the secrets of the answer, but not a
// public key in it, which belongs to the state.
func TestForwardingLeavesTheStateAlone(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageSign)
	want := bytes.Clone(c.publicKey(id))
	o, err := c.engine.vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	caller, op := c.caller(c.root), OperationNamed(KMS, "GetPublicKey")
	payload, err := encodeForwarded(o, "n2", caller, op, &kmsapi.GetPublicKeyInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.engine.ServeForwarded(t.Context(), "n2", payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := decodeAnswer(o, "n2", caller, op, answer)
	if err != nil {
		t.Fatal(err)
	}
	if got := out.(*kmsapi.GetPublicKeyOutput).PublicKey; !bytes.Equal(got, want) {
		t.Errorf("the caller got public key %x, want %x", got, want)
	}
	if got := c.publicKey(id); !bytes.Equal(got, want) {
		t.Errorf("afterwards the leader's state has public key %x, want %x", got, want)
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

// No answer is given if its record was not committed, or too late, and the secrets of such an
// answer are wiped.
func TestNothingIsGivenWithoutARecord(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	replica := c.Replica("n1")
	do := func() error {
		_, err := call[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")})
		return err
	}
	size := c.Audit.Size()
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
		replica.Err = tt.err
		wantError(t, do(), tt.kind, tt.message)
	}
	if n := c.Audit.Size() - size; n != 0 {
		t.Errorf("got %d records of requests that were not committed, want 0", n)
	}
	replica.Err = nil
	replica.LateAnswer = true
	wantError(t, do(), kmsapi.ErrUnavailable, "The response missed its release deadline and was discarded. Retry the request.")
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id}) // has happened, and is answered
	wantError(t, do(), kmsapi.ErrUnavailable, "…")                           // a denial may be outdated too
	replica.LateAnswer = false
	replica.Decide = func() fsm.Verdict { return fsm.Invalid }
	wantError(t, do(), kmsapi.ErrInternal, "")

	// The secrets of answers that are not given are wiped.
	for name, decision := range map[string]struct {
		d   fsm.Decision
		err error
	}{
		"conflict": {fsm.Decision{Verdict: fsm.Conflict}, nil}, "invalid": {fsm.Decision{Verdict: fsm.Invalid}, nil},
		"late": {fsm.Decision{Verdict: fsm.Accepted, Late: func() bool { return true }}, nil}, "failed": {fsm.Decision{}, fsm.ErrOutcomeUnknown},
	} {
		ev := request.Evaluate(t.Context(), c.engine.services, c.State(), c.caller(c.root), OperationNamed(KMS, "GenerateRandom"), &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(32))})
		plaintext := ev.Out.(*kmsapi.GenerateRandomOutput).Plaintext
		if out, err := c.engine.finish(t.Context(), ev, decision.d, c.engine.events.Settle(t.Context(), decision.d, decision.err)); err == nil || out != nil {
			t.Errorf("%s: got answer %v, error %v; want an error", name, out, err)
		}
		if string(plaintext) != string(make([]byte, 32)) {
			t.Errorf("%s: the plaintext in the answer was not wiped", name)
		}
	}
}

// An operation that fails after it has proposed changes commits its failure, but none of the
// changes.
func TestFailureChangesNothing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	op := request.Define(request.Operation{Name: "Fail", States: request.AnyState}, func(ev *request.Evaluation, in *kmsapi.EnableKeyInput) (*request.None, error) {
		ops.PutTags(ev, c.keyID(*in.KeyId), []*fsmpb.Tag{{Key: "k"}})
		ev.Later = func(*fsm.State) (any, error) { return &request.None{}, nil }
		return nil, kmsapi.ErrDisabled
	}, nil)
	out, err := c.engine.Do(t.Context(), c.caller(c.root), op, &kmsapi.EnableKeyInput{KeyId: &id})
	if wantError(t, err, kmsapi.ErrDisabled, ""); out != nil {
		t.Errorf("an operation that failed returned %v", out)
	}
	if tags, _ := c.State().KeyTags(c.keyID(id)); tags != nil {
		t.Error("an operation that failed changed the key's tags")
	}
	if rec := c.lastRecord(); rec.EventName != "Fail" || rec.ErrorCode != "DisabledException" {
		t.Errorf("got record of %s with error %s, want Fail with DisabledException", rec.EventName, rec.ErrorCode)
	}
}

// A sealed node answers no request, and records none.
func TestSealedNode(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.newKey()
	if err := c.engine.Seal(t.Context(), ceremony.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	size := c.Audit.Size()
	for _, op := range Operations() {
		out, err := c.engine.Do(t.Context(), c.caller(c.root), op, op.NewInput())
		if !errors.Is(err, kmsapi.ErrUnavailable) || out != nil {
			t.Errorf("%s on a sealed node: got %v, error %v; want KMSUnavailable", op.Name, out, err)
		}
	}
	if c.Audit.Size() != size {
		t.Error("a sealed node made records")
	}
}

// If the stored policy of a key cannot be parsed, requests fail with an internal error that does
// not say why. The node's log does.
func TestBrokenPolicy(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	c.setPolicy(id, brokenPolicy)
	var log bytes.Buffer
	c.engine.log = slog.New(slog.NewTextHandler(&log, nil))
	c.engine.services.Log = c.engine.log
	_, err := call[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrInternal, "")
	if rec := c.lastRecord(); rec.ErrorCode != "KMSInternalException" || rec.ErrorMessage != "" {
		t.Errorf("got record with error %s, message %q; want KMSInternalException without a message", rec.ErrorCode, rec.ErrorMessage)
	}
	if got := log.String(); strings.Count(got, "request failed") != 1 || !strings.Contains(got, "stored policy of key") {
		t.Errorf("got log\n%s\nwant the reason of the failure in it, once", got)
	}
}

// A key is not deleted early by cluster time, whatever the node's clock shows.
func TestDeletionTime(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	schedule := func(id string) time.Time {
		return *must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: new(int32(7))}).DeletionDate
	}
	c.Clock.Advance(time.Hour + 123*time.Millisecond)
	c.Commit(&fsmpb.Entry{})
	for _, behind := range []time.Duration{0, 5 * time.Second, 48 * time.Hour} {
		id, _ := c.newKey()
		c.Clock.Advance(-behind) // the clocks go back; cluster time does not
		at := schedule(id)
		if earliest := time.Unix(0, c.State().Time()).Add(7 * 24 * time.Hour); at.Before(earliest) || at.Sub(earliest) > time.Second || at.Nanosecond() != 0 {
			t.Errorf("with clocks %v behind: got deletion at %v, want up to a second after %v", behind, at, earliest)
		}
		c.Clock.Advance(behind)
	}
	// If time passes between evaluation and commit, the record is rejected and made again.
	id, _ := c.newKey()
	tries := 0
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		if tries++; tries == 1 {
			c.Clock.Advance(90 * time.Second)
		}
	}
	at := schedule(id)
	if earliest := time.Unix(0, c.State().Time()).Add(7 * 24 * time.Hour); tries != 2 || at.Before(earliest) {
		t.Errorf("got deletion at %v after %d proposals, want 2 and not before %v", at, tries, earliest)
	}
}

// A node whose clock is days ahead does not postpone a deletion beyond the longest waiting period:
// the request is executed by the leader instead.
func TestDeletionByAClockThatIsAhead(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, _ := c.newKey()
	now := c.Clock.Now()
	setClock(c.engines["n2"], enginetest.NewClock(now.Add(48*time.Hour)))
	out, err := callAs[kmsapi.ScheduleKeyDeletionOutput](c, c.engines["n2"], c.root, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	if want := now.Add(30 * 24 * time.Hour); !out.DeletionDate.Equal(want) || c.storedKey(id).DeletionTime != want.UnixNano() {
		t.Errorf("got deletion at %v, stored %d, want %v", out.DeletionDate, c.storedKey(id).DeletionTime, want)
	}
}

// A principal whose requests were refused too often is throttled, and only its refusals count.
func TestRefusalsAreLimited(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	c.engine.limits = newLimits(Config{Clock: c.Clock, RefusalRate: 1, RefusalBurst: 3})
	alice, bob := c.newUser(aliceARN), c.newUser("arn:aws:iam::111122223333:user/bob")
	ask := func(who iam.Identity) error {
		_, err := callAs[kmsapi.DescribeKeyOutput](c, c.engine, who, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id})
		return err
	}
	for range 3 {
		wantError(t, ask(alice), kmsapi.ErrAccessDenied, "…")
	}
	size := c.Audit.Size()
	wantError(t, ask(alice), kmsapi.ErrThrottling, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")
	if c.Audit.Size() != size {
		t.Error("a throttled request was recorded")
	}
	wantError(t, ask(bob), kmsapi.ErrAccessDenied, "…")
	for range 10 {
		if err := ask(c.root); err != nil {
			t.Fatalf("a request of another principal that is allowed: %v", err)
		}
	}
	c.Clock.Advance(time.Second)
	wantError(t, ask(alice), kmsapi.ErrAccessDenied, "…")
	wantError(t, ask(alice), kmsapi.ErrThrottling, "…")

	// One record counts the throttled requests, and is made once.
	size = c.Audit.Size()
	c.engine.recordThrottled(t.Context())
	c.engine.recordThrottled(t.Context())
	if n := c.Audit.Size() - size; n != 1 {
		t.Fatalf("got %d records of throttled requests, want 1", n)
	}
	rec := c.lastRecord()
	if rec.EventName != "ThrottleRequests" || rec.Identity.GetArn() != aliceARN || rec.ErrorCode != "ThrottlingException" ||
		rec.ServiceEventDetails[0].GetNumber() != 2 {
		t.Errorf("unexpected record of throttled requests: %v", rec)
	}
}

func TestLimitsAreBounded(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	clock := enginetest.NewClock(time.Unix(1e9, 0))
	l := newLimits(Config{Clock: clock})
	c := &iam.Caller{}
	for i := range 3 * maxLimited {
		who := policy.Principal{ARN: string(rune('a'+i%26)) + time.Duration(i).String()}
		c.Identity, _ = iam.ForwardedIdentity(who, testAccountNumber, "", [32]byte{}, "", nil, nil)
		l.refused(c, kmsapi.ErrAccessDenied)
		if i == maxLimited {
			clock.Advance(time.Hour)
		}
	}
	if n := len(l.refusals.left); n > maxLimited {
		t.Errorf("%d principals are tracked, want at most %d", n, maxLimited)
	}
	l.refused(c, kmsapi.ErrDryRun)
	l.refused(c, kmsapi.ErrInternal)
	if got := l.refusals.left[c.Identity.Principal().ARN].TokensAt(clock.Now()); got != 499 {
		t.Errorf("%v more refusals are allowed, want 499", got)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := newTestCluster(t)
	c.engine.metrics = newMetrics(Config{Metrics: reg}, c.engine)
	id, _ := c.newKey()
	_, _ = call[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: new("alias/none")})
	caller := c.caller(c.root)
	caller.Transport = "made up"
	if _, err := c.engine.Do(t.Context(), caller, OperationNamed(KMS, "DescribeKey"), &kmsapi.DescribeKeyInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	first := true
	c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
		if first {
			first = false
			c.modifyKey(id, func(k *fsmpb.Key) { k.Description = "x" })
		}
	}
	must[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id})
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
			t.Errorf("metric %s is %v, want %v", name, v, want)
		}
	}
	for _, list := range [][]*kmsapi.Error{kmsapi.Errors(), iamapi.Errors(), trailapi.Errors()} {
		for _, e := range list {
			if l := outcomeLabel(e); l != string(e.Code) {
				t.Errorf("%s is counted as %q", e.Code, l)
			}
		}
	}
	if l := outcomeLabel(&kmsapi.Error{Code: "FromTheFuture"}); l != "other" {
		t.Errorf("an unknown code has label %s, want other", l)
	}
}

// Concurrent requests of several kinds on two nodes succeed, and the race detector finds nothing.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	id, _ := c.newKey()
	var wg sync.WaitGroup
	for _, e := range c.engines {
		for i := range 4 {
			wg.Go(func() {
				for range 25 {
					out, err := callAs[kmsapi.EncryptOutput](c, e, c.root, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
					if err != nil {
						t.Errorf("Encrypt: %v", err)
						continue
					}
					if _, err := callAs[kmsapi.DecryptOutput](c, e, c.root, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.CiphertextBlob}); err != nil {
						t.Errorf("Decrypt: %v", err)
					}
					if i == 0 {
						if _, err := callAs[request.None](c, e, c.root, "UpdateKeyDescription", &kmsapi.UpdateKeyDescriptionInput{KeyId: &id, Description: new("d")}); err != nil {
							t.Errorf("UpdateKeyDescription: %v", err)
						}
						if _, err := callAs[request.None](c, e, c.root, "TagResource", &kmsapi.TagResourceInput{KeyId: &id, Tags: manyTags(2)}); err != nil {
							t.Errorf("TagResource: %v", err)
						}
					}
				}
			})
		}
	}
	wg.Wait()
}

// Every request of an authenticated caller is recorded, however invalid it is.
func TestInvalidInputIsRecorded(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	size := c.Audit.Size()
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: new("bad\xfftext"), Plaintext: make([]byte, 5000), EncryptionContext: map[string]string{"\xff": "x"}})
	wantError(t, err, kmsapi.ErrValidation, "…")
	if n := c.Audit.Size() - size; n != 1 {
		t.Fatalf("the request left %d records, want 1", n)
	}
	rec := c.lastRecord()
	if rec.EventName != "Encrypt" || rec.ErrorCode != "ValidationException" || !utf8.ValidString(fmt.Sprint(rec)) {
		t.Errorf("got record of %s with error %s, want Encrypt with ValidationException in valid UTF-8", rec.EventName, rec.ErrorCode)
	}
}
