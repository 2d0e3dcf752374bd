package xks

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/sigv4"
)

const (
	service   = "kms-xks-proxy"
	algorithm = "AWS4-HMAC-SHA256"
	// signedHeaders are all that a request has a meaning by.
	signedHeaders = "content-length;content-type;host;x-amz-date"
)

// sign adds SigV4 to a request. Paths of the specification hold nothing that would
// have to be escaped, and there is no query.
func sign(r *http.Request, p *Proxy, payload []byte, now time.Time) error {
	stamp := now.UTC().Format("20060102T150405Z")
	date := stamp[:8]
	r.Header.Set("X-Amz-Date", stamp)
	body := sha256.Sum256(payload)
	canonical := strings.Join([]string{
		r.Method, r.URL.EscapedPath(), "",
		"content-length:" + strconv.Itoa(len(payload)),
		"content-type:" + r.Header.Get("Content-Type"),
		"host:" + r.Host,
		"x-amz-date:" + stamp,
		"", signedHeaders, hex.EncodeToString(body[:]),
	}, "\n")
	digest := sha256.Sum256([]byte(canonical))
	scope := date + "/" + p.Region + "/" + service + "/aws4_request"
	var key [sigv4.KeySize]byte
	defer clear(key[:])
	if err := p.SigningKey(key[:], date, p.Region, service); err != nil {
		return fmt.Errorf("signing a request to an external key store proxy: %w", err)
	}
	h := hmac.New(sha256.New, key[:])
	_, _ = h.Write([]byte(algorithm + "\n" + stamp + "\n" + scope + "\n" + hex.EncodeToString(digest[:])))
	r.Header.Set("Authorization", algorithm+" Credential="+p.AccessKeyID+"/"+scope+", SignedHeaders="+signedHeaders+
		", Signature="+hex.EncodeToString(h.Sum(nil)))
	return nil
}
