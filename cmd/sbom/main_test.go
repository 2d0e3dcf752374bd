package main

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDescribe describes this test's own binary.
func TestDescribe(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := describe(self, "1.2.3+dirty")
	if err != nil {
		t.Fatal(err)
	}
	again, err := describe(self, "1.2.3+dirty")
	if err != nil || !bytes.Equal(out, again) {
		t.Errorf("a second description differs: %v", err)
	}
	var b bom
	if err := json.Unmarshal(out, &b); err != nil {
		t.Fatal(err)
	}
	if b.Format != "CycloneDX" || !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(b.SerialNumber) {
		t.Errorf("it is a %s with the serial number %s", b.Format, b.SerialNumber)
	}
	if p := b.Metadata.Component; p.Type != "application" || !strings.HasSuffix(p.Purl, "@1.2.3%2Bdirty") || len(p.Hashes) != 1 || len(p.Hashes[0].Content) != 64 {
		t.Errorf("the program is %+v", p)
	}
	if !slices.ContainsFunc(b.Components, func(c component) bool { return c.Name == "stdlib" && c.Version != "" }) {
		t.Errorf("Go is not among the components %+v", b.Components)
	}
	// Every reference is to a component, and every component is referred to once.
	if n := len(b.Dependencies); n != len(b.Components)+1 || len(b.Dependencies[0].DependsOn) != n-1 || b.Dependencies[0].Ref != b.Metadata.Component.Ref {
		t.Errorf("the dependencies are %+v", b.Dependencies)
	}
	if _, err := describe("main.go", "1"); err == nil {
		t.Error("a file that is no binary is described")
	}
}
