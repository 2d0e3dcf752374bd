package transport

import (
	"crypto/rand"
	"encoding/hex"

	"github.com/conclavekms/conclave/keyengine/iam"
)

// NewRequestID returns a new random UUID, version 4 of RFC 9562.
func NewRequestID() iam.RequestID {
	var id iam.RequestID
	rand.Read(id[:]) // never fails: the program ends first
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// FormatRequestID returns a request id in the form in which the faces send it: a
// UUID in lower case.
func FormatRequestID(id iam.RequestID) string {
	var b [36]byte
	hex.Encode(b[:8], id[:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:], id[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}
