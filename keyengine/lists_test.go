package keyengine

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// pages calls next for each page of a list and returns the names on each.
func pages(t *testing.T, next func(after *string) (names []string, marker *string, truncated *bool, err error)) [][]string {
	t.Helper()
	var all [][]string
	var marker *string
	for range 1000 {
		names, m, truncated, err := next(marker)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, names)
		if truncated == nil || *truncated != (m != nil) {
			t.Fatalf("Truncated is %v with marker %v", truncated, m)
		}
		if marker = m; m == nil {
			return all
		}
		if n := len(*m); n < 1 || n > 1024 {
			t.Fatalf("got a marker of %d characters, want 1 to 1024", n)
		}
	}
	t.Fatal("the list has more than 1000 pages")
	return nil
}

func sizes(p [][]string) string {
	var s []string
	for _, names := range p {
		s = append(s, fmt.Sprint(len(names)))
	}
	return strings.Join(s, " ")
}

func TestLists(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	var ids []string
	for range 7 {
		id, _ := c.newKey()
		ids = append(ids, id)
	}
	slices.Sort(ids)
	long := "alias/" + strings.Repeat("x", 250)
	names := []string{"alias/A", "alias/a", "alias/a/b", "alias/a0", "alias/z", long}
	for i, name := range names {
		must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: &name, TargetKeyId: &ids[i%2]})
	}
	slices.Sort(names)
	must[request.None](c, "TagResource", &kmsapi.TagResourceInput{KeyId: &ids[0], Tags: manyTags(5)})

	keys := func(limit *int32) [][]string {
		return pages(t, func(m *string) (names []string, _ *string, _ *bool, err error) {
			out, err := call[kmsapi.ListKeysOutput](c, "ListKeys", &kmsapi.ListKeysInput{Limit: limit, Marker: m})
			if err != nil {
				return nil, nil, nil, err
			}
			for _, k := range out.Keys {
				if *k.KeyArn != "arn:aws:kms:eu-west-1:111122223333:key/"+*k.KeyId {
					t.Errorf("ListKeys returned ARN %s for key %s", *k.KeyArn, *k.KeyId)
				}
				names = append(names, *k.KeyId)
			}
			return names, out.NextMarker, out.Truncated, nil
		})
	}
	aliases := func(key *string, limit *int32) [][]string {
		return pages(t, func(m *string) (names []string, _ *string, _ *bool, err error) {
			out, err := call[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{KeyId: key, Limit: limit, Marker: m})
			if err != nil {
				return nil, nil, nil, err
			}
			for _, a := range out.Aliases {
				names = append(names, *a.AliasName)
			}
			return names, out.NextMarker, out.Truncated, nil
		})
	}
	tags := func(limit *int32) [][]string {
		return pages(t, func(m *string) (names []string, _ *string, _ *bool, err error) {
			out, err := call[kmsapi.ListResourceTagsOutput](c, "ListResourceTags", &kmsapi.ListResourceTagsInput{KeyId: &ids[0], Limit: limit, Marker: m})
			if err != nil {
				return nil, nil, nil, err
			}
			for _, a := range out.Tags {
				names = append(names, *a.TagKey)
			}
			return names, out.NextMarker, out.Truncated, nil
		})
	}
	for _, tt := range []struct {
		name  string
		got   [][]string
		want  []string
		sizes string
	}{
		{"keys", keys(nil), ids, "7"},
		{"keys, three at a time", keys(new(int32(3))), ids, "3 3 1"},
		{"keys, seven at a time", keys(new(int32(7))), ids, "7"},
		{"keys, one at a time", keys(new(int32(1))), ids, "1 1 1 1 1 1 1"},
		{"aliases", aliases(nil, nil), names, "6"},
		{"aliases, one at a time", aliases(nil, new(int32(1))), names, "1 1 1 1 1 1"},
		{"aliases, four at a time", aliases(nil, new(int32(4))), names, "4 2"},
		{"aliases of a key", aliases(&ids[1], new(int32(2))), []string{"alias/a", "alias/a0", long}, "2 1"},
		{"aliases of a key without", aliases(&ids[2], nil), nil, "0"},
		{"tags", tags(new(int32(2))), []string{"k00", "k01", "k02", "k03", "k04"}, "2 2 1"},
	} {
		if got := slices.Concat(tt.got...); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
		if got := sizes(tt.got); got != tt.sizes {
			t.Errorf("%s: got pages of %s, want %s", tt.name, got, tt.sizes)
		}
	}
	// If the list changes between two pages, no other entry is skipped.
	out := must[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{Limit: new(int32(2))})
	must[request.None](c, "DeleteAlias", &kmsapi.DeleteAliasInput{AliasName: out.Aliases[1].AliasName})
	out = must[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{Limit: new(int32(100)), Marker: out.NextMarker})
	if got := len(out.Aliases); got != 4 || *out.Aliases[0].AliasName != names[2] {
		t.Errorf("after a deletion the next page has %d aliases, beginning with %s; want 4, beginning with %s", got, *out.Aliases[0].AliasName, names[2])
	}
	_, err := call[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{KeyId: new("alias/a")})
	wantError(t, err, kmsapi.ErrInvalidArn, "Key Aliases are not supported for this operation.")
	if n := len(must[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{Limit: new(int32(1000))}).Aliases); n != 5 {
		t.Errorf("with a limit above the maximum: got %d aliases, want 5", n)
	}
}

func TestLongLists(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	k := c.keyID(id)
	for i := range 120 {
		c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(testAccountNumber), Name: fmt.Sprintf("alias/%03d", i), Region: testRegion, Key: k.ID[:]}}})
	}
	for _, tt := range []struct {
		limit *int32
		want  int
	}{{nil, 50}, {new(int32(100)), 100}, {new(int32(1000)), 100}} {
		out := must[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{Limit: tt.limit})
		if len(out.Aliases) != tt.want || !*out.Truncated {
			t.Errorf("got %d aliases, truncated %v; want %d, truncated", len(out.Aliases), *out.Truncated, tt.want)
		}
	}
}

// A marker is valid on every node, and only for the list that it came from.
func TestMarkers(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	a, _ := c.newKey()
	b, _ := c.newKey()
	for _, key := range []string{a, b} {
		for i := range 2 {
			must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new(fmt.Sprintf("alias/%s/%d", key, i)), TargetKeyId: &key})
		}
		must[request.None](c, "TagResource", &kmsapi.TagResourceInput{KeyId: &key, Tags: manyTags(3)})
	}
	one := new(int32(1))
	keysMarker := must[kmsapi.ListKeysOutput](c, "ListKeys", &kmsapi.ListKeysInput{Limit: one}).NextMarker
	tagsMarker := must[kmsapi.ListResourceTagsOutput](c, "ListResourceTags", &kmsapi.ListResourceTagsInput{KeyId: &a, Limit: one}).NextMarker
	aliasMarker := must[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{KeyId: &a, Limit: one}).NextMarker

	if _, err := callAs[kmsapi.ListKeysOutput](c, c.engines["n2"], c.root, "ListKeys", &kmsapi.ListKeysInput{Marker: keysMarker}); err != nil {
		t.Errorf("with a marker on another node: %v", err)
	}
	// The key may be named differently in the request for the next page.
	if _, err := call[kmsapi.ListResourceTagsOutput](c, "ListResourceTags", &kmsapi.ListResourceTagsInput{KeyId: new("arn:aws:kms:eu-west-1:111122223333:key/" + a), Marker: tagsMarker}); err != nil {
		t.Errorf("with a marker and the key's ARN: %v", err)
	}
	bad := map[string]func() error{
		"of another operation": func() error {
			_, err := call[kmsapi.ListKeysOutput](c, "ListKeys", &kmsapi.ListKeysInput{Marker: aliasMarker})
			return err
		},
		"of another key's tags": func() error {
			_, err := call[kmsapi.ListResourceTagsOutput](c, "ListResourceTags", &kmsapi.ListResourceTagsInput{KeyId: &b, Marker: tagsMarker})
			return err
		},
		"of another key's aliases": func() error {
			_, err := call[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{KeyId: &b, Marker: aliasMarker})
			return err
		},
		"of a key's aliases for all": func() error {
			_, err := call[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{Marker: aliasMarker})
			return err
		},
		"where there are none": func() error {
			_, err := call[kmsapi.ListKeyPoliciesOutput](c, "ListKeyPolicies", &kmsapi.ListKeyPoliciesInput{KeyId: &a, Marker: tagsMarker})
			return err
		},
		"of another caller": func() error {
			alice := c.newUser(aliceARN)
			c.setPolicy(a, policyDocument(rootStatement, statement("Allow", aliceARN, "kms:*")))
			_, err := callAs[kmsapi.ListResourceTagsOutput](c, c.engine, alice, "ListResourceTags", &kmsapi.ListResourceTagsInput{KeyId: &a, Marker: tagsMarker})
			return err
		},
	}
	for name, f := range bad {
		if err := f(); err == nil {
			t.Errorf("a marker %s is accepted", name)
		} else {
			wantError(t, err, kmsapi.ErrInvalidMarker, "")
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(*keysMarker)
	if err != nil {
		t.Fatal(err)
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	end := len(*keysMarker) - 1
	respelled := (*keysMarker)[:end] + string(alphabet[strings.IndexByte(alphabet, (*keysMarker)[end])|1]) // bits that carry nothing
	forms := []string{respelled, "x", "AAAA", *keysMarker + "=", *keysMarker + "A", strings.Repeat("A", 1024), " " + *keysMarker}
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			forms = append(forms, base64.RawURLEncoding.EncodeToString(raw))
			raw[i] ^= 1 << bit
		}
	}
	c.allowManyRefusals()
	for _, m := range forms {
		_, err := call[kmsapi.ListKeysOutput](c, "ListKeys", &kmsapi.ListKeysInput{Marker: &m})
		if wantError(t, err, kmsapi.ErrInvalidMarker, ""); t.Failed() {
			t.Fatalf("with marker %q", m)
		}
	}
}
