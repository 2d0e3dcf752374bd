package main

import (
	"testing"
)

func TestOpsAddress(t *testing.T) {
	for _, c := range [][3]string{
		{"", "", "127.0.0.1:7604"},
		{"", "0.0.0.0", "127.0.0.1:7604"},
		{"", "::", "[::1]:7604"},
		{"", "10.0.0.1", "10.0.0.1:7604"},
		{":99", "10.0.0.1", "127.0.0.1:99"},
		{"[::1]:99", "", "[::1]:99"},
	} {
		env := map[string]string{"CONCLAVE_OPS_LISTEN": c[0], "CONCLAVE_LISTEN": c[1]}
		if got := opsAddress(func(k string) string { return env[k] }); got != c[2] {
			t.Errorf("with %v: %s, want %s", env, got, c[2])
		}
	}
}

func TestRegionsOfAWS(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range awsRegions("eu-west-1") {
		if seen[r] || !awsRegionName.MatchString(r) {
			t.Errorf("%q is there twice, or no region", r)
		}
		seen[r] = true
	}
	if got := awsRegions("eu-west-1")[0]; got != "eu-west-1" || len(seen) != len(regionsOfAWS) {
		t.Errorf("%d regions, the first is %s", len(seen), got)
	}
	if got := awsRegions("xx-nowhere-1"); len(got) != len(regionsOfAWS)+1 || got[0] != "xx-nowhere-1" {
		t.Errorf("a region that is not AWS's: %v", got)
	}
	if got := awsRegions("here"); len(got) != 1 {
		t.Errorf("a name that the API cannot give: %v", got)
	}
}
