package depot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

const (
	// partSize is the size of the parts of a large object, of which one is in memory.
	partSize = 16 << 20
	// maxParts is the limit of S3. An object has at most 160 GB.
	maxParts = 10_000
	// requestTimeout bounds a request and its repetitions, whose body has at most partSize.
	requestTimeout = 5 * time.Minute
	// silence is how long a store may send nothing of an object that is being read.
	silence = time.Minute
	// maxNames bounds what is listed.
	maxNames = 100_000
)

// bucket is a Store in a bucket.
type bucket struct {
	place place

	mu     sync.Mutex
	client *s3.Client
	// Tests set these: the parts of an object, and how long the client waits between tries.
	partSize int
	backoff  retry.BackoffDelayer
}

// String implements Store.
func (b *bucket) String() string { return b.place.String() }

// connect returns the client. Credentials come from where all clients of AWS take them.
func (b *bucket) connect(ctx context.Context) (*s3.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client != nil {
		return b.client, nil
	}
	var options []func(*config.LoadOptions) error
	if b.place.profile != "" {
		options = append(options, config.WithSharedConfigProfile(b.place.profile))
	}
	if b.place.region != "" {
		options = append(options, config.WithRegion(b.place.region))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, err
	}
	if cfg.Region == "" {
		if b.place.endpoint == "" {
			return nil, fmt.Errorf("%s: no region is given", b)
		}
		cfg.Region = "us-east-1" // which stores that have no regions expect in signatures
	}
	b.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle = b.place.pathStyle
		if b.place.endpoint != "" {
			o.BaseEndpoint = &b.place.endpoint
		}
		// The hash of each body is signed in any case. Many stores refuse the checksums that
		// are sent beside it by default.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		if b.backoff != nil {
			o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) { r.Backoff = b.backoff })
		}
	})
	return b.client, nil
}

func (b *bucket) key(name string) (*string, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return aws.String(b.place.prefix + name), nil
}

// wrap says which object an error is of.
func (b *bucket) wrap(name string, err error) error {
	if err == nil {
		return nil
	}
	var missing *types.NoSuchKey
	if errors.As(err, &missing) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	var refused smithy.APIError
	if errors.As(err, &refused) && refused.ErrorCode() == "PreconditionFailed" {
		err = fmt.Errorf("%w: %w", fs.ErrExist, err)
	}
	return fmt.Errorf("%s%s: %w", b, name, err)
}

// Put implements Store. What has more than one part is uploaded in parts; the store makes
// the object of them at the end.
func (b *bucket) Put(ctx context.Context, name string, write func(io.Writer) error) (int64, error) {
	return b.put(ctx, name, nil, write)
}

// Create implements Store. The store compares and makes the object in one step.
func (b *bucket) Create(ctx context.Context, name string, write func(io.Writer) error) (int64, error) {
	return b.put(ctx, name, aws.String("*"), write)
}

// put uploads what write writes. ifNoneMatch is the header of that name: nil to replace an object
// that there is, and "*" to fail then.
func (b *bucket) put(ctx context.Context, name string, ifNoneMatch *string, write func(io.Writer) error) (int64, error) {
	key, err := b.key(name)
	if err != nil {
		return 0, err
	}
	client, err := b.connect(ctx)
	if err != nil {
		return 0, err
	}
	u := &upload{b: b, ctx: ctx, client: client, key: key, ifNoneMatch: ifNoneMatch, size: b.partSize}
	if u.size == 0 {
		u.size = partSize
	}
	if b.place.lockFor > 0 {
		u.until = aws.Time(time.Now().Add(b.place.lockFor))
	}
	if err = write(u); err == nil {
		err = u.finish()
	}
	if err != nil {
		err = errors.Join(err, u.abandon())
	}
	return u.total, b.wrap(name, err)
}

// upload uploads what is written to it.
type upload struct {
	b           *bucket
	ctx         context.Context
	client      *s3.Client
	key         *string
	until       *time.Time // when the lock ends; nil without one
	ifNoneMatch *string    // see put
	size        int
	buf         []byte
	total       int64
	id          *string // nil unless the object has several parts
	parts       []types.CompletedPart
	err         error
}

// Write implements io.Writer.
func (u *upload) Write(b []byte) (n int, _ error) {
	for n < len(b) && u.err == nil {
		if len(u.buf) == u.size {
			u.err = u.part() // only now, since one full part may be all
			continue
		}
		if u.buf == nil {
			u.buf = make([]byte, 0, u.size)
		}
		k := min(len(b)-n, u.size-len(u.buf))
		u.buf = append(u.buf, b[n:n+k]...)
		n += k
		u.total += int64(k)
	}
	return n, u.err
}

// sum returns the checksum that a store wants with everything that is to be locked.
func (u *upload) sum() *string {
	if u.until == nil {
		return nil
	}
	h := sha256.Sum256(u.buf)
	return aws.String(base64.StdEncoding.EncodeToString(h[:]))
}

func (u *upload) mode() types.ObjectLockMode { return types.ObjectLockMode(u.b.place.lockMode) }

// part uploads the buffer.
func (u *upload) part() error {
	ctx, cancel := context.WithTimeout(u.ctx, requestTimeout)
	defer cancel()
	if u.id == nil {
		in := &s3.CreateMultipartUploadInput{Bucket: &u.b.place.bucket, Key: u.key, ContentType: aws.String(contentType)}
		if u.until != nil {
			in.ObjectLockMode, in.ObjectLockRetainUntilDate = u.mode(), u.until
			in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256
		}
		out, err := u.client.CreateMultipartUpload(ctx, in)
		if err != nil {
			return err
		}
		if u.id = out.UploadId; aws.ToString(u.id) == "" {
			u.id = nil
			return errors.New("the store began an upload without an id")
		}
	}
	if len(u.parts) == maxParts {
		return fmt.Errorf("it has more than %d parts of %d MiB", maxParts, u.size>>20)
	}
	number, sum := aws.Int32(int32(len(u.parts)+1)), u.sum()
	out, err := u.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &u.b.place.bucket, Key: u.key, UploadId: u.id, PartNumber: number, Body: bytes.NewReader(u.buf), ChecksumSHA256: sum,
	})
	if err != nil {
		return err
	}
	u.parts = append(u.parts, types.CompletedPart{PartNumber: number, ETag: out.ETag, ChecksumSHA256: sum})
	u.buf = u.buf[:0]
	return nil
}

const contentType = "application/octet-stream"

// finish makes the object.
func (u *upload) finish() error {
	if u.err != nil {
		return u.err
	}
	ctx, cancel := context.WithTimeout(u.ctx, requestTimeout)
	defer cancel()
	if u.id == nil {
		in := &s3.PutObjectInput{Bucket: &u.b.place.bucket, Key: u.key, Body: bytes.NewReader(u.buf), ContentType: aws.String(contentType), ChecksumSHA256: u.sum(), IfNoneMatch: u.ifNoneMatch}
		if u.until != nil {
			in.ObjectLockMode, in.ObjectLockRetainUntilDate = u.mode(), u.until
		}
		_, err := u.client.PutObject(ctx, in)
		return err
	}
	if len(u.buf) > 0 {
		if err := u.part(); err != nil {
			return err
		}
	}
	_, err := u.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &u.b.place.bucket, Key: u.key, UploadId: u.id, MultipartUpload: &types.CompletedMultipartUpload{Parts: u.parts}, IfNoneMatch: u.ifNoneMatch,
	})
	return err
}

// abandon throws away the parts. It is done even if the upload failed because its context
// ended: parts are invisible, and are paid for.
func (u *upload) abandon() error {
	if u.id == nil {
		return nil
	}
	patience := 30 * time.Second
	if u.ctx.Err() != nil {
		patience = 3 * time.Second // a server that stops waits for this
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), patience)
	defer cancel()
	if _, err := u.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &u.b.place.bucket, Key: u.key, UploadId: u.id}); err != nil {
		return fmt.Errorf("the parts that were uploaded stay in the bucket: %w", err)
	}
	return nil
}

// Open implements Store.
func (b *bucket) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	client, err := b.connect(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	o := &object{cancel: cancel, silence: time.AfterFunc(silence, cancel)}
	out, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.place.bucket, Key: key})
	if err != nil {
		_ = o.Close()
		return nil, b.wrap(name, err)
	}
	o.body, o.left = out.Body, -1
	if out.ContentLength != nil {
		o.left = *out.ContentLength
	}
	return o, nil
}

// object reads an object, and gives up when the store sends nothing for too long.
type object struct {
	body    io.ReadCloser
	left    int64 // of the announced length; negative if none was announced
	cancel  context.CancelFunc
	silence *time.Timer
}

// Read implements io.Reader.
func (o *object) Read(b []byte) (int, error) {
	o.silence.Reset(silence)
	n, err := o.body.Read(b)
	if o.left >= 0 {
		o.left = max(o.left-int64(n), 0)
	}
	if errors.Is(err, io.EOF) && o.left > 0 {
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

// Close implements io.Closer.
func (o *object) Close() error {
	o.silence.Stop()
	o.cancel()
	if o.body == nil {
		return nil
	}
	return o.body.Close()
}

// List implements Store.
func (b *bucket) List(ctx context.Context, prefix string) (names []string, err error) {
	client, err := b.connect(ctx)
	if err != nil {
		return nil, err
	}
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{
		Bucket: &b.place.bucket, Prefix: aws.String(b.place.prefix + prefix), Delimiter: aws.String("/"),
	})
	for pages.HasMorePages() {
		page, err := b.page(ctx, pages)
		if err != nil {
			return nil, b.wrap("", err)
		}
		for _, o := range page.Contents {
			name, ok := strings.CutPrefix(aws.ToString(o.Key), b.place.prefix)
			if ok && checkName(name) == nil && strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		if len(names) > maxNames {
			return nil, fmt.Errorf("%s has more than %d objects", b, maxNames)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (b *bucket) page(ctx context.Context, pages *s3.ListObjectsV2Paginator) (*s3.ListObjectsV2Output, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return pages.NextPage(ctx)
}

// Remove implements Store.
func (b *bucket) Remove(ctx context.Context, name string) error {
	key, err := b.key(name)
	if err != nil {
		return err
	}
	client, err := b.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err = client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.place.bucket, Key: key})
	return b.wrap(name, err)
}

// Sweep implements Store. It ends uploads in parts.
func (b *bucket) Sweep(ctx context.Context, prefix string, before time.Time) error {
	client, err := b.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// One page is enough: what is left of it will be on the first page of the next time.
	page, err := client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &b.place.bucket, Prefix: aws.String(b.place.prefix + prefix)})
	if err != nil {
		return b.wrap("", err)
	}
	var failed []error
	for _, u := range page.Uploads {
		if !strings.HasPrefix(aws.ToString(u.Key), b.place.prefix+prefix) || u.Initiated == nil || !u.Initiated.Before(before) {
			continue
		}
		_, err := client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.place.bucket, Key: u.Key, UploadId: u.UploadId})
		if err != nil {
			failed = append(failed, err)
		}
	}
	return b.wrap("", errors.Join(failed...))
}
