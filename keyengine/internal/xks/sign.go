package xks

import (
	"fmt"
	"net/http"
	"time"

	"github.com/conclavekms/conclave/transport/sigv4"
)

const (
	service = "kms-xks-proxy"
	// signedHeaders are all headers that affect a request's meaning.
	signedHeaders = "content-length;content-type;host;x-amz-date"
)

// sign signs a request with SigV4.
func sign(r *http.Request, p *Proxy, payload []byte, now time.Time) error {
	s := sigv4.Signer{
		AccessKeyID: p.AccessKeyID, Region: p.Region, Service: service, SignedHeaders: signedHeaders, SigningKey: p.SigningKey,
	}
	if err := s.Sign(r, payload, now); err != nil {
		return fmt.Errorf("signing a request to an external key store proxy: %w", err)
	}
	return nil
}
