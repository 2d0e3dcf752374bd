package security

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"google.golang.org/grpc/metadata"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/canary"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// secrets are what a test gave to a cluster, or got from it, that nobody else may
// ever see.
type secrets struct {
	canary.Set
	// context is an encryption context's canary: it may stand in the audit log when
	// that is read, and nowhere else.
	context canary.Set
	word    string
}

// newSecrets begins with what founding gave.
func newSecrets(t *testing.T, c *harness.Cluster) *secrets {
	t.Helper()
	s := &secrets{word: randomText(48)}
	s.context.Add("encryption context", []byte(s.word))
	s.Add("secret access key", []byte(c.Secret()))
	for i, share := range c.Shares {
		s.AddShare(t, fmt.Sprintf("share %d", i+1), share)
	}
	return s
}

// use makes requests of all kinds at a node, good and bad, on both faces, with
// canaries wherever a secret can stand, and collects what came back.
func (s *secrets) use(t *testing.T, c *harness.Cluster, n, next *harness.Node) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	name := func(what string) string { return what + " of " + n.ID }
	raw := make([]byte, 64)
	rand.Read(raw)
	s.Add(name("plaintext"), raw)
	text := randomText(64)
	s.Add(name("plaintext, a text"), []byte(text))
	ec := map[string]string{"canary": s.word, s.word: "canary"}

	created, err := n.KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{})
	must(err)
	key := created.GetKeyMetadata().GetKeyId()
	other, err := n.KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{})
	must(err)
	for _, plaintext := range [][]byte{raw, []byte(text)} {
		enc, err := n.KMS().Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &key, Plaintext: plaintext, EncryptionContext: ec})
		must(err)
		_, err = next.KMS().Decrypt(ctx, &kmspb.DecryptRequest{CiphertextBlob: enc.GetCiphertextBlob(), EncryptionContext: ec})
		must(err)
		_, err = next.KMS().ReEncrypt(ctx, &kmspb.ReEncryptRequest{
			CiphertextBlob: enc.GetCiphertextBlob(), SourceEncryptionContext: ec, DestinationKeyId: other.GetKeyMetadata().KeyId, DestinationEncryptionContext: ec,
		})
		must(err)
		aws, err := n.SDK().Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: plaintext, EncryptionContext: ec})
		must(err)
		_, err = next.SDK().Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: aws.CiphertextBlob, EncryptionContext: ec})
		must(err)
		// Refused, with the plaintext in the request.
		_, err = n.KMS().Encrypt(ctx, &kmspb.EncryptRequest{KeyId: new(string), Plaintext: plaintext, EncryptionContext: ec})
		mustFail(t, err)
		_, err = n.SDK().Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: append(plaintext, make([]byte, 4096)...), EncryptionContext: ec})
		mustFail(t, err)
	}
	spec := "AES_256"
	for i := range 3 {
		dk, err := n.KMS().GenerateDataKey(ctx, &kmspb.GenerateDataKeyRequest{KeyId: &key, KeySpec: &spec, EncryptionContext: ec})
		must(err)
		s.Add(name(fmt.Sprint("data key ", i)), dk.GetPlaintext())
		adk, err := n.SDK().GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: "AES_256", EncryptionContext: ec})
		must(err)
		s.Add(name(fmt.Sprint("data key for AWS's client ", i)), adk.Plaintext)
		number := int32(64)
		random, err := n.KMS().GenerateRandom(ctx, &kmspb.GenerateRandomRequest{NumberOfBytes: &number})
		must(err)
		s.Add(name(fmt.Sprint("random ", i)), random.GetPlaintext())
		without, err := n.KMS().GenerateDataKeyWithoutPlaintext(ctx, &kmspb.GenerateDataKeyWithoutPlaintextRequest{KeyId: &key, KeySpec: &spec, EncryptionContext: ec})
		must(err)
		dec, err := next.KMS().Decrypt(ctx, &kmspb.DecryptRequest{CiphertextBlob: without.GetCiphertextBlob(), EncryptionContext: ec})
		must(err)
		s.Add(name(fmt.Sprint("hidden data key ", i)), dec.GetPlaintext())
	}
	_, err = n.KMS().DisableKey(ctx, &kmspb.DisableKeyRequest{KeyId: &key})
	must(err)
	_, err = n.KMS().Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &key, Plaintext: raw, EncryptionContext: ec})
	mustFail(t, err)
	_, err = n.KMS().EnableKey(ctx, &kmspb.EnableKeyRequest{KeyId: &key})
	must(err)

	// What cannot be read: the plaintext stands in the middle of it.
	f := harness.NewFace(t, c, n)
	for _, body := range []string{
		`{"KeyId":"` + key + `","Plaintext":"` + base64.StdEncoding.EncodeToString(raw) + `"`,
		`{"KeyId":"` + key + `","Plaintext":"` + base64.StdEncoding.EncodeToString(raw) + `!"}`,
		`{"KeyId":"` + key + `","Plaintext":"` + text + `","Plaintext":"` + text + `"}`,
		`{"KeyId":{"Plaintext":"` + text + `"}}`,
		`{"KeyId":"` + key + `","` + text + `":[`,
	} {
		f.Refuses("a broken body", f.Signed("TrentService.Encrypt", body), http.StatusBadRequest, "SerializationException")
	}
	// Tokens, of a stranger and a good one.
	conn := dialGRPC(t, n, f.TLS())
	bad, good := randomText(64), sessionToken(t, c, conn)
	s.Add(name("a stranger's token"), []byte(bad))
	s.Add(name("a token"), []byte(good))
	for _, token := range []string{bad, good, good + "AAAA"} {
		with := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		_, err := kmspb.NewKMSClient(conn).ListKeys(with, &kmspb.ListKeysRequest{})
		if token == good {
			must(err)
		} else {
			mustFail(t, err)
		}
	}
	r := f.Request("TrentService.ListKeys", "{}")
	r.Header.Set("Authorization", "Bearer "+bad)
	f.Refuses("a token for AWS's face", r, http.StatusBadRequest, "MissingAuthenticationTokenException")
	// Shares that are refused: mistyped, and given though the node is open.
	typo := []byte(c.Shares[0])
	if typo[len(typo)-1]++; typo[len(typo)-1] > 'z' || typo[len(typo)-1] < 'a' {
		typo[len(typo)-1] = 'a'
	}
	for _, share := range []string{string(typo), c.Shares[0], c.Shares[0][:len(c.Shares[0])-9], "x" + c.Shares[1]} {
		_, _ = client.SubmitShare(ctx, n.Operator(), []byte(share))
	}
}

func mustFail(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("a call succeeded that should not have")
	}
}

// report fails the test for what was found.
func report(t *testing.T, where string, found []string) {
	t.Helper()
	for i, f := range found {
		if i == 20 {
			t.Errorf("%s: and %d more", where, len(found)-i)
			return
		}
		t.Errorf("%s: %s", where, f)
	}
}

// TestSecretsStayInside gives canaries to a cluster that logs all it can, makes it
// write snapshots, seals and unseals it, and looks for them in all that it wrote
// and tells: data directories with what is compressed in them, logs, metrics and
// the audit log in the clear.
//
// Key material cannot be looked for: nothing gives it to a test, and nothing is to
// be added that does. Its wrapping is tested in keyengine/internal/keymat.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := harness.NewCluster(t, 3, harness.Options{Dir: dir, Configure: func(n *harness.Node, cfg *node.Config) {
		cfg.OpsListen = n.Ops
		cfg.Test.SnapshotEntries, cfg.Test.TrailingLogs = 20, 10
		cfg.Timeouts.Snapshot = 200 * time.Millisecond
		harness.LongElections(n, cfg)
	}})
	s := newSecrets(t, c)
	for i, n := range c.Nodes {
		s.use(t, c, n, c.Nodes[(i+1)%len(c.Nodes)])
	}
	// Sealed and unsealed, one node restarted.
	_, err := c.Nodes[0].Operator().Seal(t.Context(), &kmspb.SealRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c.Unseal()
	c.WaitReady()
	c.Nodes[2].Stop()
	c.Nodes[2].Start()
	c.Nodes[2].Unseal()
	c.WaitReady()
	// Entries that no snapshot of before covers.
	for range 40 {
		if _, err := c.Nodes[0].KMS().CreateKey(t.Context(), &kmspb.CreateKeyRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	c.Eventually("waiting for snapshots", func(context.Context) error {
		for _, n := range c.Nodes {
			if files, err := filepath.Glob(filepath.Join(n.Data, "groups", "0", "raft", "snapshots", "*", "state.bin")); err != nil || len(files) == 0 {
				return fmt.Errorf("%s has no snapshot: %v", n.ID, err)
			}
		}
		return nil
	})

	for _, n := range c.Nodes {
		for _, page := range []string{"/metrics", "/healthz", "/readyz", "/livez"} {
			body := harness.OpsGet(t, n, page)
			report(t, n.ID+page, append(s.In(body), s.context.In(body)...))
		}
	}
	var lines strings.Builder
	for _, line := range harness.ReadAudit(t, c.Nodes[1], 0) {
		lines.WriteString(line.Raw)
		lines.WriteByte('\n')
	}
	report(t, "the audit log, read", s.In([]byte(lines.String())))
	if !strings.Contains(lines.String(), s.word) {
		t.Errorf("the audit log shows no encryption context: is it the log of what was done?")
	}
	for _, n := range c.Nodes {
		n.Stop()
	}
	found, size, frames := s.InDir(t, dir)
	report(t, "the disk", found)
	found, _, _ = s.context.InDir(t, dir)
	report(t, "the disk", found)
	t.Logf("%d forms of secrets in %.1f MiB with %d compressed parts", s.Count, float64(size)/(1<<20), frames)
	if frames < 3 {
		t.Errorf("%d snapshots were read, want one of each node at least", frames)
	}
	for _, n := range c.Nodes {
		log, err := os.ReadFile(filepath.Join(dir, n.ID+".log"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(log), "level=DEBUG") {
			t.Errorf("node %s logged nothing at debug level: the scan of its log says little", n.ID)
		}
	}

	// The control: a planted secret is found, where a leak would be.
	planted := fmt.Sprintf("time=x level=DEBUG msg=oops body=%q\n", base64.URLEncoding.EncodeToString([]byte("key="+c.Secret())))
	if err := os.WriteFile(filepath.Join(c.Nodes[1].Data, "planted"), []byte(planted), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, _, _ := s.InDir(t, dir); len(found) == 0 {
		t.Error("a planted secret was not found")
	}
}

// TestSecretsOfProcesses looks at what other users of a machine may see of a
// server: arguments, environment, standard output and error.
func TestSecretsOfProcesses(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("its servers are processes without the race detector: make test runs it")
	}
	dir := t.TempDir()
	c := harness.NewCluster(t, 1, harness.Options{Processes: true, Dir: dir})
	n := c.Nodes[0]
	s := newSecrets(t, c)
	s.use(t, c, n, n)
	for _, name := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", n.PID(), name))
		if os.IsPermission(err) && name == "environ" {
			t.Logf("%s cannot be read: %v", name, err) // the process is not dumpable
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		report(t, name, append(s.In(b), s.context.In(b)...))
		if name == "cmdline" && !strings.Contains(string(b), n.Data) {
			t.Errorf("the command line is %q: that of another process?", b)
		}
	}
	body := harness.OpsGet(t, n, "/metrics")
	report(t, "metrics", append(s.In(body), s.context.In(body)...))
	n.Stop()
	found, _, _ := s.InDir(t, dir)
	report(t, "the disk", found)
	found, _, _ = s.context.InDir(t, dir)
	report(t, "the disk", found)
}

// randomText is a printable secret, with nothing in it that an encoder would
// change.
func randomText(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz234567"
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}
