// Package trailfiles writes and verifies an audit log as AWS CloudTrail delivers one: log files
// of records, and signed digest files that name them, in a directory laid out as a bucket.
//
// Records are in the order of the log. Those of one clock hour form a batch, for which each
// account and Region with records gets log files and one digest file. A digest file has the
// hashes of its log files, and the hash and the signature of the digest before it, so that the
// digests of an account and a Region form a chain. Its signature, RSASSA-PKCS1-v1_5 with
// SHA-256 over what CloudTrail signs, is in a file beside it that has the metadata of
// CloudTrail's object. The member "conclave" of a digest, which CloudTrail does not have, names
// the records of the batch and a checkpoint of the log whose tree has them.
//
// The file export.json says how far the export is. It is written last: what a crash leaves
// behind is written again, under the same names, or removed, by the next run.
package trailfiles

import (
	"bytes"
	"compress/gzip"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"time"
)

const (
	stateName = "export.json"
	lockName  = "export.lock"
	// signatureSuffix is added to the name of a digest file for that of its signature.
	signatureSuffix = ".signature.json"

	trailName  = "conclave"
	timeForm   = "2006-01-02T15:04:05Z"
	stampForm  = "20060102T150405Z"
	minuteForm = "20060102T1504Z"

	// maxRecord, maxLogFile, maxDigest and maxState bound what is read, in bytes; those of
	// files hold for their uncompressed content.
	maxRecord  = 8 << 20
	maxLogFile = 64 << 20
	maxDigest  = 16 << 20
	maxState   = 16 << 20

	// A log file ends with the record that exceeds one of these.
	fileRecords = 10_000
	fileBytes   = 8 << 20
	// openBytes is how much is kept in memory, of all accounts and Regions.
	openBytes = 64 << 20
)

// Of records that cannot be decrypted, neither the account nor the Region is known.
const (
	noAccount = "000000000000"
	noRegion  = "none"
)

var (
	accountForm = regexp.MustCompile(`^[0-9]{12}$`)
	regionForm  = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	bucketForm  = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{2,62}$`)
	// objectForm has the names of log files, and digestForm those of digest files.
	objectForm = regexp.MustCompile(`^AWSLogs/([0-9]{12})/CloudTrail/([a-z0-9-]{1,32})/[0-9]{4}/[0-9]{2}/[0-9]{2}/[0-9]{12}_CloudTrail_[a-z0-9-]{1,32}_[0-9]{8}T[0-9]{4}Z_[A-Z2-7]{16}\.json\.gz$`)
	digestForm = regexp.MustCompile(`^AWSLogs/([0-9]{12})/CloudTrail-Digest/([a-z0-9-]{1,32})/[0-9]{4}/[0-9]{2}/[0-9]{2}/[0-9]{12}_CloudTrail-Digest_[a-z0-9-]{1,32}_conclave_[a-z0-9-]{1,32}_([0-9]{8}T[0-9]{6}Z)\.json\.gz$`)
)

// place is an account and a Region, whose digests form one chain.
type place struct{ Account, Region string }

func (p place) dir(kind string, t time.Time) string {
	return path.Join("AWSLogs", p.Account, kind, p.Region, t.Format("2006/01/02"))
}

// logName returns the name of the log file that begins with a record. It depends on that record
// only.
func (p place) logName(first *record) string {
	sum := sha256.Sum256([]byte(first.Conclave.LeafHash))
	unique := base32.StdEncoding.EncodeToString(sum[:10])
	return path.Join(p.dir("CloudTrail", first.time), fmt.Sprintf("%s_CloudTrail_%s_%s_%s.json.gz", p.Account, p.Region, first.time.Format(minuteForm), unique))
}

func (p place) digestName(end time.Time) string {
	return path.Join(p.dir("CloudTrail-Digest", end), fmt.Sprintf("%s_CloudTrail-Digest_%s_%s_%s_%s.json.gz", p.Account, p.Region, trailName, p.Region, end.Format(stampForm)))
}

// record is what is read of a record.
type record struct {
	EventTime          string `json:"eventTime"`
	AWSRegion          string `json:"awsRegion"`
	RecipientAccountID string `json:"recipientAccountId"`
	Conclave           struct {
		Index    *uint64 `json:"index"`
		LeafHash string  `json:"leafHash"`
	} `json:"conclave"`

	time time.Time
}

// parseRecord reads a record, which a server sent or a file has.
func parseRecord(line []byte) (*record, error) {
	r := new(record)
	if len(line) > maxRecord {
		return nil, errors.New("the record is too long")
	}
	if err := json.Unmarshal(line, r); err != nil {
		return nil, fmt.Errorf("not a record: %w", err)
	}
	var err error
	if r.time, err = time.Parse(timeForm, r.EventTime); err != nil {
		return nil, fmt.Errorf("not a record: eventTime: %w", err)
	}
	leaf, err := hex.DecodeString(r.Conclave.LeafHash)
	if r.Conclave.Index == nil || err != nil || len(leaf) != sha256.Size {
		return nil, errors.New("not a record of an audit log: it has no index or no hash")
	}
	return r, nil
}

// place returns where a record belongs.
func (r *record) place() (place, error) {
	p := place{r.RecipientAccountID, r.AWSRegion}
	if p == (place{}) {
		return place{noAccount, noRegion}, nil
	}
	// They become names of files.
	if !accountForm.MatchString(p.Account) || !regionForm.MatchString(p.Region) {
		return p, fmt.Errorf("record %d: not an account and a Region: %.32q, %.32q", *r.Conclave.Index, p.Account, p.Region)
	}
	return p, nil
}

// logFile is a log file as a digest names it.
type logFile struct {
	Bucket        string `json:"s3Bucket"`
	Object        string `json:"s3Object"`
	HashValue     string `json:"hashValue"` // SHA-256 of the uncompressed content
	HashAlgorithm string `json:"hashAlgorithm"`
	Newest        string `json:"newestEventTime"`
	Oldest        string `json:"oldestEventTime"`
}

// digest is a digest file.
type digest struct {
	Account            string    `json:"awsAccountId"`
	Start              string    `json:"digestStartTime"`
	End                string    `json:"digestEndTime"`
	Bucket             string    `json:"digestS3Bucket"`
	Object             string    `json:"digestS3Object"`
	KeyFingerprint     string    `json:"digestPublicKeyFingerprint"`
	SignatureAlgorithm string    `json:"digestSignatureAlgorithm"`
	Newest             string    `json:"newestEventTime"`
	Oldest             string    `json:"oldestEventTime"`
	PreviousBucket     *string   `json:"previousDigestS3Bucket"`
	PreviousObject     *string   `json:"previousDigestS3Object"`
	PreviousHash       *string   `json:"previousDigestHashValue"`
	PreviousAlgorithm  *string   `json:"previousDigestHashAlgorithm"`
	PreviousSignature  *string   `json:"previousDigestSignature"`
	LogFiles           []logFile `json:"logFiles"`
	Conclave           extension `json:"conclave"`
}

// extension ties a digest to the transparency log.
type extension struct {
	// Log is the origin of the log's checkpoints.
	Log string `json:"log"`
	// FirstRecord and LastRecord are the indexes of the batch's records, which are those of
	// all accounts.
	FirstRecord uint64 `json:"firstRecord"`
	LastRecord  uint64 `json:"lastRecord"`
	// TreeSize is the size of the tree that Checkpoint, a signed note, is of.
	TreeSize   uint64 `json:"treeSize"`
	Checkpoint string `json:"checkpoint"`
}

// signature is the metadata that CloudTrail's object has.
type signature struct {
	Signature string `json:"signature"` // in hexadecimal
	Algorithm string `json:"signature-algorithm"`
}

const (
	signatureAlgorithm = "SHA256withRSA"
	hashAlgorithm      = "SHA-256"
)

// toSign returns what the signature of a digest is over, given the digest's content.
func (d *digest) toSign(content []byte) [sha256.Size]byte {
	previous := "null"
	if d.PreviousSignature != nil {
		previous = *d.PreviousSignature
	}
	return sha256.Sum256([]byte(strings.Join([]string{d.End, d.Bucket + "/" + d.Object, hashOf(content), previous}, "\n")))
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Fingerprint returns the name that digests have for a key: the first 16 bytes of the SHA-256
// of its PKCS #1 encoding, in hexadecimal.
func Fingerprint(key *rsa.PublicKey) string {
	return hashOf(x509.MarshalPKCS1PublicKey(key))[:32]
}

// compress returns content in the form of gzip, always the same.
func compress(content []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// decompress returns the content of a file in the form of gzip, which has at most limit bytes.
func decompress(file []byte, limit int64) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("its content is longer than %d bytes", limit)
	}
	return content, nil
}
