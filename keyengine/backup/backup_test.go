package backup

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
)

// source is the state machine of a node of a test.
type source struct {
	*enginetest.Cluster
	*enginetest.Replica
}

func (s source) Snapshot() (*fsm.State, func(io.Writer) error, error) { return s.Cluster.Snapshot() }

// testNode is an unsealed node of a cluster with one key.
type testNode struct {
	*enginetest.Node
	t      *testing.T
	shares []string
	saver  *Saver
}

func newTestNode(t *testing.T) *testNode {
	t.Helper()
	c := enginetest.NewCluster(t, 1)
	n := &testNode{Node: c.NewNode("n1"), t: t}
	n.shares = n.Initialise(enginetest.InitParams(3, 2)).Shares
	n.Unseal(n.shares...)
	n.PutKey(enginetest.KeyID)
	n.saver = New(Config{NodeID: "n1", Vault: n.Vault, Audit: c.Audit, Clock: c.Clock, Events: n.Events})
	return n
}

func (n *testNode) save(withAudit bool) []byte {
	n.t.Helper()
	var b bytes.Buffer
	if _, err := n.saver.Save(n.t.Context(), source{n.Cluster, n.Replica}, record.ServiceEvent(EventName, time.Time{}), withAudit, &b); err != nil {
		n.t.Fatalf("Save: %v", err)
	}
	return b.Bytes()
}

// open reads the header of a backup and opens it with shares.
func open(t *testing.T, file []byte, shares ...string) (*Keys, io.Reader) {
	t.Helper()
	r := bytes.NewReader(file)
	h, err := ReadHeader(r)
	if err != nil {
		t.Fatalf("ReadHeader: %v", err)
	}
	k, err := NewKeys(h, false)
	if err != nil {
		t.Fatalf("NewKeys: %v", err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Errorf("closing the keys: %v", err)
		}
	})
	for i, s := range shares {
		if have, _, err := k.Add([]byte(s)); err != nil || have != i+1 {
			t.Fatalf("Add: %d shares, %v", have, err)
		}
	}
	return k, r
}

func TestSaveAndOpen(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	for _, withAudit := range []bool{false, true} {
		file := n.save(withAudit)
		if bytes.Contains(file, []byte("SYMMETRIC_DEFAULT")) {
			t.Error("the state is in the clear")
		}
		k, r := open(t, file, n.shares[2], n.shares[0])
		var entries []auditlog.Entry
		content, err := k.Read(r, nil, func(e auditlog.Entry) error { entries = append(entries, e); return nil })
		if err != nil {
			t.Fatalf("Read: %v", err)
		}
		if got, want := content.State.Digest(), n.Cluster.State().Digest(); got != want {
			t.Errorf("the state has digest %x, not %x", got, want)
		}
		all := n.Cluster.Audit.Entries()
		if !withAudit {
			all = nil
		}
		if content.Entries != uint64(len(all)) || !slices.EqualFunc(entries, all, func(a, b auditlog.Entry) bool { return a.LeafHash() == b.LeafHash() && bytes.Equal(a.Body, b.Body) }) {
			t.Errorf("%d audit entries, want %d", len(entries), len(all))
		}
		if keys, versions, err := k.Materials(content.State); keys != 1 || versions != 1 || err != nil {
			t.Errorf("Materials: %d keys, %d versions, %v", keys, versions, err)
		}
		if last := n.Records()[len(n.Records())-1]; last.EventName != EventName {
			t.Errorf("the newest record is of %s", last.EventName)
		}
	}
}

// TestSaveRecordsFirst has the record of a backup fail: nothing may be written then.
func TestSaveRecordsFirst(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	n.Replica.Err = errors.New("no leader")
	var b bytes.Buffer
	if _, err := n.saver.Save(t.Context(), source{n.Cluster, n.Replica}, record.ServiceEvent(EventName, time.Time{}), true, &b); err == nil || b.Len() > 0 {
		t.Errorf("Save wrote %d bytes and returned %v", b.Len(), err)
	}
	n.Replica.Err = nil
	n.Vault.Seal()
	if _, err := n.saver.Save(t.Context(), source{n.Cluster, n.Replica}, record.ServiceEvent(EventName, time.Time{}), true, &b); err == nil || b.Len() > 0 {
		t.Errorf("sealed, Save wrote %d bytes and returned %v", b.Len(), err)
	}
}

// TestCheck has an unsealed node check backups without shares.
func TestCheck(t *testing.T) {
	t.Parallel()
	n, other := newTestNode(t), newTestNode(t)
	c, _ := n.Cluster.State().Cluster()
	check := func(file []byte) (*Checked, error) {
		return n.saver.Check(t.Context(), c.Id, record.ServiceEvent(CheckEventName, time.Time{}), bytes.NewReader(file))
	}
	good := n.save(true)
	if got, err := check(good); err != nil || got.Keys != 1 || got.Versions != 1 || !got.Audit {
		t.Errorf("Check: %+v, %v", got, err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, file := range map[string][]byte{
		"flipped": flipped, "cut short": good[:len(good)-1], "extended": append(bytes.Clone(good), 0), "empty": nil, "another cluster's": other.save(true),
	} {
		if got, err := check(file); err == nil || got != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if last := n.Records()[len(n.Records())-1]; last.EventName != CheckEventName || last.ErrorCode == "" {
			t.Errorf("%s: the record is %s with error %q", name, last.EventName, last.ErrorCode)
		}
		if _, err := n.saver.Authenticate(t.Context(), bytes.NewReader(file)); err == nil {
			t.Errorf("%s: Authenticate accepts it", name)
		}
	}
	if _, err := n.saver.Authenticate(t.Context(), bytes.NewReader(good)); err != nil {
		t.Errorf("Authenticate: %v", err)
	}
	n.Replica.Err = errors.New("no leader")
	if _, err := check(good); err == nil {
		t.Error("a check that cannot be recorded is answered")
	}
	n.Replica.Err = nil
	n.Vault.Seal()
	if _, err := check(good); err == nil {
		t.Error("a sealed node checks")
	}
}

// refused reports whether a file is refused even by somebody who has the cluster's keys.
func refused(k *Keys, file []byte) bool {
	r := bytes.NewReader(file)
	h, err := ReadHeader(r)
	if err != nil {
		return errors.Is(err, ErrFormat) || errors.Is(err, ErrNewer)
	}
	with := &Keys{header: h, vault: k.vault, shares: k.shares}
	_, err = with.Read(r, nil, nil)
	return err != nil
}

func TestEveryBitFlipIsRefused(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	file := n.save(false)
	k, _ := open(t, file, n.shares[:2]...)
	if refused(k, file) {
		t.Fatal("the file itself is refused")
	}
	t.Logf("%d bytes", len(file))
	for i := range file {
		for bit := range 8 {
			file[i] ^= 1 << bit
			if !refused(k, file) {
				t.Errorf("bit %d of byte %d may be changed", bit, i)
			}
			file[i] ^= 1 << bit
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	file := n.save(true)
	k, _ := open(t, file, n.shares[:2]...)
	for i := range file {
		if !refused(k, file[:i]) {
			t.Errorf("the first %d bytes of %d are accepted", i, len(file))
		}
	}
	for _, more := range []int{1, keymat.ChunkOverhead, 1000} {
		if !refused(k, append(bytes.Clone(file), make([]byte, more)...)) {
			t.Errorf("%d more bytes are accepted", more)
		}
	}
}

// TestSplices puts files together from the chunks of two, and changes their order.
func TestSplices(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	for len(n.save(true)) < 5*keymat.ChunkSize { // the audit log grows
		for range 200 {
			if _, err := n.Events.Record(t.Context(), record.ServiceEvent(EventName, time.Time{})); err != nil {
				t.Fatal(err)
			}
		}
	}
	a, b := n.save(true), n.save(true)
	k, _ := open(t, a, n.shares[:2]...)
	if refused(k, a) || refused(k, b) {
		t.Fatal("a file is refused")
	}
	head := func(f []byte) int {
		r := bytes.NewReader(f)
		if _, err := ReadHeader(r); err != nil {
			t.Fatal(err)
		}
		return len(f) - r.Len()
	}
	const chunk = keymat.ChunkSize + keymat.ChunkOverhead
	ha, hb := head(a), head(b)
	if ha != hb {
		t.Fatalf("headers of %d and %d bytes", ha, hb)
	}
	for name, f := range map[string][]byte{
		"header of the other":      slices.Concat(a[:ha], b[hb:]),
		"one chunk of the other":   slices.Concat(a[:ha+chunk], b[hb+chunk:hb+2*chunk], a[ha+2*chunk:]),
		"the end of the other":     slices.Concat(a[:ha+2*chunk], b[hb+2*chunk:]),
		"two chunks swapped":       slices.Concat(a[:ha], a[ha+chunk:ha+2*chunk], a[ha:ha+chunk], a[ha+2*chunk:]),
		"a chunk twice":            slices.Concat(a[:ha+chunk], a[ha:]),
		"a chunk left out":         slices.Concat(a[:ha+chunk], a[ha+2*chunk:]),
		"cut after a whole chunk":  a[:ha+2*chunk],
		"both, one after another":  slices.Concat(a, b),
		"the chunks of both":       slices.Concat(a, b[hb:]),
		"the other's wrapped key":  slices.Concat(a[:ha-keySize], b[hb-keySize:hb], a[ha:]),
		"nothing after the header": a[:ha],
	} {
		if !refused(k, f) {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestShares(t *testing.T) {
	t.Parallel()
	n, other := newTestNode(t), newTestNode(t)
	file := n.save(false)
	k, r := open(t, file, n.shares[0])
	if _, err := k.Read(r, nil, nil); !errors.Is(err, shamir.ErrTooFew) {
		t.Errorf("with one share of two: %v", err)
	}
	if _, _, err := k.Add([]byte(other.shares[1])); !errors.Is(err, shamir.ErrWrongCluster) {
		t.Errorf("a share of another cluster: %v", err)
	}
	if _, _, err := k.Add([]byte(n.shares[0])); !errors.Is(err, shamir.ErrRepeated) {
		t.Errorf("a share twice: %v", err)
	}
	if have, need, err := k.Add([]byte("conclave-share-1-no")); err == nil || have != 1 || need != 2 {
		t.Errorf("no share: %d of %d, %v", have, need, err)
	}
	if have, need, err := k.Add([]byte(" " + n.shares[1] + "\n")); err != nil || have != need {
		t.Errorf("the second share: %d of %d, %v", have, need, err)
	}
	if _, err := k.Read(r, nil, nil); err != nil {
		t.Errorf("Read: %v", err)
	}
}

// TestForgedHeaders gives the custodians files whose headers somebody wrote who does not
// have the keys.
func TestForgedHeaders(t *testing.T) {
	t.Parallel()
	n, other := newTestNode(t), newTestNode(t)
	file := n.save(false)
	theirs, err := ReadHeader(bytes.NewReader(other.save(false)))
	if err != nil {
		t.Fatal(err)
	}
	for name, forge := range map[string]func(h *Header){
		"another threshold":        func(h *Header) { h.Cluster.Shares.Threshold = 1 },
		"another root key":         func(h *Header) { h.Cluster.WrappedRoot = theirs.Cluster.WrappedRoot },
		"another keyring":          func(h *Header) { h.Cluster.Keyring = theirs.Cluster.Keyring },
		"another origin key":       func(h *Header) { h.Cluster.OriginKeys = theirs.Cluster.OriginKeys },
		"another cluster's shares": func(h *Header) { h.Cluster.Shares = theirs.Cluster.Shares },
		"another account":          func(h *Header) { h.Cluster.Account = "999999999999" },
		"another index":            func(h *Header) { h.Index++ },
		"more audit entries":       func(h *Header) { h.AuditSize++ },
	} {
		h, err := ReadHeader(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		before, _, _ := begin(h.Header)
		forge(h)
		after, _, _ := begin(h.Header)
		forged := append(after, file[len(before):]...)
		if err := openAll(forged, n.shares[:2]); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func openAll(file []byte, shares []string) error {
	r := bytes.NewReader(file)
	h, err := ReadHeader(r)
	if err != nil {
		return err
	}
	k, err := NewKeys(h, false)
	if err != nil {
		return err
	}
	defer k.Close()
	for _, s := range shares {
		if _, _, err := k.Add([]byte(s)); err != nil {
			return err
		}
	}
	_, err = k.Read(r, nil, nil)
	return err
}

func TestNewerSchema(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	file := n.save(false)
	h, err := ReadHeader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := begin(h.Header)
	h.Schema++
	after, _, _ := begin(h.Header)
	if err := openAll(append(after, file[len(before):]...), n.shares); !errors.Is(err, ErrNewer) {
		t.Errorf("a newer schema: %v", err)
	}
	newer := bytes.Clone(file)
	newer[len(magic)-1]++
	if err := openAll(newer, n.shares); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("a newer format: %v", err)
	}
}

// TestPartsOutOfOrder writes files that only an unsealed node could write, with parts that
// no node writes.
func TestPartsOutOfOrder(t *testing.T) {
	t.Parallel()
	n := newTestNode(t)
	file := n.save(true)
	h, err := ReadHeader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	o, err := n.Vault.Current()
	if err != nil {
		t.Fatal(err)
	}
	var state bytes.Buffer
	_, write, err := n.Cluster.Snapshot()
	if err == nil {
		err = write(&state)
	}
	if err != nil {
		t.Fatal(err)
	}
	type part struct {
		kind byte
		b    []byte
	}
	entries := func(es []auditlog.Entry) (parts []part) {
		for i := range es {
			b, _ := proto.Marshal(entryProto(&es[i]))
			parts = append(parts, part{partAudit, b})
		}
		return parts
	}
	all := n.Cluster.Audit.Entries()
	good := part{partState, state.Bytes()}
	for name, parts := range map[string][]part{
		"good":                 slices.Concat([]part{good}, entries(all)),
		"no state":             entries(all),
		"no audit log":         {good},
		"audit log first":      slices.Concat(entries(all), []part{good}),
		"a state twice":        slices.Concat([]part{good, good}, entries(all)),
		"an entry twice":       slices.Concat([]part{good}, entries(all), entries(all[:1])),
		"an entry missing":     slices.Concat([]part{good}, entries(all[1:])),
		"the last one missing": slices.Concat([]part{good}, entries(all[:len(all)-1])),
		"an unknown part":      slices.Concat([]part{good}, entries(all), []part{{7, []byte("x")}}),
		"a part after the end": slices.Concat([]part{good}, entries(all), []part{{partEnd, nil}}),
		"half a state":         slices.Concat([]part{{partState, state.Bytes()[:state.Len()/2]}}, entries(all)),
		"no entry":             slices.Concat([]part{good}, []part{{partAudit, []byte("x")}}),
	} {
		var b bytes.Buffer
		w, err := newWriter(&b, o, h.Header)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			if err := w.part(p.kind, p.b); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
		if err := openAll(b.Bytes(), n.shares[:2]); (err == nil) != (name == "good") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add([]byte(magic))
	f.Add(append([]byte(magic), 0, 0, 0, 2, 8, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadHeader(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrNewer) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		if k, err := NewKeys(h, false); err == nil {
			if _, err := k.Read(bytes.NewReader(nil), nil, nil); err == nil {
				t.Error("opened without shares")
			}
			_ = k.Close()
		}
	})
}

var update = flag.Bool("update", false, "write testdata anew")

// TestVector opens a backup of this format that an earlier build wrote. Backups of released
// formats must be readable for ever.
func TestVector(t *testing.T) {
	t.Parallel()
	const file, shares = "testdata/v1.backup", "testdata/v1.shares"
	if *update {
		n := newTestNode(t)
		if err := errors.Join(os.WriteFile(file, n.save(true), 0o644), os.WriteFile(shares, []byte(strings.Join(n.shares, "\n")+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(shares)
	if err != nil {
		t.Fatal(err)
	}
	k, r := open(t, b, strings.Fields(string(text))[1:3]...)
	content, err := k.Read(r, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if keys, versions, err := k.Materials(content.State); keys != 1 || versions != 1 || err != nil || content.Entries == 0 {
		t.Errorf("%d keys, %d versions of material, %d audit entries, %v", keys, versions, content.Entries, err)
	}
}
