package metering

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfile"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

var start = time.Date(2026, 11, 29, 10, 30, 0, 0, time.UTC)

const (
	account = "111122223333"
	alice   = "arn:aws:iam::111122223333:user/alice"
	keyA    = "arn:aws:kms:eu-west-1:111122223333:key/a"
	keyB    = "arn:aws:kms:eu-west-1:111122223333:key/b"
)

// bench is a meter with records that are counted by hand.
type bench struct {
	t    *testing.T
	m    *Meter
	f    *localfile.File
	path string
	next uint64
}

func newBench(t *testing.T) *bench {
	t.Helper()
	v, err := vault.New(time.Now, false)
	if err != nil {
		t.Fatal(err)
	}
	c := &fsmpb.Cluster{Id: bytes.Repeat([]byte{1}, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: bytes.Repeat([]byte{8}, 16), Epoch: 1}}
	o, unseal, err := v.Initialise(c)
	if err != nil {
		t.Fatal(err)
	}
	unseal.Destroy()
	v.Install(o)
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "usage.db")}
	if b.f, err = localfile.Open(b.path, "usage", 0, v); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.f.Close()
		_ = v.Close()
	})
	b.m = &Meter{view: b.f.View}
	return b
}

// item returns a record of a request of KMS.
func (b *bench) item(at time.Time, event, code string, keys ...string) auditfeed.Item {
	rec := &auditpb.Record{
		EventName: event, EventType: "AwsApiCall", EventSource: "kms.amazonaws.com", ErrorCode: code,
		Identity: &auditpb.Identity{Type: "IAMUser", Arn: alice, AccountId: account},
	}
	for _, k := range keys {
		rec.Resources = append(rec.Resources, &auditpb.Resource{Type: "AWS::KMS::Key", AccountId: account, Arn: k})
	}
	it := auditfeed.Item{Entry: auditlog.Entry{Index: b.next, Time: at.UnixNano()}, Record: rec}
	b.next++
	return it
}

// made returns the record of a key that was created.
func (b *bench) made(at time.Time, key, spec string) auditfeed.Item {
	it := b.item(at, "CreateKey", "", key)
	it.Record.ResponseElements = []*auditpb.Field{{Name: "keyMetadata", Value: &auditpb.Field_Map{Map: &auditpb.TextMap{Pairs: []*auditpb.TextPair{{Key: "keySpec", Value: spec}}}}}}
	return it
}

func (b *bench) count(items ...auditfeed.Item) {
	b.t.Helper()
	if err := b.f.Update(func(tx *localfile.Tx) error { return auditfile.Apply(tx, items, count) }); err != nil {
		b.t.Fatal(err)
	}
}

// rows returns all rows of a period, read in pages of two, in the order of time and operation.
func (b *bench) rows(p Period, of string) (all []Row) {
	b.t.Helper()
	var after []byte
	for n := 0; ; n++ {
		rows, next, _, err := b.m.Rows(p, time.Unix(0, 0), start.AddDate(5, 0, 0), of, after, 2)
		if err != nil || n > 100000 {
			b.t.Fatal(n, err)
		}
		all = append(all, rows...)
		if after = next; after == nil {
			break
		}
	}
	slices.SortFunc(all, func(x, y Row) int {
		return cmpOr(x.Start.Compare(y.Start), bytes.Compare([]byte(x.Operation+x.Key), []byte(y.Operation+y.Key)))
	})
	return all
}

func cmpOr(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

func TestCount(t *testing.T) {
	b := newBench(t)
	session := b.item(start.Add(time.Hour), "Encrypt", "", keyA)
	session.Record.Identity = &auditpb.Identity{Arn: "arn:aws:sts::111122223333:assumed-role/app/s1", AccountId: "999988887777", SessionContext: []*auditpb.Field{
		{Name: "sessionIssuer", Value: &auditpb.Field_Map{Map: &auditpb.TextMap{Pairs: []*auditpb.TextPair{{Key: "arn", Value: "arn:aws:iam::999988887777:role/app"}}}}}}}
	pair := b.item(start, "GenerateDataKeyPair", "", keyA)
	pair.Record.RequestParameters = []*auditpb.Field{{Name: "keyPairSpec", Value: &auditpb.Field_Text{Text: "RSA_3072"}}}
	iam := b.item(start, "ListUsers", "")
	iam.Record.EventSource = "iam.amazonaws.com"
	service := b.item(start, "RotateKey", "", keyA)
	service.Record.EventType = "AwsServiceEvent"
	unread := auditfeed.Item{Entry: auditlog.Entry{Index: 99, Time: start.UnixNano()}}
	b.count(
		b.made(start, keyA, "SYMMETRIC_DEFAULT"), b.made(start, keyB, "RSA_2048"),
		b.item(start, "Encrypt", "", keyA), b.item(start, "Encrypt", "", keyA), b.item(start.Add(time.Hour), "Encrypt", "", keyA), b.item(start, "Encrypt", "AccessDenied", keyA),
		b.item(start, "Sign", "", keyB), b.item(start, "ReEncrypt", "", keyA, keyB), session, pair, iam, service, unread,
	)
	day := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	row := func(operation, key, kind string, requests, errs uint64) Row {
		return Row{Start: day, Account: account, Principal: alice, Key: key, Operation: operation, Kind: kind, Requests: requests, Errors: errs}
	}
	want := []Row{
		row("CreateKey", keyA, Symmetric, 1, 0), row("CreateKey", keyB, Symmetric, 1, 0), row("Encrypt", keyA, Symmetric, 3, 1), row("GenerateDataKeyPair", keyA, PairRSA, 1, 0),
		row("ListUsers", "", Uncharged, 1, 0), row("ReEncryptFrom", keyA, Symmetric, 1, 0), row("ReEncryptTo", keyB, Uncharged, 1, 0), row("Sign", keyB, RSA2048, 1, 0),
	}
	if d := cmp.Diff(want, b.rows(Day, account)); d != "" {
		t.Errorf("by day (-want +got):\n%s", d)
	}
	if got := b.rows(Day, "999988887777"); len(got) != 1 || got[0].Principal != "arn:aws:iam::999988887777:role/app" {
		t.Errorf("the other account has %+v", got)
	}
	if got := len(b.rows(Day, "")); got != len(want)+1 {
		t.Errorf("all accounts have %d rows, want %d", got, len(want)+1)
	}
	hours := 0
	for _, r := range b.rows(Hour, account) {
		if r.Operation == "Encrypt" {
			hours++
			if want := map[int]uint64{10: 2, 11: 1}[r.Start.Hour()]; r.Requests != want {
				t.Errorf("at %d o'clock: %d, want %d", r.Start.Hour(), r.Requests, want)
			}
		}
	}
	if hours != 2 {
		t.Errorf("Encrypt has rows of %d hours", hours)
	}
	_, _, at, err := b.m.Rows(Month, start, start, "", nil, 10)
	if err != nil || at != (Progress{Counted: 100, Unread: 1}) {
		t.Errorf("the progress is %+v, %v", at, err)
	}
	raw, err := os.ReadFile(b.path)
	if err != nil || bytes.Contains(raw, []byte("alice")) || bytes.Contains(raw, []byte(":key/")) || bytes.Contains(raw, []byte("GenerateDataKeyPair")) {
		t.Errorf("the file shows what it has: %v", err)
	}
}

func TestLives(t *testing.T) {
	b := newBench(t)
	hour := func(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }
	var rotations []auditfeed.Item
	for i := range MaxRotations + 2 {
		rotations = append(rotations, b.item(hour(2), "RotateKeyOnDemand", "", keyA))
		rotations[i].Entry.Time += int64(i)
	}
	b.count(b.made(hour(0), keyA, "SYMMETRIC_DEFAULT"), b.made(hour(0), keyB, "RSA_2048"), b.item(hour(0), "DeleteKey", "", "arn:aws:kms:eu-west-1:111122223333:key/unknown"))
	b.count(rotations...)
	b.count(b.item(hour(3), "ScheduleKeyDeletion", "", keyA), b.item(hour(3), "ScheduleKeyDeletion", "DryRunOperation", keyB), b.item(hour(4), "CancelKeyDeletion", "", keyA))
	b.count(b.item(hour(5), "ScheduleKeyDeletion", "", keyA), b.item(hour(9), "DeleteKey", "", keyA))
	b.count(b.item(hour(9), "ReplicateKey", "", keyB, "arn:aws:kms:us-east-1:111122223333:key/b"))
	keys, next, _, err := b.m.Lives(start, hour(100), account, nil, 10)
	if err != nil || next != nil {
		t.Fatal(next, err)
	}
	got := make(map[string]Life)
	for _, k := range keys {
		got[k.Key] = k
	}
	if k := got[keyA]; k.Created != hour(0).UnixNano() || k.Pending != hour(5).UnixNano() || k.Ended != hour(9).UnixNano() || len(k.Rotations) != MaxRotations || k.Rotations[0] != hour(2).UnixNano() || k.Account != account {
		t.Errorf("the deleted key is %+v", k)
	}
	if k := got[keyB]; k.Pending != 0 || k.Ended != 0 || k.Spec != "RSA_2048" {
		t.Errorf("the other key is %+v", k)
	}
	if k := got["arn:aws:kms:us-east-1:111122223333:key/b"]; k.Created != hour(9).UnixNano() || len(got) != 3 {
		t.Errorf("the replica is %+v of %d keys", k, len(got))
	}
	if keys, _, _, err = b.m.Lives(hour(9), hour(100), "", nil, 10); err != nil || len(keys) != 2 {
		t.Errorf("after the deletion there are %d keys, %v", len(keys), err)
	}
	// Page by page.
	seen := 0
	for after, n := []byte(nil), 0; n < 10; n++ {
		keys, next, _, err := b.m.Lives(start, hour(100), "", after, 1)
		if err != nil {
			t.Fatal(err)
		}
		seen += len(keys)
		if after = next; after == nil {
			break
		}
	}
	if seen != 3 {
		t.Errorf("the pages have %d keys", seen)
	}
}

// Whoever makes many keys cannot fill the disk, and the sums stay right.
func TestManyRows(t *testing.T) {
	b := newBench(t)
	saved := periods
	defer func() { periods = saved }()
	periods[Hour].rows, periods[Day].rows = 5, 7
	var items []auditfeed.Item
	for i := range 20 {
		items = append(items, b.item(start, "Encrypt", "", fmt.Sprint("arn:aws:kms:eu-west-1:111122223333:key/", i)))
	}
	b.count(items[:10]...)
	b.count(items[10:]...)
	for p, want := range map[Period]int{Hour: 6, Day: 8, Month: 20} {
		rows := b.rows(p, "")
		sum, others := uint64(0), uint64(0)
		for _, r := range rows {
			sum += r.Requests
			if r.Key == Others && r.Principal == Others {
				others += r.Requests
			}
		}
		if len(rows) != want || sum != 20 || p != Month && others != uint64(20-want+1) {
			t.Errorf("period %d: %d rows with %d requests, of which %d are of others", p, len(rows), sum, others)
		}
	}
}

func TestPrune(t *testing.T) {
	b := newBench(t)
	b.count(b.item(start, "Encrypt", "", keyA))
	b.count(b.item(start.AddDate(0, 0, 34), "Encrypt", "", keyA))
	if n := len(b.rows(Hour, "")); n != 2 {
		t.Errorf("after 34 days, %d hours are kept", n)
	}
	b.count(b.item(start.AddDate(0, 0, 36), "Encrypt", "", keyA))
	if n := len(b.rows(Hour, "")); n != 2 {
		t.Errorf("after 36 days, %d hours are kept", n)
	}
	b.count(b.item(start.AddDate(0, 0, 420), "Encrypt", "", keyA))
	if h, d, m := len(b.rows(Hour, "")), len(b.rows(Day, "")), len(b.rows(Month, "")); h != 1 || d != 3 || m != 3 {
		t.Errorf("after 420 days, %d hours, %d days and %d months are kept", h, d, m)
	}
	// What is noted about periods that are gone is gone too.
	sizes := 0
	err := b.m.view(func(tx *localfile.Tx) error {
		return tx.Each(stateBucket, []byte("rows-hours-"), func(key, _ []byte) error {
			if bytes.HasPrefix(key, []byte("rows-hours-")) && binary.BigEndian.Uint32(key[len(key)-4:]) > 0 {
				sizes++
			}
			return nil
		})
	})
	if err != nil || sizes != 1 {
		t.Errorf("there are sizes of %d hours, %v", sizes, err)
	}
}

func TestKinds(t *testing.T) {
	for _, c := range []struct{ operation, spec, pair, want string }{
		{"Encrypt", "SYMMETRIC_DEFAULT", "", Symmetric}, {"GenerateMac", "HMAC_256", "", Symmetric}, {"DescribeKey", "RSA_2048", "", Symmetric}, {"CreateKey", "ML_DSA_65", "", Symmetric},
		{"Sign", "RSA_2048", "", RSA2048}, {"Sign", "RSA_4096", "", Asymmetric}, {"GetPublicKey", "ECC_NIST_P256", "", Asymmetric}, {"Decapsulate", "ML_KEM_768", "", Asymmetric},
		{"GenerateDataKeyPair", "SYMMETRIC_DEFAULT", "ECC_NIST_P256", PairECC}, {"GenerateDataKeyPairWithoutPlaintext", "SYMMETRIC_DEFAULT", "RSA_2048", PairRSA},
		{"ListKeys", "", "", Symmetric},
	} {
		if got := kindOf(c.operation, c.spec, c.pair); got != c.want {
			t.Errorf("%s with %s: %s, want %s", c.operation, c.spec, got, c.want)
		}
	}
}
