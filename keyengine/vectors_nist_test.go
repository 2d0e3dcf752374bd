package keyengine

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine/internal/vectors"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// toolchainFile opens a file of Go's own test data.
func toolchainFile(t *testing.T, name string) *os.File {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), optional.Program(t, "go"), "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env GOROOT: %v", err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(root)), "src", filepath.FromSlash(name)))
	if err != nil {
		optional.Skip(t, "Go is installed without its test data: %v", err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestVectorsNIST verifies signatures of NIST's vectors for FIPS 186 (SigVer of CAVP), for
// the pairs of curve and hash that KMS has.
func TestVectorsNIST(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	type section struct {
		spec, algorithm string
		curve           elliptic.Curve
	}
	sections := map[string]section{
		"[P-256,SHA-256]": {"ECC_NIST_P256", "ECDSA_SHA_256", elliptic.P256()},
		"[P-384,SHA-384]": {"ECC_NIST_P384", "ECDSA_SHA_384", elliptic.P384()},
		"[P-521,SHA-512]": {"ECC_NIST_P521", "ECDSA_SHA_512", elliptic.P521()},
	}
	ids := make(map[string]string)
	var n tally
	var now section
	values := make(map[string]string)
	number := func(name string) *big.Int {
		i, ok := new(big.Int).SetString(values[name], 16)
		if !ok {
			t.Fatalf("the value of %s is %q", name, values[name])
		}
		return i
	}
	lines := bufio.NewScanner(bzip2.NewReader(toolchainFile(t, "crypto/ecdsa/testdata/SigVer.rsp.bz2")))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			now = sections[line]
			continue
		}
		name, value, ok := strings.Cut(line, " = ")
		if !ok || now.spec == "" {
			continue
		}
		values[name] = value
		if name != "Result" {
			continue
		}
		size := (now.curve.Params().BitSize + 7) / 8
		x, y := number("Qx").FillBytes(make([]byte, size)), number("Qy").FillBytes(make([]byte, size))
		key, err := ecdsa.ParseUncompressedPublicKey(now.curve, slices.Concat([]byte{4}, x, y))
		if err != nil {
			n.left++ // a point that is not on the curve is no key's
			continue
		}
		public, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := asn1.Marshal(struct{ R, S *big.Int }{number("R"), number("S")})
		if err != nil {
			t.Fatal(err)
		}
		if ids[now.spec] == "" {
			ids[now.spec] = c.newVerifyKey(now.spec)
		}
		id := c.copyKeyWithPublicKey(ids[now.spec], public)
		message, err := hex.DecodeString(values["Msg"])
		if err != nil {
			t.Fatal(err)
		}
		v := vectors.Vector{Comment: value, Result: "invalid"}
		if strings.HasPrefix(value, "P") {
			v.Result = "valid"
		}
		n.judge(t, v, c.verify(id, now.algorithm, "RAW", message, signature), kmsapi.ErrInvalidSignatureValue)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(ids) != len(sections) {
		t.Errorf("there are vectors for %d of %d specs", len(ids), len(sections))
	}
	n.report(t)
}

// TestVectorsEd25519 signs with the keys of the vectors that the authors of Ed25519
// published. The signatures must be equal.
func TestVectorsEd25519(t *testing.T) {
	t.Parallel()
	const spec, algorithm = "ECC_NIST_EDWARDS25519", "ED25519_SHA_512"
	c := newTestCluster(t)
	z, err := gzip.NewReader(toolchainFile(t, "crypto/ed25519/testdata/sign.input.gz"))
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	for lines := bufio.NewScanner(z); lines.Scan(); {
		// The fields are: seed and public key; public key; message; signature and message.
		var parts [4][]byte
		for i, f := range strings.SplitN(lines.Text(), ":", 4) {
			if parts[i], err = hex.DecodeString(strings.TrimSuffix(f, ":")); err != nil {
				t.Fatal(err)
			}
		}
		message := parts[2]
		if !fitsAWS(message) {
			continue
		}
		key := ed25519.NewKeyFromSeed(parts[0][:32])
		material, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		id := c.keyFromVector(used == 0, spec, kmsapi.UsageSign, material)
		used++
		if !bytes.HasSuffix(c.publicKey(id), parts[1]) {
			t.Errorf("message of %d bytes: got another public key", len(message))
		}
		if got := c.sign(id, algorithm, "RAW", message); !bytes.Equal(got, parts[3][:64]) {
			t.Errorf("message of %d bytes: got signature %x, want %x", len(message), got, parts[3][:64])
		}
		if err := c.verify(id, algorithm, "RAW", message, parts[3][:64]); err != nil {
			t.Errorf("message of %d bytes: Verify: %v", len(message), err)
		}
	}
	t.Logf("%d signatures", used)
	if used == 0 {
		t.Error("no vector was used")
	}
}
