// Package outsider verifies audit logs and receipts of Conclave by docs/audit-format.md alone. It
// shares no code with Conclave: it shows that the page is enough to write a verifier from, and it
// is a second opinion on what Conclave writes. It stops at the first thing that is wrong, and
// reads whole files into memory.
package outsider

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"filippo.io/mldsa"
)

type hash = [sha256.Size]byte

func leafHash(leaf []byte) hash { return sha256.Sum256(append([]byte{0}, leaf...)) }

func node(left, right hash) hash {
	return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
}

// tree has the roots of complete subtrees from the largest to the smallest, as a frontier has.
type tree struct {
	size  uint64
	roots []hash
}

func (t *tree) add(h hash) {
	for n := t.size; n&1 == 1; n >>= 1 {
		h, t.roots = node(t.roots[len(t.roots)-1], h), t.roots[:len(t.roots)-1]
	}
	t.roots = append(t.roots, h)
	t.size++
}

func (t *tree) root() hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	h := t.roots[len(t.roots)-1]
	for _, left := range slices.Backward(t.roots[:len(t.roots)-1]) {
		h = node(left, h)
	}
	return h
}

func (t *tree) frontier() []byte {
	b := binary.BigEndian.AppendUint64([]byte{1}, t.size)
	for _, h := range t.roots {
		b = append(b, h[:]...)
	}
	return b
}

// Keys are the public keys of a log.
type Keys struct {
	name   string
	ed     ed25519.PublicKey
	pq     *mldsa.PublicKey
	hashes [2][4]byte
}

// ParseKeys parses both public keys, one a line.
func ParseKeys(text string) (*Keys, error) {
	k := new(Keys)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 2 {
		return nil, errors.New("not two keys")
	}
	for i, line := range lines {
		parts := strings.SplitN(line, "+", 3)
		if len(parts) != 3 || i > 0 && parts[0] != k.name {
			return nil, errors.New("not NAME+HASH+KEY of one name")
		}
		k.name = parts[0]
		raw, err := base64.StdEncoding.Strict().DecodeString(parts[2])
		if err != nil || len(raw) == 0 {
			return nil, errors.New("not a key")
		}
		sum := sha256.Sum256(append([]byte(k.name+"\n"), raw...))
		k.hashes[i] = [4]byte(sum[:4])
		if fmt.Sprintf("%x", sum[:4]) != parts[1] {
			return nil, errors.New("the hash of a key is wrong")
		}
		switch {
		case i == 0 && raw[0] == 1 && len(raw) == 1+ed25519.PublicKeySize:
			k.ed = raw[1:]
		case i == 1 && raw[0] == 6 && len(raw) == 1+1312:
			if k.pq, err = mldsa.NewPublicKey(mldsa.MLDSA44(), raw[1:]); err != nil {
				return nil, err
			}
		default:
			return nil, errors.New("not an Ed25519 key and an ML-DSA-44 key")
		}
	}
	return k, nil
}

// Checkpoint is a signed root.
type Checkpoint struct {
	Size uint64
	Root hash
}

// Checkpoint verifies a checkpoint with both keys.
func (k *Keys) Checkpoint(note []byte) (c Checkpoint, err error) {
	text, signatures, ok := strings.Cut(string(note), "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(note) > 64<<10 || len(lines) != 3 || lines[0] != k.name {
		return c, errors.New("not a checkpoint of this log")
	}
	if c.Size, err = decimal(lines[1]); err != nil {
		return c, err
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return c, errors.New("no root")
	}
	c.Root = hash(root)
	if !strings.HasSuffix(signatures, "\n") {
		return c, errors.New("no signatures")
	}
	var signed [2]bool
	for line := range strings.SplitSeq(strings.TrimSuffix(signatures, "\n"), "\n") {
		parts := strings.Split(line, " ")
		if len(parts) != 3 || parts[0] != "—" {
			return c, errors.New("not a signature line")
		}
		sig, err := base64.StdEncoding.Strict().DecodeString(parts[2])
		if err != nil || len(sig) < 4 {
			return c, errors.New("not a signature")
		}
		if parts[1] != k.name {
			continue
		}
		switch [4]byte(sig) {
		case k.hashes[0]:
			if !ed25519.Verify(k.ed, []byte(text+"\n"), sig[4:]) {
				return c, errors.New("the Ed25519 signature is wrong")
			}
			signed[0] = true
		case k.hashes[1]:
			if len(sig) != 4+8+2420 {
				return c, errors.New("the ML-DSA-44 signature is wrong")
			}
			m := append([]byte("subtree/v1\n\x00"), byte(len(k.name)))
			m = append(append(m, k.name...), sig[4:12]...)
			m = append(append(m, byte(len(k.name))), k.name...) // which is the origin
			m = binary.BigEndian.AppendUint64(m, 0)
			m = binary.BigEndian.AppendUint64(m, c.Size)
			if mldsa.Verify(k.pq, append(m, root...), sig[12:], nil) != nil {
				return c, errors.New("the ML-DSA-44 signature is wrong")
			}
			signed[1] = true
		}
	}
	if !signed[0] || !signed[1] {
		return c, errors.New("a signature is missing")
	}
	return c, nil
}

func decimal(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != text {
		return 0, fmt.Errorf("%q is not a number", text)
	}
	return n, nil
}

// Receipt verifies a receipt, and returns the leaf of the record.
func (k *Keys) Receipt(text []byte) (leaf []byte, err error) {
	head, note, ok := strings.Cut(string(text), "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(text) > 128<<10 || len(lines) < 3 || len(lines) > 3+63 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return nil, errors.New("not a receipt")
	}
	c, err := k.Checkpoint([]byte(note))
	if err != nil {
		return nil, err
	}
	extra, ok := strings.CutPrefix(lines[1], "extra ")
	if leaf, err = base64.StdEncoding.Strict().DecodeString(extra); !ok || err != nil || len(leaf) != 125 || leaf[0] != 1 {
		return nil, errors.New("no leaf")
	}
	number, ok := strings.CutPrefix(lines[2], "index ")
	i, err := decimal(number)
	if !ok || err != nil || i >= c.Size || binary.BigEndian.Uint64(leaf[1:]) != i {
		return nil, errors.New("not the index of the leaf")
	}
	h, f, s := leafHash(leaf), i, c.Size-1
	for _, line := range lines[3:] {
		b, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(b) != sha256.Size || s == 0 {
			return nil, errors.New("not the proof")
		}
		if f&1 == 1 || f == s {
			h = node(hash(b), h)
			for f&1 == 0 && f != 0 {
				f, s = f>>1, s>>1
			}
		} else {
			h = node(h, hash(b))
		}
		f, s = f>>1, s>>1
	}
	if s != 0 || h != c.Root {
		return nil, errors.New("the proof does not lead to the root")
	}
	return leaf, nil
}

// log is a directory that is being read.
type log struct {
	dir    fs.FS
	want   []Checkpoint // trees that it must contain, the next one first
	mark   []byte       // the frontier that the durable mark has
	marked uint64
	tree   tree
	tiles  [8][]hash // of the tile that is begun, by level
	known  map[string]bool
	ids    map[[16]byte]bool
	raft   uint64
	time   int64
}

// Directory verifies a log directory, and that it contains the trees of checkpoints that were
// kept. It returns how many entries there are, and how many of them are signed.
func (k *Keys) Directory(dir fs.FS, kept ...[]byte) (entries, signed uint64, err error) {
	l := &log{dir: dir, known: map[string]bool{"checkpoint": true, "durable": true, "lock": true}, ids: make(map[[16]byte]bool), time: -1 << 63}
	note, err := fs.ReadFile(dir, "checkpoint")
	if err != nil {
		return 0, 0, err
	}
	own, err := k.Checkpoint(note)
	if err != nil {
		return 0, 0, err
	}
	l.want = append(l.want, own)
	for _, note := range kept {
		c, err := k.Checkpoint(note)
		if err != nil {
			return 0, 0, err
		}
		if c.Size > own.Size {
			return 0, 0, errors.New("the log was rolled back")
		}
		l.want = append(l.want, c)
	}
	slices.SortFunc(l.want, func(a, b Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	if err := l.readMark(); err != nil {
		return 0, 0, err
	}
	if err := l.reached(); err != nil {
		return 0, 0, err
	}
	for n := 0; ; n++ {
		name := fmt.Sprintf("segments/%08d.seg", n)
		b, err := fs.ReadFile(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err == nil {
			l.known[name] = true
			err = l.segment(uint64(n), b)
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%s: entry %d: %w", name, l.tree.size, err)
		}
	}
	if len(l.want) > 0 || l.tree.size < l.marked {
		return 0, 0, errors.New("there are fewer entries than were signed, or made durable")
	}
	return l.tree.size, own.Size, l.others()
}

// readMark reads the durable mark.
func (l *log) readMark() error {
	b, err := fs.ReadFile(l.dir, "durable")
	if err != nil {
		return err
	}
	if len(b) < 16+32 || string(b[:8]) != "CNCLVDUR" || binary.BigEndian.Uint32(b[8:]) != 1 || int(binary.BigEndian.Uint32(b[12:])) != len(b)-16-32 {
		return errors.New("durable: not a mark")
	}
	if sum := sha256.Sum256(b[:len(b)-32]); !bytes.Equal(sum[:], b[len(b)-32:]) {
		return errors.New("durable: wrong checksum")
	}
	content := b[16 : len(b)-32]
	n := int(binary.BigEndian.Uint16(content))
	if n < 9 || n > len(content)-2 {
		return errors.New("durable: no frontier")
	}
	l.mark = content[2 : 2+n]
	l.marked = binary.BigEndian.Uint64(l.mark[1:])
	if n != 9+32*bits.OnesCount64(l.marked) {
		return errors.New("durable: no frontier")
	}
	return nil
}

// reached compares the tree with what it must be at its size.
func (l *log) reached() error {
	for len(l.want) > 0 && l.want[0].Size == l.tree.size {
		if l.want[0].Root != l.tree.root() {
			return errors.New("the root is not the signed one")
		}
		l.want = l.want[1:]
	}
	if l.tree.size == l.marked && !bytes.Equal(l.tree.frontier(), l.mark) {
		return errors.New("the tree is not that of the durable mark")
	}
	return nil
}

const segmentSize = 65536

// segment reads a segment.
func (l *log) segment(n uint64, b []byte) error {
	if l.tree.size != n*segmentSize {
		return errors.New("the segment before is not full")
	}
	vouched := func() bool { return len(l.want) == 0 && l.tree.size >= l.marked }
	head := binary.BigEndian.AppendUint64([]byte("CNCLVSEG\x00\x00\x00\x01"), n)
	if !bytes.HasPrefix(b, head) {
		if bytes.HasPrefix(head, b) && vouched() {
			return nil
		}
		return errors.New("wrong header")
	}
	for b = b[len(head):]; len(b) > 0; {
		if l.tree.size == (n+1)*segmentSize {
			return errors.New("too long")
		}
		if len(b) < 4 || int(binary.BigEndian.Uint32(b)) > len(b)-4 {
			if vouched() {
				return nil // a node is writing it
			}
			return errors.New("cut short")
		}
		size := int(binary.BigEndian.Uint32(b))
		if size <= 124 || size > 124+65563 {
			return errors.New("impossible length")
		}
		if err := l.entry(b[4 : 4+size]); err != nil {
			return err
		}
		b = b[4+size:]
	}
	return nil
}

// entry reads a frame behind its length.
func (l *log) entry(b []byte) error {
	fields, body, stored := b[:92], b[92:len(b)-32], hash(b[len(b)-32:])
	sum := sha256.Sum256(body)
	h := leafHash(slices.Concat([]byte{1}, fields, sum[:]))
	index, raft, at := binary.BigEndian.Uint64(fields), binary.BigEndian.Uint64(fields[8:]), int64(binary.BigEndian.Uint64(fields[16:]))
	id := [16]byte(fields[24:])
	switch {
	case h != stored:
		return errors.New("wrong leaf hash")
	case index != l.tree.size:
		return fmt.Errorf("it is entry %d", index)
	case raft < l.raft || at < l.time:
		return errors.New("Raft index or time fall")
	case id != [16]byte{} && l.ids[id]:
		return errors.New("a request id twice")
	}
	l.raft, l.time, l.ids[id] = raft, at, true
	l.tree.add(h)
	if err := l.tile(0, h); err != nil {
		return err
	}
	return l.reached()
}

// tile adds a hash to the tile of a level that is begun, and compares it when it is full.
func (l *log) tile(level int, h hash) error {
	l.tiles[level] = append(l.tiles[level], h)
	if len(l.tiles[level]) < 256 {
		return nil
	}
	var content []byte
	var t tree
	for _, h := range l.tiles[level] {
		content = append(content, h[:]...)
		t.add(h)
	}
	l.tiles[level] = nil
	n := l.tree.size>>(8*(level+1)) - 1
	name := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		name = fmt.Sprintf("x%03d/%s", n%1000, name)
	}
	name = fmt.Sprintf("tile/%d/%s", level, name)
	l.known[name] = true
	b, err := fs.ReadFile(l.dir, name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(l.want) == 0: // no checkpoint covers it
	case err != nil:
		return err
	case !bytes.Equal(b, content):
		return fmt.Errorf("%s is not the tree's", name)
	}
	return l.tile(level+1, t.root())
}

var pending = regexp.MustCompile(`^pending/[0-9]{20}\.seg$`)

// others refuses files that do not belong to the log.
func (l *log) others() error {
	return fs.WalkDir(l.dir, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == "tmp" && d.IsDir():
			return fs.SkipDir
		case d.IsDir() || l.known[name] || pending.MatchString(name):
			return nil
		}
		return fmt.Errorf("%s does not belong to the log", name)
	})
}
