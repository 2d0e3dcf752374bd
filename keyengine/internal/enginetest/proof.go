package enginetest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/transport/sigv4"
)

func mac(key []byte, msg string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(msg))
	return h.Sum(nil)
}

// SignatureDate is the date of the signatures that SigV4Proof makes.
const SignatureDate = "20300102"

// SigV4Proof returns a proof of the access key of res, as a client makes it.
func SigV4Proof(res *ceremony.InitResult, region, stringToSign string) sigv4.Proof {
	key := make([]byte, sigv4.KeySize)
	sigv4.Derive(key, []byte(res.SecretAccessKey), SignatureDate, region, "kms")
	return sigv4.Proof{
		AccessKeyID: res.AccessKeyID, Date: SignatureDate, Region: region, Service: "kms",
		StringToSign: []byte(stringToSign), Signature: mac(key, stringToSign),
	}
}

var nonces atomic.Int64

// SessionProof returns a proof with which the access key of res opens a session, as a client
// makes it. No two have the same nonce.
func SessionProof(res *ceremony.InitResult, now time.Time) iam.SessionProof {
	p := iam.SessionProof{AccessKeyID: res.AccessKeyID, Time: now.Unix(), Nonce: fmt.Appendf(nil, "%016d", nonces.Add(1)), SourceIP: "192.0.2.9"}
	p.MAC = mac(mac([]byte("CONCLAVE1"+res.SecretAccessKey), "session"),
		fmt.Sprintf("conclave session v2\n%s\n%d\n%s\n", p.AccessKeyID, p.Time, hex.EncodeToString(p.Nonce)))
	return p
}
