// Package fakes3 is an S3-compatible store for tests: one bucket, in memory, with uploads in
// parts. It refuses what is not signed right, and fails where a test wants it to.
package fakes3

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Store is the store. Its fields are set before the first request. It is an http.Handler for
// path-style requests.
type Store struct {
	Bucket, Region         string
	AccessKeyID, SecretKey string
	// MaxPart is the largest body that is accepted; larger ones are refused.
	MaxPart int64
	// Fail is called with each request that is signed right, and with what it does: the
	// method, or the name of the step of an upload in parts. If it returns true, it has
	// answered.
	Fail func(op string, w http.ResponseWriter, r *http.Request) bool

	mu      sync.Mutex
	objects map[string][]byte
	locks   map[string]string
	uploads map[string]*upload
	next    int
	denied  int
}

type upload struct {
	key   string
	parts map[int][]byte
	lock  string
	began time.Time
}

// Objects returns the keys of all objects, in ascending order.
func (s *Store) Objects() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}

// Get returns an object, and "MODE until TIME" if it is locked.
func (s *Store) Get(key string) (content []byte, lock string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.objects[key]), s.locks[key]
}

// Set sets an object.
func (s *Store) Set(key string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(key, content, "")
}

func (s *Store) set(key string, content []byte, lock string) {
	if s.objects == nil {
		s.objects, s.locks = make(map[string][]byte), make(map[string]string)
	}
	s.objects[key], s.locks[key] = content, lock
}

// Uploads returns how many uploads in parts have neither been completed nor aborted.
func (s *Store) Uploads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uploads)
}

// Denied returns how many requests were refused because of their signature.
func (s *Store) Denied() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.denied
}

// ServeHTTP implements http.Handler.
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, s.MaxPart+1))
	if err != nil {
		return // the client is gone
	}
	if int64(len(body)) > s.MaxPart {
		fail(w, http.StatusBadRequest, "EntityTooLarge", "a body longer than the test allows")
		return
	}
	if err := s.signed(r, body); err != nil {
		s.mu.Lock()
		s.denied++
		s.mu.Unlock()
		fail(w, http.StatusForbidden, "SignatureDoesNotMatch", err.Error())
		return
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if bucket != s.Bucket {
		fail(w, http.StatusNotFound, "NoSuchBucket", "no such bucket")
		return
	}
	op := operation(r, key)
	if s.Fail != nil && s.Fail(op, w, r) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.objects[key]; taken && r.Header.Get("If-None-Match") == "*" && (op == "PUT" || op == "complete") {
		fail(w, http.StatusPreconditionFailed, "PreconditionFailed", "there is such an object")
		return
	}
	q := r.URL.Query()
	switch op {
	case "list":
		s.list(w, q.Get("prefix"), q.Get("continuation-token"))
	case "list uploads":
		s.listUploads(w, q.Get("prefix"))
	case "GET":
		content, ok := s.objects[key]
		if !ok {
			fail(w, http.StatusNotFound, "NoSuchKey", "no such key")
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content)
	case "PUT":
		s.set(key, body, lockOf(r))
		w.Header().Set("ETag", tag(body))
	case "DELETE":
		if s.locks[key] != "" {
			fail(w, http.StatusForbidden, "AccessDenied", "the object is locked")
			return
		}
		delete(s.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case "create":
		s.next++
		id := fmt.Sprintf("upload-%d", s.next)
		if s.uploads == nil {
			s.uploads = make(map[string]*upload)
		}
		s.uploads[id] = &upload{key: key, parts: make(map[int][]byte), lock: lockOf(r), began: time.Now()}
		answer(w, struct {
			XMLName               xml.Name `xml:"InitiateMultipartUploadResult"`
			Bucket, Key, UploadId string
		}{Bucket: s.Bucket, Key: key, UploadId: id})
	case "part", "complete", "abort":
		u := s.uploads[q.Get("uploadId")]
		if u == nil || u.key != key {
			fail(w, http.StatusNotFound, "NoSuchUpload", "no such upload")
			return
		}
		s.continued(w, op, q.Get("uploadId"), q.Get("partNumber"), u, body)
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "no such request")
	}
}

func operation(r *http.Request, key string) string {
	q := r.URL.Query()
	switch {
	case key == "" && r.Method == http.MethodGet && q.Has("uploads"):
		return "list uploads"
	case key == "" && r.Method == http.MethodGet:
		return "list"
	case key == "":
		return "?"
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "create"
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return "complete"
	case r.Method == http.MethodPut && q.Has("uploadId"):
		return "part"
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return "abort"
	}
	return r.Method
}

// continued answers the later requests of an upload in parts.
func (s *Store) continued(w http.ResponseWriter, op, id, number string, u *upload, body []byte) {
	switch op {
	case "part":
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > 10_000 {
			fail(w, http.StatusBadRequest, "InvalidArgument", "partNumber")
			return
		}
		u.parts[n] = body
		w.Header().Set("ETag", tag(body))
	case "abort":
		delete(s.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	case "complete":
		var list struct {
			Part []struct {
				PartNumber int
				ETag       string
			}
		}
		if err := xml.Unmarshal(body, &list); err != nil {
			fail(w, http.StatusBadRequest, "MalformedXML", err.Error())
			return
		}
		var content []byte
		for i, p := range list.Part {
			part, ok := u.parts[p.PartNumber]
			if !ok || p.PartNumber != i+1 || p.ETag != tag(part) {
				fail(w, http.StatusBadRequest, "InvalidPart", "a part is missing, or is another one")
				return
			}
			content = append(content, part...)
		}
		s.set(u.key, content, u.lock)
		delete(s.uploads, id)
		answer(w, struct {
			XMLName           xml.Name `xml:"CompleteMultipartUploadResult"`
			Bucket, Key, ETag string
		}{Bucket: s.Bucket, Key: u.key, ETag: tag(content)})
	}
}

// page is how many keys a listing has.
const page = 3

func (s *Store) list(w http.ResponseWriter, prefix, after string) {
	type object struct {
		Key  string
		Size int
	}
	var out struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		Name, Prefix          string
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		Contents              []object
	}
	out.Name, out.Prefix = s.Bucket, prefix
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if !strings.HasPrefix(key, prefix) || key <= after || strings.Contains(key[len(prefix):], "/") {
			continue
		}
		if len(out.Contents) == page {
			out.IsTruncated, out.NextContinuationToken = true, out.Contents[page-1].Key
			break
		}
		out.Contents = append(out.Contents, object{key, len(s.objects[key])})
	}
	answer(w, out)
}

func (s *Store) listUploads(w http.ResponseWriter, prefix string) {
	type one struct{ Key, UploadId, Initiated string }
	var out struct {
		XMLName xml.Name `xml:"ListMultipartUploadsResult"`
		Bucket  string
		Upload  []one
	}
	out.Bucket = s.Bucket
	for _, id := range slices.Sorted(maps.Keys(s.uploads)) {
		if u := s.uploads[id]; strings.HasPrefix(u.key, prefix) {
			out.Upload = append(out.Upload, one{u.key, id, u.began.UTC().Format(time.RFC3339)})
		}
	}
	answer(w, out)
}

func lockOf(r *http.Request) string {
	mode := r.Header.Get("X-Amz-Object-Lock-Mode")
	if mode == "" {
		return ""
	}
	return mode + " until " + r.Header.Get("X-Amz-Object-Lock-Retain-Until-Date")
}

func tag(b []byte) string {
	sum := md5.Sum(b)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_ = xml.NewEncoder(w).Encode(struct {
		XMLName       xml.Name `xml:"Error"`
		Code, Message string
	}{Code: code, Message: message})
}

// signed signs the request again and compares. The hash of the body must be signed.
func (s *Store) signed(r *http.Request, body []byte) error {
	given := r.Header.Get("Authorization")
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	if r.Header.Get("X-Amz-Content-Sha256") != hash {
		return errors.New("the body has another hash than the one that is signed")
	}
	_, list, ok := strings.Cut(given, "SignedHeaders=")
	list, _, _ = strings.Cut(list, ",")
	names := strings.Split(list, ";")
	if !ok || !slices.Contains(names, "host") || !slices.Contains(names, "x-amz-content-sha256") {
		return errors.New("there is no signature of host and body")
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > 15*time.Minute {
		return errors.New("the date is missing or old")
	}
	again := r.Clone(r.Context())
	again.Header = make(http.Header)
	again.ContentLength = 0
	for _, n := range names {
		switch n {
		case "host":
		case "content-length":
			again.ContentLength = r.ContentLength
		default:
			again.Header[http.CanonicalHeaderKey(n)] = r.Header.Values(n)
		}
	}
	again.URL.Host, again.URL.Scheme = r.Host, "http"
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	c := aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretKey}
	if err := signer.SignHTTP(r.Context(), c, again, hash, "s3", s.Region, at); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(again.Header.Get("Authorization")), []byte(given)) != 1 {
		return fmt.Errorf("the signature is not that of %s", s.AccessKeyID)
	}
	return nil
}
