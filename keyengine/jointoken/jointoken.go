// Package jointoken encodes what a join token says.
//
// A join token lets one machine join a cluster, once, as the node that it names. The cluster
// keeps nothing about a token before it is used: it authenticates the token by a MAC, with a
// key of its keyring. The machine that has it learns from it which CA the cluster has, so that
// it can tell the cluster's nodes from others before it sends anything.
package jointoken

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"time"
)

const (
	// MACSize is the length of a token's MAC in bytes.
	MACSize = 32
	// MaxNames is the maximum number of names that a token has for the node's certificate,
	// and MaxName the length of each in bytes.
	MaxNames = 8
	MaxName  = 253
	// MaxText bounds the length of a token as text, in bytes.
	MaxText = 4 << 10

	prefix  = "conclave-join-"
	format  = 1
	fixed   = 1 + 4 + 16 + 16 + 32 + 8
	maxNode = 63
	maxAddr = 260
)

// ErrMalformed is returned for a text that is not a join token.
var ErrMalformed = errors.New("this is not a join token")

// Token is what a token says.
type Token struct {
	// Generation is that of the keyring with which the MAC was made.
	Generation uint32
	Cluster    [16]byte
	ID         [16]byte // random
	// Authority is the SHA-256 of the CA's certificate in DER.
	Authority [32]byte
	Expires   time.Time // with a resolution of seconds
	// Node and Address are the id and the peer address of the node that may join.
	Node, Address string
	// Names are host names and IP addresses for its certificate, besides its id and the host
	// of its address.
	Names []string
}

// Body returns what the MAC of the token is over. Its members must be in their limits.
func (t *Token) Body() []byte {
	b := append(make([]byte, 0, fixed+256), format)
	b = binary.BigEndian.AppendUint32(b, t.Generation)
	b = append(b, t.Cluster[:]...)
	b = append(b, t.ID[:]...)
	b = append(b, t.Authority[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	for _, s := range append([]string{t.Node, t.Address}, t.Names...) {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

// Encode returns a token as text: letters, digits and -_ only.
func Encode(body, mac []byte) string {
	return prefix + base64.RawURLEncoding.EncodeToString(append(append([]byte(nil), body...), mac...))
}

// Parse parses a token. It returns the body, and the MAC over it, which it does not verify:
// only the cluster can. There is one text for each token.
func Parse(text string) (t *Token, body, mac []byte, err error) {
	encoded, ok := strings.CutPrefix(text, prefix)
	if !ok || len(text) > MaxText || strings.ContainsAny(encoded, "\r\n") { // which the decoder ignores
		return nil, nil, nil, ErrMalformed
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) < fixed+MACSize || raw[0] != format {
		return nil, nil, nil, ErrMalformed
	}
	body, mac = raw[:len(raw)-MACSize], raw[len(raw)-MACSize:]
	t = &Token{Generation: binary.BigEndian.Uint32(body[1:])}
	rest := body[5:]
	rest = rest[copy(t.Cluster[:], rest):]
	rest = rest[copy(t.ID[:], rest):]
	rest = rest[copy(t.Authority[:], rest):]
	seconds := binary.BigEndian.Uint64(rest)
	if seconds > 1<<40 { // no overflow below
		return nil, nil, nil, ErrMalformed
	}
	t.Expires, rest = time.Unix(int64(seconds), 0), rest[8:]
	var texts []string
	for len(rest) > 0 {
		if len(rest) < 2 || len(texts) >= 2+MaxNames {
			return nil, nil, nil, ErrMalformed
		}
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; n == 0 || n > len(rest) {
			return nil, nil, nil, ErrMalformed
		}
		texts, rest = append(texts, string(rest[:n])), rest[n:]
	}
	if len(texts) < 2 || len(texts[0]) > maxNode || len(texts[1]) > maxAddr {
		return nil, nil, nil, ErrMalformed
	}
	t.Node, t.Address, t.Names = texts[0], texts[1], texts[2:]
	for _, n := range t.Names {
		if len(n) > MaxName {
			return nil, nil, nil, ErrMalformed
		}
	}
	return t, body, mac, nil
}
