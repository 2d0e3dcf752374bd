package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/integration/harness"
)

// untyped are errors that AWS's own model of KMS does not have, so that clients
// know them by their code alone.
var untyped = []string{"ValidationException", "AccessDeniedException"}

// roundOperations are those of the round.
var roundOperations = []string{
	"CreateKey", "DescribeKey", "ListKeys", "UpdateKeyDescription", "EnableKey", "DisableKey", "ScheduleKeyDeletion", "CancelKeyDeletion",
	"CreateAlias", "UpdateAlias", "DeleteAlias", "ListAliases", "TagResource", "UntagResource", "ListResourceTags",
	"GetKeyPolicy", "PutKeyPolicy", "ListKeyPolicies", "Encrypt", "Decrypt", "ReEncrypt",
	"GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateRandom",
}

// TestClients has the three clients of AWS that most others are built on do the
// same round on every node, over TLS, as they come. That a client can use every
// operation there is shows TestAWSSDKAllOperations.
func TestClients(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 3, harness.Options{})
	clients := []struct {
		name string
		open func(testing.TB, *harness.Cluster) driver
		// typed: the client gives errors types.
		typed bool
		// slow: each call takes a large part of a second. It makes each call once.
		slow bool
	}{
		{"go", func(testing.TB, *harness.Cluster) driver { return sdkDriver{} }, true, false},
		{"boto3", newBotoDriver, true, false},
		{"cli", newCLIDriver, false, true},
	}
	for _, cl := range clients {
		for i, n := range c.Nodes {
			t.Run(cl.name+"/"+n.ID, func(t *testing.T) {
				if cl.slow && testing.Short() && i > 0 {
					t.Skip("one node is enough for a short test")
				}
				t.Parallel()
				r := &round{
					t: t, driver: cl.open(t, c), typed: cl.typed, slow: cl.slow, node: n, next: c.Nodes[(i+1)%len(c.Nodes)],
					name: cl.name + "-" + n.ID, called: make(map[string]bool), failed: make(map[string]bool),
				}
				r.keys()
				r.aliases()
				r.tags()
				r.policies()
				r.cryptography()
				r.states()
				for _, name := range roundOperations {
					if !r.called[name] {
						t.Errorf("%s was not called", name)
					}
				}
			})
		}
	}
	// Parallel subtests run when this function has returned; so does this.
	t.Cleanup(c.NoFaults)
}

// TestCLIProcess runs the CLI as a user does, as a process, with nothing but the
// environment telling it where to go.
func TestCLIProcess(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("its servers are processes without the race detector: make test runs it")
	}
	c := harness.NewCluster(t, 1, harness.Options{})
	newCLIDriver(t, c) // or skip
	env := append(toolEnv(c), "AWS_ENDPOINT_URL_KMS=https://"+c.Nodes[0].AWS)
	a, err := execCLI(t, env, []string{"kms", "create-key", "--description", "first", "--query", "KeyMetadata.Arn", "--output", "text"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "arn:aws:kms:" + harness.Region + ":" + harness.Account + ":key/"; a.Code != 0 || !strings.HasPrefix(a.Out, want) {
		t.Errorf("create-key: exit code %d, %q, %s; want 0, %s…", a.Code, a.Out, a.Err, want)
	}
	a, err = execCLI(t, env, []string{"kms", "describe-key", "--key-id", "alias/none"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Code == 0 || !strings.Contains(a.Err, "(NotFoundException) when calling the DescribeKey operation: Alias arn:aws:kms:") {
		t.Errorf("describe-key of nothing: exit code %d, %s", a.Code, a.Err)
	}
}

// round is one client's use of everything on one node.
type round struct {
	t          *testing.T
	driver     driver
	typed      bool
	slow       bool
	node, next *harness.Node
	name       string
	called     map[string]bool // operations
	failed     map[string]bool // errors seen

	key, arn string // of the round's main key
	other    string // another key
}

// output is a successful answer.
type output struct {
	t  *testing.T
	op string
	m  map[string]any
}

func (r *round) at(n *harness.Node, operation string, in harness.Members) reply {
	r.t.Helper()
	r.called[operation] = true
	if in == nil {
		in = harness.Members{}
	}
	a, err := r.driver.call(n, operation, in)
	if err != nil {
		r.t.Fatalf("%s: %v", operation, err)
	}
	return a
}

// does calls an operation, which has to succeed.
func (r *round) does(operation string, in harness.Members) output {
	r.t.Helper()
	return r.doesAt(r.node, operation, in)
}

func (r *round) doesAt(n *harness.Node, operation string, in harness.Members) output {
	r.t.Helper()
	a := r.at(n, operation, in)
	if a.code != "" {
		r.t.Fatalf("%s %v: got %s", operation, in, a.code)
	}
	return output{r.t, operation, a.output}
}

// elsewhere calls an operation on another node, which has to know what was done
// on this one.
func (r *round) elsewhere(operation string, in harness.Members) output {
	r.t.Helper()
	return r.doesAt(r.next, operation, in)
}

// fails calls an operation, which has to fail in this way.
func (r *round) fails(code, operation string, in harness.Members) {
	r.t.Helper()
	if r.slow && r.failed[code] {
		return
	}
	r.failed[code] = true
	a := r.at(r.node, operation, in)
	if a.code != code {
		r.t.Errorf("%s %v: got %q, want %s", operation, in, a.code, code)
	} else if want := r.typed && !slices.Contains(untyped, code); a.typed != want {
		r.t.Errorf("%s: is %s an error with a type of its own? %t, want %t", operation, code, a.typed, want)
	}
}

// at finds a value by the names on its way.
func (o output) at(path string) any {
	var v any = o.m
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

func (o output) text(path string) string {
	o.t.Helper()
	s, ok := o.at(path).(string)
	if !ok {
		o.t.Errorf("%s: %s is %v, want a text", o.op, path, o.at(path))
	}
	return s
}

func (o output) blob(path string) []byte {
	o.t.Helper()
	b, err := base64.StdEncoding.DecodeString(o.text(path))
	if err != nil {
		o.t.Errorf("%s: %s: %v", o.op, path, err)
	}
	return b
}

func (o output) is(path string, want any) {
	o.t.Helper()
	if n, ok := want.(int); ok {
		want = float64(n)
	}
	if got := o.at(path); !reflect.DeepEqual(got, want) {
		o.t.Errorf("%s: %s is %v, want %v", o.op, path, got, want)
	}
}

// lists reads a list to its end, page by page, and returns one member of each
// entry.
func (r *round) lists(operation, list, member string, limit int, in harness.Members) []string {
	r.t.Helper()
	in = maps.Clone(in)
	if in == nil {
		in = harness.Members{}
	}
	in["Limit"] = limit
	var all []string
	for range 1000 {
		page := r.does(operation, in)
		entries, _ := page.at(list).([]any)
		if len(entries) > limit {
			r.t.Errorf("%s: a page has %d entries, want at most %d", operation, len(entries), limit)
		}
		for _, e := range entries {
			if member == "" {
				all = append(all, e.(string))
			} else {
				all = append(all, e.(map[string]any)[member].(string))
			}
		}
		if page.at("Truncated") != true {
			page.is("Truncated", false)
			if m := page.at("NextMarker"); m != nil {
				r.t.Errorf("%s: the last page has marker %v", operation, m)
			}
			return all
		}
		in["Marker"] = page.text("NextMarker")
	}
	r.t.Fatalf("%s does not end", operation)
	return nil
}

func sameJSON(t *testing.T, what, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Errorf("%s: %v: %q", what, err, got)
	} else if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	} else if diff := cmp.Diff(w, g); diff != "" {
		t.Errorf("%s:\n%s", what, diff)
	}
}

func (r *round) keys() {
	created := r.does("CreateKey", harness.Members{
		"Description": "made by " + r.name, "Policy": harness.RootPolicy(),
		"Tags": []any{map[string]string{"TagKey": "client", "TagValue": r.name}, map[string]string{"TagKey": "empty", "TagValue": ""}},
	})
	r.key, r.arn = created.text("KeyMetadata.KeyId"), created.text("KeyMetadata.Arn")
	if want := "arn:aws:kms:" + harness.Region + ":" + harness.Account + ":key/" + r.key; r.arn != want {
		r.t.Errorf("the key's ARN is %s, want %s", r.arn, want)
	}
	r.other = r.does("CreateKey", nil).text("KeyMetadata.KeyId")

	// The answers of both nodes, and by both of the key's names.
	described := []output{created, r.elsewhere("DescribeKey", harness.Members{"KeyId": r.arn})}
	if !r.slow {
		described = append(described, r.does("DescribeKey", harness.Members{"KeyId": r.key}), r.elsewhere("DescribeKey", harness.Members{"KeyId": r.key}))
	}
	for _, d := range described {
		for path, want := range map[string]any{
			"KeyId": r.key, "Arn": r.arn, "Description": "made by " + r.name, "Enabled": true, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT",
			"KeySpec": "SYMMETRIC_DEFAULT", "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT", "Origin": "AWS_KMS", "KeyManager": "CUSTOMER",
			"AWSAccountId": harness.Account, "MultiRegion": false, "EncryptionAlgorithms": []any{"SYMMETRIC_DEFAULT"},
		} {
			d.is("KeyMetadata."+path, want)
		}
		if d.at("KeyMetadata.CreationDate") == nil {
			r.t.Errorf("%s gives no CreationDate", d.op)
		}
	}
	for _, limit := range []int{7, 1000} {
		if keys := r.lists("ListKeys", "Keys", "KeyId", limit, nil); !slices.Contains(keys, r.key) || !slices.Contains(keys, r.other) {
			r.t.Errorf("ListKeys by %d: got %v, want %s and %s among them", limit, keys, r.key, r.other)
		}
	}
	if arns := r.lists("ListKeys", "Keys", "KeyArn", 1000, nil); !slices.Contains(arns, r.arn) {
		r.t.Errorf("ListKeys: got %v, want %s among them", arns, r.arn)
	}
	r.does("UpdateKeyDescription", harness.Members{"KeyId": r.key, "Description": "changed"})
	r.elsewhere("DescribeKey", harness.Members{"KeyId": r.key}).is("KeyMetadata.Description", "changed")

	r.fails("NotFoundException", "DescribeKey", harness.Members{"KeyId": "00000000-0000-4000-8000-000000000000"})
	r.fails("NotFoundException", "DescribeKey", harness.Members{"KeyId": "no id"})
	r.fails("InvalidMarkerException", "ListKeys", harness.Members{"Marker": "bm9uc2Vuc2U="})
	r.fails("ValidationException", "CreateKey", harness.Members{"KeyUsage": "NONSENSE"})
	r.fails("ValidationException", "ListKeys", harness.Members{"Limit": 1001})
	r.fails("MalformedPolicyDocumentException", "CreateKey", harness.Members{"Policy": harness.RootPolicy(harness.DenyRoot("kms:PutKeyPolicy"))})
	r.fails("TagException", "CreateKey", harness.Members{"Tags": []any{map[string]string{"TagKey": "aws:x", "TagValue": ""}}})
}

func (r *round) aliases() {
	alias := "alias/" + r.name
	r.does("CreateAlias", harness.Members{"AliasName": alias, "TargetKeyId": r.key})
	r.elsewhere("DescribeKey", harness.Members{"KeyId": alias}).is("KeyMetadata.KeyId", r.key)
	r.fails("AlreadyExistsException", "CreateAlias", harness.Members{"AliasName": alias, "TargetKeyId": r.other})
	r.fails("ValidationException", "CreateAlias", harness.Members{"AliasName": "prefixless", "TargetKeyId": r.key})
	r.fails("NotFoundException", "CreateAlias", harness.Members{"AliasName": alias + "-2", "TargetKeyId": "00000000-0000-4000-8000-000000000000"})

	r.does("CreateAlias", harness.Members{"AliasName": alias + "/second", "TargetKeyId": r.key})
	for _, limit := range []int{1, 100} {
		got := r.lists("ListAliases", "Aliases", "AliasName", limit, harness.Members{"KeyId": r.key})
		slices.Sort(got)
		if diff := cmp.Diff([]string{alias, alias + "/second"}, got); diff != "" {
			r.t.Errorf("ListAliases by %d:\n%s", limit, diff)
		}
	}
	if all := r.lists("ListAliases", "Aliases", "AliasName", 10, nil); !slices.Contains(all, alias) {
		r.t.Errorf("ListAliases: got %v, want %s among them", all, alias)
	}
	r.does("UpdateAlias", harness.Members{"AliasName": alias, "TargetKeyId": r.other})
	r.elsewhere("DescribeKey", harness.Members{"KeyId": alias}).is("KeyMetadata.KeyId", r.other)
	r.does("DeleteAlias", harness.Members{"AliasName": alias})
	r.fails("NotFoundException", "DescribeKey", harness.Members{"KeyId": alias})
	r.fails("NotFoundException", "DeleteAlias", harness.Members{"AliasName": alias})
}

func (r *round) tags() {
	tag := func(k, v string) map[string]string { return map[string]string{"TagKey": k, "TagValue": v} }
	r.does("TagResource", harness.Members{"KeyId": r.key, "Tags": []any{tag("empty", "no more"), tag("köy", "vålue 日本")}})
	r.does("UntagResource", harness.Members{"KeyId": r.key, "TagKeys": []string{"client", "never there"}})
	want := map[string]any{"empty": "no more", "köy": "vålue 日本"}
	got := make(map[string]any)
	list, _ := r.elsewhere("ListResourceTags", harness.Members{"KeyId": r.key}).at("Tags").([]any)
	for _, e := range list {
		m := e.(map[string]any)
		got[m["TagKey"].(string)] = m["TagValue"]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("ListResourceTags:\n%s", diff)
	}
	if keys := r.lists("ListResourceTags", "Tags", "TagKey", 1, harness.Members{"KeyId": r.key}); len(keys) != 2 {
		r.t.Errorf("ListResourceTags by one: %v, want two", keys)
	}
	r.fails("TagException", "TagResource", harness.Members{"KeyId": r.key, "Tags": []any{tag("a", "1"), tag("a", "2")}})
	r.fails("NotFoundException", "ListResourceTags", harness.Members{"KeyId": "00000000-0000-4000-8000-000000000000"})
}

func (r *round) policies() {
	sameJSON(r.t, "the policy", r.does("GetKeyPolicy", harness.Members{"KeyId": r.key, "PolicyName": "default"}).text("Policy"), harness.RootPolicy())
	if names := r.lists("ListKeyPolicies", "PolicyNames", "", 10, harness.Members{"KeyId": r.key}); !slices.Equal(names, []string{"default"}) {
		r.t.Errorf("ListKeyPolicies: %v, want default", names)
	}
	strict := harness.RootPolicy(harness.DenyRoot("kms:Encrypt", "kms:UpdateKeyDescription"))
	r.does("PutKeyPolicy", harness.Members{"KeyId": r.key, "Policy": strict})
	got := r.elsewhere("GetKeyPolicy", harness.Members{"KeyId": r.key})
	sameJSON(r.t, "the new policy", got.text("Policy"), strict)
	got.is("PolicyName", "default")
	r.fails("AccessDeniedException", "Encrypt", harness.Members{"KeyId": r.key, "Plaintext": []byte("x")})
	r.fails("AccessDeniedException", "UpdateKeyDescription", harness.Members{"KeyId": r.key, "Description": "x"})
	r.fails("MalformedPolicyDocumentException", "PutKeyPolicy", harness.Members{"KeyId": r.key, "Policy": "{}"})
	r.fails("MalformedPolicyDocumentException", "PutKeyPolicy", harness.Members{"KeyId": r.key, "Policy": harness.RootPolicy(harness.DenyRoot("kms:*"))})
	r.does("PutKeyPolicy", harness.Members{"KeyId": r.key, "PolicyName": "default", "Policy": harness.RootPolicy(), "BypassPolicyLockoutSafetyCheck": true})
}

func (r *round) cryptography() {
	// Every byte there is, and a context of more than ASCII.
	plaintext := make([]byte, 256)
	for i := range plaintext {
		plaintext[i] = byte(i)
	}
	ec := map[string]string{"purpose": "test \"<&>\\", "ключ": "Wert ß\u2028", "": ""}
	enc := r.does("Encrypt", harness.Members{"KeyId": r.key, "Plaintext": plaintext, "EncryptionContext": ec})
	enc.is("KeyId", r.arn)
	enc.is("EncryptionAlgorithm", "SYMMETRIC_DEFAULT")
	blob := enc.blob("CiphertextBlob")
	for _, in := range []harness.Members{
		{"CiphertextBlob": blob, "EncryptionContext": ec},
		{"CiphertextBlob": blob, "EncryptionContext": ec, "KeyId": r.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"},
	} {
		dec := r.elsewhere("Decrypt", in)
		dec.is("KeyId", r.arn)
		if !bytes.Equal(dec.blob("Plaintext"), plaintext) {
			r.t.Errorf("Decrypt gives %x, want %x", dec.blob("Plaintext"), plaintext)
		}
	}
	bad := bytes.Clone(blob)
	bad[len(bad)-1] ^= 1
	r.fails("InvalidCiphertextException", "Decrypt", harness.Members{"CiphertextBlob": bad, "EncryptionContext": ec})
	r.fails("InvalidCiphertextException", "Decrypt", harness.Members{"CiphertextBlob": blob})
	r.fails("InvalidCiphertextException", "Decrypt", harness.Members{"CiphertextBlob": []byte("no ciphertext"), "EncryptionContext": ec})
	r.fails("IncorrectKeyException", "Decrypt", harness.Members{"CiphertextBlob": blob, "EncryptionContext": ec, "KeyId": r.other})
	r.fails("NotFoundException", "Encrypt", harness.Members{"KeyId": "alias/none-" + r.name, "Plaintext": plaintext})
	r.fails("ValidationException", "Encrypt", harness.Members{"KeyId": r.key, "Plaintext": make([]byte, 4097)})
	r.fails("DryRunOperationException", "Encrypt", harness.Members{"KeyId": r.key, "Plaintext": plaintext, "DryRun": true})

	re := r.does("ReEncrypt", harness.Members{
		"CiphertextBlob": blob, "SourceEncryptionContext": ec, "DestinationKeyId": r.other, "DestinationEncryptionContext": map[string]string{"new": "one"},
	})
	re.is("SourceKeyId", r.arn)
	re.is("KeyId", strings.TrimSuffix(r.arn, r.key)+r.other)
	dec := r.elsewhere("Decrypt", harness.Members{"CiphertextBlob": re.blob("CiphertextBlob"), "EncryptionContext": map[string]string{"new": "one"}})
	if !bytes.Equal(dec.blob("Plaintext"), plaintext) {
		r.t.Errorf("Decrypt after ReEncrypt gives %x, want %x", dec.blob("Plaintext"), plaintext)
	}
	r.fails("InvalidCiphertextException", "ReEncrypt", harness.Members{"CiphertextBlob": blob, "DestinationKeyId": r.other})

	for _, size := range []struct {
		in   harness.Members
		want int
	}{{harness.Members{"KeySpec": "AES_256"}, 32}, {harness.Members{"KeySpec": "AES_128"}, 16}, {harness.Members{"NumberOfBytes": 99}, 99}} {
		if r.slow && size.want != 99 {
			continue
		}
		in := harness.Members{"KeyId": r.key, "EncryptionContext": ec}
		maps.Copy(in, size.in)
		dk := r.does("GenerateDataKey", in)
		dk.is("KeyId", r.arn)
		plain := dk.blob("Plaintext")
		dec := r.elsewhere("Decrypt", harness.Members{"CiphertextBlob": dk.blob("CiphertextBlob"), "EncryptionContext": ec})
		if len(plain) != size.want || !bytes.Equal(dec.blob("Plaintext"), plain) {
			r.t.Errorf("GenerateDataKey %v gives %d bytes, want %d that Decrypt gives too", size.in, len(plain), size.want)
		}
		without := r.does("GenerateDataKeyWithoutPlaintext", in)
		if p := without.at("Plaintext"); p != nil {
			r.t.Errorf("GenerateDataKeyWithoutPlaintext gives a plaintext")
		}
		dec = r.elsewhere("Decrypt", harness.Members{"CiphertextBlob": without.blob("CiphertextBlob"), "EncryptionContext": ec})
		if got := dec.blob("Plaintext"); len(got) != size.want {
			r.t.Errorf("GenerateDataKeyWithoutPlaintext %v encrypts %d bytes, want %d", size.in, len(got), size.want)
		}
	}
	r.fails("ValidationException", "GenerateDataKey", harness.Members{"KeyId": r.key})
	r.fails("ValidationException", "GenerateDataKey", harness.Members{"KeyId": r.key, "KeySpec": "AES_256", "NumberOfBytes": 32})

	one, two := r.does("GenerateRandom", harness.Members{"NumberOfBytes": 1024}).blob("Plaintext"), r.does("GenerateRandom", harness.Members{"NumberOfBytes": 1024}).blob("Plaintext")
	if len(one) != 1024 || len(two) != 1024 || bytes.Equal(one, two) {
		r.t.Errorf("GenerateRandom gives %d and %d bytes; the same: %t", len(one), len(two), bytes.Equal(one, two))
	}
	r.fails("ValidationException", "GenerateRandom", harness.Members{"NumberOfBytes": 1025})
}

func (r *round) states() {
	blob := r.does("Encrypt", harness.Members{"KeyId": r.key, "Plaintext": []byte("kept")}).blob("CiphertextBlob")
	expect := func(state string, enabled bool) {
		r.t.Helper()
		d := r.elsewhere("DescribeKey", harness.Members{"KeyId": r.key})
		d.is("KeyMetadata.KeyState", state)
		d.is("KeyMetadata.Enabled", enabled)
	}
	r.does("DisableKey", harness.Members{"KeyId": r.key})
	expect("Disabled", false)
	r.fails("DisabledException", "Encrypt", harness.Members{"KeyId": r.key, "Plaintext": []byte("x")})
	r.fails("DisabledException", "Decrypt", harness.Members{"CiphertextBlob": blob})
	r.fails("DisabledException", "ReEncrypt", harness.Members{"CiphertextBlob": blob, "DestinationKeyId": r.other})
	r.fails("DisabledException", "GenerateDataKey", harness.Members{"KeyId": r.key, "KeySpec": "AES_256"})
	r.fails("InvalidArnException", "DisableKey", harness.Members{"KeyId": "alias/" + r.name + "/second"})
	r.does("EnableKey", harness.Members{"KeyId": r.key})
	expect("Enabled", true)
	r.fails("KMSInvalidStateException", "CancelKeyDeletion", harness.Members{"KeyId": r.key})

	r.fails("ValidationException", "ScheduleKeyDeletion", harness.Members{"KeyId": r.key, "PendingWindowInDays": 31})
	s := r.does("ScheduleKeyDeletion", harness.Members{"KeyId": r.key, "PendingWindowInDays": 7})
	s.is("KeyId", r.arn)
	s.is("KeyState", "PendingDeletion")
	s.is("PendingWindowInDays", 7)
	if s.at("DeletionDate") == nil {
		r.t.Errorf("ScheduleKeyDeletion gives no DeletionDate")
	}
	expect("PendingDeletion", false)
	for _, op := range []string{"EnableKey", "DisableKey", "ScheduleKeyDeletion"} {
		r.fails("KMSInvalidStateException", op, harness.Members{"KeyId": r.key})
	}
	r.fails("KMSInvalidStateException", "Encrypt", harness.Members{"KeyId": r.key, "Plaintext": []byte("x")})
	r.fails("KMSInvalidStateException", "Decrypt", harness.Members{"CiphertextBlob": blob})
	r.does("CancelKeyDeletion", harness.Members{"KeyId": r.key}).is("KeyId", r.arn)
	expect("Disabled", false)
	r.does("EnableKey", harness.Members{"KeyId": r.key})
	if got := r.elsewhere("Decrypt", harness.Members{"CiphertextBlob": blob}).blob("Plaintext"); string(got) != "kept" {
		r.t.Errorf("Decrypt gives %q", got)
	}
}
