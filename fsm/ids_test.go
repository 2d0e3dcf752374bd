package fsm

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
	"github.com/conclavekms/conclave/fsm/regionid"
)

func TestParseAccount(t *testing.T) {
	for text, want := range map[string]Account{"000000000000": 0, "111122223333": 111122223333, "999999999999": 999999999999, "000000000007": 7} {
		if a, ok := ParseAccount(text); !ok || a != want || a.String() != text {
			t.Errorf("%s is %v, %v", text, a, ok)
		}
	}
	for _, text := range []string{"", "1", "11112222333", "1111222233334", "11112222333x", "+11112222333", " 1111222233", "aws", "-00000000001"} {
		if a, ok := ParseAccount(text); ok {
			t.Errorf("%q is account %v", text, a)
		}
	}
}

var (
	anAccount = rapid.Map(rapid.Uint64Range(0, accounts-1), func(n uint64) Account { return Account(n) })
	aRegion   = rapid.StringMatching(`[a-z0-9-]{1,32}`)
	aKey      = rapid.Custom(func(t *rapid.T) KeyID {
		return KeyID{
			Account: anAccount.Draw(t, "account"), Region: aRegion.Draw(t, "region"),
			ID: [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id")),
		}
	})
)

// TestKeyIDs: ids can be parsed again, sort by account, Region and key, and none is a
// prefix of another.
func TestKeyIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := aKey.Draw(t, "a"), aKey.Draw(t, "b")
		if rapid.Bool().Draw(t, "same account") {
			b.Account = a.Account
		}
		if rapid.Bool().Draw(t, "longer region") {
			b.Region = (a.Region + b.Region)[:min(32, len(a.Region)+len(b.Region))]
		}
		if got, ok := parseKeyID(a.Bytes()); !ok || got != a {
			t.Fatalf("%v is read as %v, %v", a, got, ok)
		}
		want := cmp.Or(cmp.Compare(a.Account, b.Account), strings.Compare(a.Region, b.Region), bytes.Compare(a.ID[:], b.ID[:]))
		if got := bytes.Compare(a.Bytes(), b.Bytes()); got != want {
			t.Fatalf("%v and %v compare as %d: %x, %x", a, b, got, a.Bytes(), b.Bytes())
		}
		if pa, pb := regional(a.Account, a.Region, 0), regional(b.Account, b.Region, 0); !bytes.Equal(pa, pb) && bytes.HasPrefix(pb, pa) {
			t.Fatalf("the ids of %s begin like those of %s", b.Region, a.Region)
		}
	})
}

// TestIDsAreShort: with the byte of its kind, the id of a key in one of AWS's
// Regions fits into 32 bytes; the next larger allocation takes 48.
func TestIDsAreShort(t *testing.T) {
	for _, region := range []string{"us-east-1", "eu-central-1", "ap-southeast-1", "us-isob-east-1", "cn-northwest-1"} {
		if id := rowID(fsmpb.Kind_KIND_KEY, (KeyID{Region: region}).Bytes()); cap(id) > 32 {
			t.Errorf("the id of a key in %s has %d bytes", region, cap(id))
		}
	}
}

func TestMalformedKeyIDs(t *testing.T) {
	good := testKey(1).Bytes()
	region := regionid.Append(nil, "eu-test-1")
	with := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	account := AccountID(account)
	key := make([]byte, 16)
	if _, ok := parseKeyID(with(account, region, key)); !ok {
		t.Fatal("a well-formed id is refused")
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "short": good[:len(good)-1], "long": append(slices.Clone(good), 0), "account alone": account,
		"too large an account": with([]byte{0xff, 0xff, 0xff, 0xff, 0xff}, region, key),
		"no Region":            with(account, regionid.Append(nil, ""), key),
		"no end of the Region": with(account, region[:len(region)-2], bytes.Repeat([]byte{0x19, 0}, 20)),
		"a character of none":  with(account, regionid.Append(nil, "EU"), key),
		"text behind the end":  with(account, []byte{0, 5}, key),
		"too large a number":   with(account, []byte{0xff, 0xff}, region, key),
	} {
		if k, ok := parseKeyID(b); ok {
			t.Errorf("%s is read as %v", name, k)
		}
	}
}

// FuzzParseKeyID: every id has only one encoding.
func FuzzParseKeyID(f *testing.F) {
	f.Add(testKey(1).Bytes())
	f.Add(AccountID(account))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, ok := parseKeyID(b); ok && !bytes.Equal(k.Bytes(), b) {
			t.Errorf("%x is read as %v, which is %x", b, k, k.Bytes())
		}
	})
}

// TestScansStayInAnAccount: lists of one account contain nothing of the accounts
// before and after it.
func TestScansStayInAnAccount(t *testing.T) {
	s := &State{db: newTable()}
	texts := intern.NewTexts()
	put := func(kind fsmpb.Kind, m proto.Message) {
		id, valid := registry[kind].id(m)
		if !valid {
			t.Fatalf("%v has no valid id", m)
		}
		s.db.insert(newObject(texts, s.db, kind, id, 1, m))
	}
	for a := account - 1; a <= account+1; a++ {
		for n := range byte(3) {
			id := testKey(n)
			id.Account = a
			put(fsmpb.Kind_KIND_KEY, keyOf(id))
			put(fsmpb.Kind_KIND_ALIAS, putAlias(id, "alias/"+string('a'+rune(n))).GetPutAlias())
			g := putGrant(id, n).GetPutGrant()
			put(fsmpb.Kind_KIND_GRANT, g)
		}
		c := credential("AKIA").GetPutCredential()
		c.Account = uint64(a)
		put(fsmpb.Kind_KIND_CREDENTIAL, c)
		st := putStore("cks-1").GetPutKeyStore()
		st.Account = uint64(a)
		put(fsmpb.Kind_KIND_KEY_STORE, st)
	}
	for a := account - 1; a <= account+1; a++ {
		for n, name := range []string{"a", "B", "b1"} {
			put(fsmpb.Kind_KIND_USER, testUser(name, n, func(u *fsmpb.User) { u.Account = uint64(a) }))
		}
	}
	seen := map[string]int{}
	note := func(what string, of uint64) {
		seen[what]++
		if Account(of) != account {
			t.Errorf("%s of account %v", what, Account(of))
		}
	}
	for k := range s.Keys(KeyID{Account: account, Region: region}) {
		note("keys", k.Account)
	}
	for a := range s.Aliases(account, region, "") {
		note("aliases", a.Account)
	}
	for a := range s.AliasesOf(testKey(1)) {
		note("aliases of a key", a.Account)
	}
	for g := range s.Grants(testKey(1), nil) {
		note("grants", g.Account)
	}
	for g := range s.GrantsTo(testKey(1), "arn:aws:iam::000000000000:user/a", nil) {
		note("grants to", g.Account)
	}
	for g := range s.GrantsRetiredBy(account, region, "arn:aws:iam::000000000000:user/b", nil) {
		note("grants retired by", g.Account)
	}
	for c := range Objects[*fsmpb.Credential](s, AccountID(account), "") {
		note("credentials", c.Account)
	}
	for k := range s.AllKeyStores(account) {
		note("key stores", k.Account)
	}
	for u := range Objects[*fsmpb.User](s, AccountID(account), "") {
		note("users", u.Account)
	}
	for u := range Objects[*fsmpb.User](s, AccountID(account), EntityName("B")) {
		if note("users after b", u.Account); u.Name != "b1" {
			t.Errorf("after b comes %s", u.Name)
		}
	}
	for what, want := range map[string]int{"users": 3, "users after b": 1, "keys": 3, "aliases": 3, "aliases of a key": 1, "grants": 1, "grants to": 1, "grants retired by": 3, "credentials": 1, "key stores": 1} {
		if seen[what] != want {
			t.Errorf("%d %s, want %d", seen[what], what, want)
		}
	}
}

// TestEntityIDs: the case of a name does not matter in ids, and the versions of a policy are
// among those of no other one, whatever their names are.
func TestEntityIDs(t *testing.T) {
	if a, b := EntityID(account, "Ann_1@X"), EntityID(account, "aNN_1@x"); !bytes.Equal(a, b) {
		t.Errorf("%x and %x", a, b)
	}
	if a, b := PolicyVersionID(account, "P", 1), PolicyVersionID(account, "p", 1); !bytes.Equal(a, b) {
		t.Errorf("%x and %x", a, b)
	}
	// Nothing but ASCII has cases.
	if a, b := EntityID(account, "Ä"), EntityID(account, "ä"); bytes.Equal(a, b) {
		t.Errorf("%x", a)
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z0-9_+=,.@-]{1,12}`)
		type version struct {
			a      Account
			policy string
			number uint32
		}
		draw := func(label string) version {
			return version{anAccount.Draw(t, label), name.Draw(t, label), rapid.Uint32().Draw(t, label)}
		}
		a, b := draw("a"), draw("b")
		if rapid.Bool().Draw(t, "same account") {
			b.a = a.a
		}
		if rapid.Bool().Draw(t, "longer name") {
			b.policy = a.policy + b.policy
		}
		ida, idb := PolicyVersionID(a.a, a.policy, a.number), PolicyVersionID(b.a, b.policy, b.number)
		if bytes.Equal(ida, idb) != (a == b) {
			t.Fatalf("%v and %v have the ids %x and %x", a, b, ida, idb)
		}
		all := append(EntityID(a.a, a.policy), 0)
		if bytes.HasPrefix(idb, all) != (a.a == b.a && a.policy == b.policy) {
			t.Fatalf("%v is among the versions of %v: %x, %x", b, a, idb, all)
		}
	})
}
