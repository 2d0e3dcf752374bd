package trailfiles

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// Verified is what an export has.
type Verified struct {
	Log      string `json:"log"`
	First    uint64 `json:"first"`
	Records  uint64 `json:"records"`
	Digests  int    `json:"digests"`
	LogFiles int    `json:"log_files"`
	// Checkpoints says that the log's checkpoints in the digests were verified too.
	Checkpoints bool `json:"checkpoints"`
}

// FileError says what is wrong, and with which file.
type FileError struct {
	File string // relative to the directory
	Err  error
}

func (e *FileError) Error() string { return e.File + ": " + e.Err.Error() }

func (e *FileError) Unwrap() error { return e.Err }

func bad(file, format string, args ...any) error {
	return &FileError{file, fmt.Errorf(format, args...)}
}

// verifier verifies one export.
type verifier struct {
	dir   string
	keys  map[string]*rsa.PublicKey
	log   string // public keys of the log, or ""
	found map[string]bool
	chain map[place]last
	out   Verified
	// Of the batch:
	first, last uint64
	seen        []uint64 // a bit for each record
	count       uint64
	// checked is the checkpoint that was verified last, and size that of its tree.
	checked string
	size    uint64
}

// Verify verifies an export with the keys that sign its digests, by fingerprint: every file,
// the chains of digests, and that the export has every record of a range of the log once. If
// logKeys is not "", it has the public keys of the log, and the checkpoints in the digests are
// verified as well. It returns a *FileError for the first file that is wrong.
func Verify(dir string, keys map[string]*rsa.PublicKey, logKeys string) (*Verified, error) {
	st, err := readState(dir)
	if err != nil {
		return nil, &FileError{stateName, err}
	}
	if len(st.Pending) > 0 {
		return nil, bad(stateName, "an export was interrupted: run it again first")
	}
	v := &verifier{dir: dir, keys: keys, log: logKeys, found: make(map[string]bool), chain: make(map[place]last)}
	digests, err := v.list()
	if err != nil {
		return nil, err
	}
	v.out = Verified{Log: st.Log, First: st.First, Checkpoints: logKeys != ""}
	for _, d := range digests {
		if err := v.digest(d, st); err != nil {
			return nil, err
		}
	}
	if err := v.endBatch(stateName); err != nil {
		return nil, err
	}
	if end := st.First + v.out.Records; end != st.Next {
		return nil, bad(stateName, "the export is to end before record %d, and its digests end before record %d", st.Next, end)
	}
	for _, name := range slices.Sorted(maps.Keys(v.found)) {
		if !v.found[name] {
			return nil, bad(name, "no digest names this file: it was added, or is left of an export that was interrupted, which writes it again when it is run again")
		}
	}
	return &v.out, nil
}

// named is a digest file with its place, whose content is checked later.
type named struct {
	place
	object string
	first  uint64 // as the digest says
	end    string
}

// list finds all files, and returns the digests in the order in which they were written.
func (v *verifier) list() ([]named, error) {
	var digests []named
	root := filepath.Join(v.dir, "AWSLogs")
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == root {
			return fs.SkipAll // nothing was exported
		}
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(v.dir, name)
		if err != nil {
			return err
		}
		object := filepath.ToSlash(rel)
		if !d.Type().IsRegular() {
			return bad(object, "not a regular file")
		}
		m := digestForm.FindStringSubmatch(object)
		switch {
		case m != nil:
			content, err := v.read(object, maxDigest)
			if err != nil {
				return err
			}
			parsed := new(digest)
			if err := json.Unmarshal(content, parsed); err != nil {
				return bad(object, "not a digest: %w", err)
			}
			digests = append(digests, named{place{m[1], m[2]}, object, parsed.Conclave.FirstRecord, m[3]})
			v.found[object] = true
		case digestForm.MatchString(strings.TrimSuffix(object, signatureSuffix)), objectForm.MatchString(object):
			v.found[object] = false // until a digest names it
		default:
			return bad(object, "not a file of an export")
		}
		return nil
	})
	slices.SortFunc(digests, func(a, b named) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.end, b.end), cmp.Compare(a.object, b.object))
	})
	return digests, err
}

// read returns the uncompressed content of a file.
func (v *verifier) read(object string, limit int64) ([]byte, error) {
	raw, err := files.Read(filepath.Join(v.dir, filepath.FromSlash(object)), limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, bad(object, "the file is missing")
	}
	if err != nil {
		return nil, &FileError{object, err}
	}
	content, err := decompress(raw, limit)
	if err != nil {
		return nil, &FileError{object, err}
	}
	return content, nil
}

// digest verifies a digest and its log files.
func (v *verifier) digest(n named, st *state) error {
	content, err := v.read(n.object, maxDigest)
	if err != nil {
		return err
	}
	d := new(digest)
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return bad(n.object, "not a digest: %w", err)
	}
	sig, err := v.signature(n.object, d, content)
	if err != nil {
		return err
	}
	if d.Bucket != st.Bucket || d.Object != n.object || d.Account != n.Account || d.SignatureAlgorithm != signatureAlgorithm || d.Conclave.Log != st.Log {
		return bad(n.object, "the digest is of another place, %s/%s, or of another log, %s", d.Bucket, d.Object, d.Conclave.Log)
	}
	if err := v.link(n, d); err != nil {
		return err
	}
	switch x := &d.Conclave; {
	case v.seen == nil || x.FirstRecord != v.first || x.LastRecord != v.last:
		if err := v.endBatch(n.object); err != nil {
			return err
		}
		if err := v.beginBatch(n.object, d); err != nil {
			return err
		}
	case x.Checkpoint != v.checked || x.TreeSize != v.size:
		return bad(n.object, "its checkpoint is not that of the other digests of its records")
	}
	for _, f := range d.LogFiles {
		if err := v.logFile(n, f, st.Bucket); err != nil {
			return err
		}
	}
	v.chain[n.place] = last{n.Account, n.Region, n.object, hashOf(content), sig, d.End}
	v.out.Digests++
	return nil
}

// signature verifies the signature of a digest, and returns it.
func (v *verifier) signature(object string, d *digest, content []byte) (string, error) {
	name := object + signatureSuffix
	raw, err := files.Read(filepath.Join(v.dir, filepath.FromSlash(name)), maxKeyFile)
	if err != nil {
		return "", &FileError{name, err}
	}
	v.found[name] = true
	var s signature
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", bad(name, "not a signature: %w", err)
	}
	sig, err := hex.DecodeString(s.Signature)
	if again, _ := json.Marshal(s); err != nil || hex.EncodeToString(sig) != s.Signature || s.Algorithm != signatureAlgorithm || !bytes.Equal(append(again, '\n'), raw) {
		return "", bad(name, "not a signature")
	}
	key := v.keys[d.KeyFingerprint]
	if key == nil {
		return "", bad(object, "it is signed by the key %.64q, which is not one that was given", d.KeyFingerprint)
	}
	sum := d.toSign(content)
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig) != nil {
		return "", bad(object, "the signature does not verify")
	}
	return s.Signature, nil
}

// link verifies that a digest follows the one before of its account and Region.
func (v *verifier) link(n named, d *digest) error {
	before, ok := v.chain[n.place]
	if !ok {
		if d.PreviousObject != nil || d.PreviousHash != nil || d.PreviousSignature != nil {
			return bad(n.object, "the digest before it, %.300s, is missing", deref(d.PreviousObject))
		}
		return nil
	}
	if deref(d.PreviousObject) != before.Object || deref(d.PreviousHash) != before.Hash || deref(d.PreviousSignature) != before.Signature ||
		deref(d.PreviousBucket) != d.Bucket || deref(d.PreviousAlgorithm) != hashAlgorithm {
		return bad(n.object, "it follows %.300s, and not %s, which is before it", deref(d.PreviousObject), before.Object)
	}
	return nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// beginBatch begins the batch of a digest, which must follow the one before.
func (v *verifier) beginBatch(object string, d *digest) error {
	x := &d.Conclave
	if next := v.out.First + v.out.Records; x.FirstRecord != next || x.LastRecord < x.FirstRecord {
		return bad(object, "its records begin with %d, where %d is next: a digest is missing, or is there twice", x.FirstRecord, next)
	}
	if n := x.LastRecord - x.FirstRecord; n > 1<<32 {
		return bad(object, "it has too many records: %d", n)
	}
	c, err := checkpoint.Decode([]byte(x.Checkpoint))
	if err == nil && v.log != "" && x.Checkpoint != v.checked {
		c, err = checkpoint.ParseKept([]byte(x.Checkpoint), v.log)
	}
	if err != nil {
		return &FileError{object, err}
	}
	v.checked, v.size = x.Checkpoint, c.Size
	if c.Size != x.TreeSize || c.Origin != x.Log || c.Size <= x.LastRecord {
		return bad(object, "its checkpoint is of %d records of %s", c.Size, c.Origin)
	}
	v.first, v.last, v.count = x.FirstRecord, x.LastRecord, 0
	v.seen = make([]uint64, (x.LastRecord-x.FirstRecord)/64+1)
	return nil
}

// endBatch checks that the batch has all of its records.
func (v *verifier) endBatch(object string) error {
	if v.seen == nil {
		return nil
	}
	n := v.last - v.first + 1
	if v.count != n {
		return bad(object, "before it, %d of the records %d to %d are missing: so is a digest of them", n-v.count, v.first, v.last)
	}
	v.out.Records += n
	v.seen = nil
	return nil
}

// logFile verifies a log file that a digest names.
func (v *verifier) logFile(n named, f logFile, bucket string) error {
	m := objectForm.FindStringSubmatch(f.Object)
	if m == nil || m[1] != n.Account || m[2] != n.Region || f.Bucket != bucket || f.HashAlgorithm != hashAlgorithm {
		return bad(n.object, "it names %.300q, which is not a log file of its account and Region", f.Object)
	}
	content, err := v.read(f.Object, maxLogFile)
	if err != nil {
		return err
	}
	if hashOf(content) != f.HashValue {
		return bad(f.Object, "its hash is not that in %s", n.object)
	}
	v.found[f.Object] = true
	var list struct{ Records []json.RawMessage }
	if err := json.Unmarshal(content, &list); err != nil {
		return bad(f.Object, "not a log file: %w", err)
	}
	for _, line := range list.Records {
		r, err := parseRecord(line)
		if err != nil {
			return &FileError{f.Object, err}
		}
		index := *r.Conclave.Index
		if index < v.first || index > v.last {
			return bad(f.Object, "record %d is not one of those from %d to %d", index, v.first, v.last)
		}
		at := index - v.first
		if v.seen[at/64]&(1<<(at%64)) != 0 {
			return bad(f.Object, "record %d is there twice", index)
		}
		v.seen[at/64] |= 1 << (at % 64)
		v.count++
	}
	v.out.LogFiles++
	return nil
}
