package trailfiles

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/integration/optional"
)

const origin = "conclave/0123/0"

var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, minBits)
	if err != nil {
		panic(err)
	}
	return key
})

var logKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

func logKeyText() string {
	return checkpoint.VerifierKey(origin, logKey.Public().(ed25519.PublicKey))
}

var began = time.Date(2026, 11, 1, 22, 50, 0, 0, time.UTC)

// line is record i of a log with a record every minute, of two accounts in two Regions.
func line(i int) []byte {
	leaf := sha256.Sum256(fmt.Append(nil, "leaf", i))
	account, region := []string{"111122223333", "444455556666"}[i%2], []string{"eu-west-1", "us-east-1"}[i/2%2]
	if i == 5 { // cannot be decrypted
		account, region = "", ""
	}
	return fmt.Appendf(nil, `{"eventTime":%q,"eventName":"Encrypt","awsRegion":%q,"recipientAccountId":%q,"conclave":{"index":%d,"leafHash":"%x"}}`,
		began.Add(time.Duration(i)*time.Minute).Format(timeForm), region, account, i, leaf)
}

// fixture is an export in a directory.
type fixture struct {
	*testing.T
	dir    string
	origin string
	asked  int // for checkpoints
}

func newFixture(t *testing.T) *fixture { return &fixture{T: t, dir: t.TempDir(), origin: origin} }

func (f *fixture) open(from uint64) (*Writer, error) {
	return Open(Config{Dir: f.dir, Bucket: "bucket-of-test", Key: testKey(), Checkpoint: func(index uint64) (Checkpoint, error) {
		f.asked++
		size := index + 10
		note, err := checkpoint.Sign(f.origin, logKey, nil, size, [32]byte{1})
		return Checkpoint{f.origin, size, string(note)}, err
	}}, from)
}

// export exports the records before to.
func (f *fixture) export(to int) {
	f.Helper()
	w, err := f.open(0)
	if err != nil {
		f.Fatal(err)
	}
	next, begun := w.Next()
	if begun {
		if err := w.Check(line(int(next) - 1)); err != nil {
			f.Fatal(err)
		}
	}
	for i := int(next); i < to; i++ {
		if err := w.Add(line(i)); err != nil {
			f.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(), w.Close()); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) verify() (*Verified, error) {
	return Verify(f.dir, map[string]*rsa.PublicKey{Fingerprint(&testKey().PublicKey): &testKey().PublicKey}, logKeyText())
}

// files returns the content of all files under AWSLogs.
func (f *fixture) files() map[string][]byte {
	f.Helper()
	all := make(map[string][]byte)
	err := fs.WalkDir(os.DirFS(f.dir), "AWSLogs", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all[name], err = os.ReadFile(filepath.Join(f.dir, name))
		}
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	return all
}

// TestExport: an export that goes on, run after run, verifies, has every record once, and never
// changes a file that is there.
func TestExport(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var before map[string][]byte
	for _, to := range []int{1, 4, 4, 14, 15, 75} {
		f.export(to)
		v, err := f.verify()
		if err != nil {
			t.Fatalf("up to %d: %v", to, err)
		}
		if v.Records != uint64(to) || v.First != 0 || v.Log != origin || !v.Checkpoints {
			t.Errorf("up to %d: %+v", to, v)
		}
		now := f.files()
		for name, content := range before {
			if !bytes.Equal(now[name], content) {
				t.Errorf("up to %d: %s was changed", to, name)
			}
		}
		before = now
	}
	if f.asked > 12 {
		t.Errorf("%d checkpoints were asked for", f.asked)
	}
	names := make([]string, 0, len(before))
	for name := range before {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := "AWSLogs/000000000000/CloudTrail-Digest/none/2026/11/01/000000000000_CloudTrail-Digest_none_conclave_none_20261101T225501Z.json.gz"; !slices.Contains(names, want) {
		t.Errorf("no %s in %s", want, strings.Join(names, "\n"))
	}
	const first = "AWSLogs/111122223333/CloudTrail/eu-west-1/2026/11/01/111122223333_CloudTrail_eu-west-1_20261101T2250Z_"
	if !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, first) }) {
		t.Errorf("no %s… in %s", first, strings.Join(names, "\n"))
	}
}

// TestExportInterrupted: whatever is left of a run that ends at any point, the next one makes a
// good export of it.
func TestExportInterrupted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.export(30)
	w, err := f.open(0)
	if err != nil {
		t.Fatal(err)
	}
	for i := 30; i < 60; i++ {
		if err := w.Add(line(i)); err != nil {
			t.Fatal(err)
		}
	}
	// The log files and some digests are written, and the state is not.
	w.cfg.Checkpoint = func(uint64) (Checkpoint, error) { return Checkpoint{}, errors.New("the node is gone") }
	w.checkpoint = Checkpoint{}
	if err := w.Flush(); err == nil {
		t.Fatal("an export without a checkpoint")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := readState(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	orphan := place{"111122223333", "eu-west-1"}.digestName(began.Add(time.Hour))
	st.Pending = []string{orphan}
	b, err := json.Marshal(st)
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(f.dir, stateName), b, 0o600), os.WriteFile(filepath.Join(f.dir, orphan), []byte("half"), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.verify(); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("an interrupted export: %v", err)
	}
	f.export(90)
	if v, err := f.verify(); err != nil || v.Records != 90 {
		t.Errorf("got %+v, %v", v, err)
	}
}

// TestExportRefuses: another log, another process, a server that sends nonsense, a directory of
// other files, and a key in the directory.
func TestExportRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.export(30)
	w, err := f.open(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.open(0); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("two writers: %v", err)
	}
	other := bytes.Replace(line(29), []byte("leafHash\":\""), []byte("leafHash\":\"00"), 1)
	other = append(other[:len(other)-5], `"}}`...) // as long as before
	if err := w.Check(other); err == nil || !strings.Contains(err.Error(), "another log") {
		t.Errorf("a log with another record 29: %v", err)
	}
	for name, bad := range map[string]string{
		"an index that is not next": string(line(31)),
		"not JSON":                  "{",
		"no hash":                   `{"eventTime":"2026-11-01T22:50:00Z","conclave":{"index":30}}`,
		"a path":                    strings.Replace(string(line(30)), "111122223333", "../../../etc", 1),
		"a Region that is a path":   strings.Replace(string(line(30)), "us-east-1", "../x", 1),
		"a time":                    strings.Replace(string(line(30)), "2026-11-01T23:20:00Z", "yesterday", 1),
	} {
		if err := w.Add([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	f.origin = "conclave/4567/0"
	if err := errors.Join(w.Add(line(30)), w.Flush()); err == nil || !strings.Contains(err.Error(), "another log") {
		t.Errorf("a checkpoint of another log: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	full := newFixture(t)
	if err := os.WriteFile(filepath.Join(full.dir, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := full.open(0); err == nil {
		t.Error("a directory with other files was taken")
	}
	if _, _, err := Key(filepath.Join(f.dir, "key.pem"), f.dir); err == nil {
		t.Error("a key in the directory was made")
	}
}

// TestVerifyFindsChanges: a flipped bit, a file that is gone, one that was added, and two that
// are exchanged are reported, with the name of the file.
func TestVerifyFindsChanges(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.export(6)
	f.export(20)
	all := f.files()
	put := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(f.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// In what a file of gzip holds besides its content, a changed bit may mean nothing.
	const header = 10
	for name, content := range all {
		for at := header; at < len(content); at += 1 + len(content)/4 {
			changed := slices.Clone(content)
			changed[at] ^= 1 << (at % 8)
			put(name, changed)
			_, err := f.verify()
			if bad, ok := errors.AsType[*FileError](err); !ok || strings.TrimSuffix(bad.File, signatureSuffix) != strings.TrimSuffix(name, signatureSuffix) {
				t.Errorf("byte %d of %s changed: got %v", at, name, err)
			}
		}
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.verify(); err == nil {
			t.Errorf("without %s: it verifies", name)
		}
		put(name, content)
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names[1:] {
		put(name, all[names[i]])
		put(names[i], all[name])
		if _, err := f.verify(); err == nil {
			t.Errorf("with %s and %s exchanged: it verifies", names[i], name)
		}
		put(name, all[name])
		put(names[i], all[names[i]])
	}
	i := slices.IndexFunc(names, objectForm.MatchString)
	added := strings.Replace(names[i], "Z_", "Z_A", 1)
	added = added[:len(added)-len("X.json.gz")] + ".json.gz"
	put(added, all[names[i]])
	if _, err := f.verify(); err == nil || !strings.HasPrefix(err.Error(), added+": ") {
		t.Errorf("with another log file: %v", err)
	}
	if err := os.Remove(filepath.Join(f.dir, added)); err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, minBits)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(f.dir, map[string]*rsa.PublicKey{Fingerprint(&other.PublicKey): &other.PublicKey}, ""); err == nil {
		t.Error("it verifies with another key")
	}
	foreign := checkpoint.VerifierKey(origin, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey))
	if _, err := Verify(f.dir, map[string]*rsa.PublicKey{Fingerprint(&testKey().PublicKey): &testKey().PublicKey}, foreign); err == nil {
		t.Error("it verifies with the key of another log")
	}
	if _, err := f.verify(); err != nil {
		t.Errorf("all changes undone: %v", err)
	}
}

// validate has AWS's own code verify the signature of a digest, as "aws cloudtrail
// validate-logs" does.
const validate = `
import base64, gzip, json, sys
try:
    from awscli.customizations.cloudtrail.validation import Sha256RSADigestValidator
except ImportError:
    print("no awscli"); sys.exit(0)
key, n = sys.argv[1], 0
for name in sys.argv[2:]:
    raw = gzip.decompress(open(name, "rb").read())
    data = json.loads(raw)
    data["_signature"] = json.load(open(name + ".signature.json"))["signature"]
    Sha256RSADigestValidator().validate(data["digestS3Bucket"], data["digestS3Object"], key, data, raw)
    n += 1
print("verified", n)
`

// TestAWSValidates: the AWS CLI's code accepts the signatures of digests.
func TestAWSValidates(t *testing.T) {
	t.Parallel()
	python := optional.Program(t, "python3")
	f := newFixture(t)
	f.export(20)
	f.export(30)
	args := []string{"-c", validate, pkcs1(&testKey().PublicKey)}
	for name := range f.files() {
		if digestForm.MatchString(name) {
			args = append(args, filepath.Join(f.dir, name))
		}
	}
	ctx := t.Context()
	out, err := exec.CommandContext(ctx, python, args...).CombinedOutput()
	if strings.Contains(string(out), "no awscli") {
		optional.Skip(t, "python3 has no awscli")
	}
	if want := fmt.Sprintf("verified %d\n", len(args)-3); err != nil || string(out) != want || len(args) < 10 {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "key.pem")
	first, made, err := Key(name, filepath.Join(dir, "export"))
	if err != nil || !made {
		t.Fatal(made, err)
	}
	again, made, err := Key(name, filepath.Join(dir, "export"))
	if err != nil || made || !again.Equal(first) {
		t.Errorf("read again: %v, %v", made, err)
	}
	public, err := PublicKey(&first.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParsePublicKeys(public)
	if err != nil || !keys[Fingerprint(&first.PublicKey)].Equal(&first.PublicKey) {
		t.Errorf("got %v, %v", keys, err)
	}
	if _, err := hex.DecodeString(Fingerprint(&first.PublicKey)); err != nil || len(Fingerprint(&first.PublicKey)) != 32 {
		t.Errorf("the fingerprint is %s", Fingerprint(&first.PublicKey))
	}
	for _, bad := range []string{"", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"} {
		if _, err := ParsePublicKeys([]byte(bad)); err == nil {
			t.Errorf("%q is a key", bad)
		}
		if err := os.WriteFile(name, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Key(name, filepath.Join(dir, "export")); err == nil {
			t.Errorf("%q signs", bad)
		}
	}
}

func pkcs1(key *rsa.PublicKey) string {
	return base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PublicKey(key))
}
