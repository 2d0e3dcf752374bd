package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// TestAuditCoverage brings every operation of the table to every kind of outcome:
// each request leaves one record, which says what its answer said.
func TestAuditCoverage(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 1, harness.Options{
		Regions:   []string{harness.Region, harness.SecondRegion, harness.ThirdRegion},
		Configure: harness.TrustStores(t),
	})
	n := c.Nodes[0]
	c.MakePrincipals("user/somebody")
	f := harness.NewFace(t, c, n)

	eve := *f // somebody without permissions
	eve.As = newUser(t, f, "eve")

	type expected struct{ operation, kind, code, accessKey string }
	want := make(map[string]expected) // by request id
	ask := func(f *harness.Face, op *keyengine.Operation, kind string, in harness.Members, code string) {
		t.Helper()
		raw, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.Send(f.Signed("TrentService."+op.Name, string(raw)))
		if err != nil {
			t.Fatalf("%s, %s: %v", op.Name, kind, err)
		}
		if a.Type != code || (code == "") != (a.Status == http.StatusOK) {
			t.Errorf("%s, %s: got %d %s (%s), want %q", op.Name, kind, a.Status, a.Type, a.Message, code)
		}
		id := a.Header.Get("x-amzn-RequestId")
		if _, ok := want[id]; ok || id == "" {
			t.Errorf("%s, %s: request id %q is none, or was there before", op.Name, kind, id)
		}
		want[id] = expected{op.Name, kind, a.Type, f.As.AccessKeyID}
	}
	if n := len(keyengine.OperationsOf(keyengine.KMS)); n != len(everyOutcome) {
		t.Errorf("there are %d operations, and rows for %d", n, len(everyOutcome))
	}
	subjects := make(map[string]subject)
	for _, op := range keyengine.OperationsOf(keyengine.KMS) {
		row := everyOutcome[op.Name]
		if row.ok == nil {
			t.Fatalf("%s has no row in everyOutcome: say how it succeeds and fails", op.Name)
		}
		subjects[op.Name] = newSubject(t, n, row.of, op.Name, harness.RootPolicy())
		if !row.noPolicy {
			subjects["denied "+op.Name] = newSubject(t, n, row.of, op.Name+"-denied", harness.RootPolicy(harness.DenyRoot(op.Actions[0])))
		}
	}
	pending := subjects["CancelKeyDeletion"].key
	if _, err := n.SDK().ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: &pending}); err != nil {
		t.Fatal(err)
	}

	from := harness.Records(t, n)
	for _, op := range keyengine.OperationsOf(keyengine.KMS) {
		row := everyOutcome[op.Name]
		invalid := row.invalid
		if invalid == nil {
			invalid = harness.Members{}
		}
		ask(f, op, "invalid", invalid, "ValidationException")
		ask(f, op, "failed", row.failed, row.failure)
		if row.noPolicy {
			ask(&eve, op, "denied", row.ok(subjects[op.Name]), "AccessDeniedException")
		} else {
			ask(f, op, "denied", row.ok(subjects["denied "+op.Name]), "AccessDeniedException")
		}
		ask(f, op, "ok", row.ok(subjects[op.Name]), "")
	}

	seen := make(map[string]int)
	for _, line := range harness.ReadAudit(t, n, from) {
		w, ok := want[line.RequestID]
		if !ok {
			if line.EventName != "CreateSession" && line.EventName != "ReadAudit" { // how this test reads
				t.Errorf("a record of no request: %s", line.Raw)
			}
			continue
		}
		seen[line.RequestID]++
		code := w.code
		if code == "AccessDeniedException" {
			code = "AccessDenied" // as CloudTrail writes it
		}
		if line.EventName != w.operation || line.ErrorCode != code {
			t.Errorf("%s, %s, answered %q: the record says %s, %q", w.operation, w.kind, w.code, line.EventName, line.ErrorCode)
		}
		if line.EventType != "AwsApiCall" || line.EventSource != "kms.amazonaws.com" || line.SourceIPAddress != "127.0.0.1" ||
			line.UserIdentity.Type != "Root" && w.accessKey == c.AccessKeyID || line.UserIdentity.AccessKeyID != w.accessKey || line.ReadOnly != keyengine.OperationNamed(keyengine.KMS, w.operation).ReadOnly {
			t.Errorf("%s, %s: %s", w.operation, w.kind, line.Raw)
		}
	}
	for id, w := range want {
		if seen[id] != 1 {
			t.Errorf("%s, %s: %d records, want one", w.operation, w.kind, seen[id])
		}
	}
	t.Logf("%d requests of %d operations", len(want), len(everyOutcome))

	// The ceremony, which nobody was authenticated for when it began.
	names := make(map[string]int)
	for _, line := range harness.ReadAudit(t, n, 0) {
		names[line.EventName]++
	}
	for _, name := range []string{"Init", "SubmitShare"} {
		if names[name] == 0 {
			t.Errorf("there is no record of %s; there are %v", name, slices.Sorted(maps.Keys(names)))
		}
	}
}

// TestAuditVerify changes bits of a stopped node's audit log: the command that
// anybody can run with the files and the public key finds each of them.
func TestAuditVerify(t *testing.T) {
	t.Parallel()
	seed := harness.NewSeed(t)
	rng := rand.New(rand.NewPCG(seed, 5))
	c := harness.NewCluster(t, 1, harness.Options{Processes: true})
	n := c.Nodes[0]
	key, err := n.KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// Enough for full tiles.
	const entries = 600
	for i := range entries {
		ec := map[string]string{"n": fmt.Sprint(i)}
		if _, err := n.KMS().Encrypt(t.Context(), &kmspb.EncryptRequest{KeyId: key.GetKeyMetadata().KeyId, Plaintext: []byte("x"), EncryptionContext: ec}); err != nil {
			t.Fatal(err)
		}
	}
	// With both keys, a change to either signature is noticed.
	status, err := n.Operator().Status(t.Context(), &kmspb.StatusRequest{})
	if err != nil || status.GetAudit().GetMlDsaVerifierKey() == "" {
		t.Fatalf("the node does not name its ML-DSA-44 key: %v, %v", status, err)
	}
	keys := c.VerifierKey + "\n" + status.GetAudit().GetMlDsaVerifierKey()
	n.Stop()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	// Nothing but the files and the key, somewhere else.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(n.Data, "groups", "0", "audit"))); err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "audit.pub")
	if err := os.WriteFile(keyFile, []byte(keys+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conclaveVerify := func(dir, key string) (ok bool, out string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), binary, "audit", "verify", dir, "--key", key)
		cmd.Env = []string{}
		b, err := cmd.CombinedOutput()
		if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != 0 && code != 1 {
			t.Errorf("exit code %d: %s", code, b)
		}
		return err == nil, string(b)
	}
	for _, where := range []string{n.Data, filepath.Join(n.Data, "groups", "0", "audit"), dir} {
		if ok, out := conclaveVerify(where, keyFile); !ok {
			t.Fatalf("the log as it was left in %s: %s", where, out)
		}
	}
	rep, err := verify.Dir(dir, keys, verify.Options{})
	if err != nil || !rep.OK() {
		t.Fatalf("%v, %+v", err, rep)
	}
	if rep.Size < entries || rep.Unsigned != 0 {
		t.Errorf("%d entries, %d of them unsigned, after a graceful stop; want at least %d, all signed", rep.Size, rep.Unsigned, entries)
	}
	other := harness.NewCluster(t, 1, harness.Options{})
	if ok, _ := conclaveVerify(dir, other.VerifierKey); ok {
		t.Errorf("another cluster's key verifies the log")
	}

	files := auditFiles(t, dir)
	if len(files["tile"]) == 0 || len(files["segments"]) == 0 || len(files["checkpoint"]) != 1 {
		t.Fatalf("the log has %v", files)
	}
	// found reports whether a changed file is noticed, by the command or by what the
	// command calls.
	found := func(name string, changed []byte, byCommand bool) bool {
		t.Helper()
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}()
		if byCommand {
			ok, _ := conclaveVerify(dir, keyFile)
			return !ok
		}
		rep, err := verify.Dir(dir, keys, verify.Options{})
		return err != nil || !rep.OK()
	}
	flip := func(name string, bit int64, byCommand bool) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b[bit/8] ^= 1 << (bit % 8)
		if !found(name, b, byCommand) {
			t.Errorf("%s: bit %d of byte %d changed: not noticed", name, bit%8, bit/8)
		}
	}
	size := func(name string) int64 {
		t.Helper()
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	all := slices.Concat(files["segments"], files["tile"], files["checkpoint"], files["durable"])
	flips, step := 60, int64(7)
	switch {
	case harness.Full():
		flips, step = 300, 1
	case testing.Short():
		step = 19
	}
	for i := range flips {
		name := all[i%len(all)]
		flip(name, rng.Int64N(8*size(name)), i%10 == 0)
	}
	// Every bit of the checkpoint up to the long signature, some of that, and every bit of the
	// segment's header and the frame behind it, or a sample of them; the first and last bits of
	// everything.
	checkpoint := files["checkpoint"][0]
	for bit := int64(0); bit < 8*size(checkpoint); bit += step {
		if flip(checkpoint, bit, false); bit > 8*400 {
			bit += 16
		}
	}
	for bit := int64(0); bit < 8*256; bit += step {
		flip(files["segments"][0], bit, false)
	}
	for _, name := range all {
		flip(name, 0, true)
		flip(name, 8*size(name)-1, true)
	}
	// Cut off, and gone. The end of the last segment is vouched for by the checkpoint.
	for _, name := range all {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{0, len(b) / 2, len(b) - 1} {
			if !found(name, b[:n], n == 0) {
				t.Errorf("%s: cut to %d of %d bytes: not noticed", name, n, len(b))
			}
		}
		if err := os.Rename(filepath.Join(dir, name), keyFile+".gone"); err != nil {
			t.Fatal(err)
		}
		if ok, _ := conclaveVerify(dir, keyFile); ok {
			t.Errorf("%s is gone: not noticed", name)
		}
		if err := os.Rename(keyFile+".gone", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if ok, out := conclaveVerify(dir, keyFile); !ok {
		t.Errorf("the log, as it was again: %s", out)
	}
}

// auditFiles are the files of an audit log, by the first part of their names.
func auditFiles(t *testing.T, dir string) map[string][]string {
	t.Helper()
	files := make(map[string][]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		kind, _, _ := strings.Cut(filepath.ToSlash(name), "/")
		files[kind] = append(files[kind], name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
