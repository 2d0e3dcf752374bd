package keymat

import (
	"context"
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const fipsChild = "CONCLAVE_TEST_FIPS_CHILD"

// Everything in this package works when the standard library refuses what FIPS
// 140-3 does not approve.
func TestStrictFIPS(t *testing.T) {
	if os.Getenv(fipsChild) != "" {
		if !fips140.Enforced() {
			t.Fatal("GODEBUG=fips140=only has no effect")
		}
		return
	}
	if fips140.Enforced() {
		t.Skip("this run is in strict FIPS mode already")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.v", "-test.run=.", "-test.skip=^Fuzz|OpenSSL")
	cmd.Env = append(os.Environ(), fipsChild+"=1", "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tests in strict FIPS mode: %v\n%s", err, out)
	}
	for _, ran := range []string{"TestStrictFIPS", "TestGoldenMessages", "TestGoldenHierarchy", "TestBodySealer", "TestWrapRoundTrip"} {
		if !strings.Contains(string(out), "--- PASS: "+ran) {
			t.Errorf("%s did not run in strict FIPS mode", ran)
		}
	}
}
