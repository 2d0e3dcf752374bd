package keymat

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// The ciphertexts of keys in custom key stores have format 1, suite 2: a message of suite 1
// that was encrypted again outside the cluster.
//
//	format(1) suite(2) cell(8) key(16) version(16) iv-size(1) metadata-size(1)
//	iv(12 or 16) tag(16) metadata(0 to 20) body mac(32)
//
// The outer encryption authenticates format…version ([OuterAAD]). The MAC, with a key that
// [Derive] makes from the key material (label "outer"), covers everything before it and the
// encryption context. A ciphertext that the cluster did not create, that was changed, or
// that has another context is therefore refused here and never sent to the store. Every
// ciphertext that can be decrypted has a single form.
const (
	outerSuite = 2
	// MaxOuterMetadata is the maximum length of the store's own data.
	MaxOuterMetadata = 20

	outerIVLong  = 16
	outerFixed   = 2 // the sizes
	offOuter     = offSalt
	offOuterIV   = offOuter + outerFixed
	minOuter     = offOuterIV + gcmNonce + gcmTag + MessageOverhead + 1 + sha256.Size
	labelOuter   = "outer"
	outerMACSize = sha256.Size
)

// Outer is a message as encrypted by the store.
type Outer struct {
	Body     []byte // as long as the message
	IV       []byte // 12 or 16 bytes
	Tag      []byte // 16 bytes
	Metadata []byte // at most MaxOuterMetadata bytes
}

// OuterAAD returns the additional data of the outer encryption.
func OuterAAD(h Header) []byte {
	b := make([]byte, offOuter)
	b[0] = messageFormat
	binary.BigEndian.PutUint16(b[offSuite:], outerSuite)
	copy(b[offCell:], h.Cell[:])
	copy(b[offKey:], h.Key[:])
	copy(b[offVersion:], h.Version[:])
	return b
}

// JoinOuter returns the ciphertext of a message that was encrypted by the store. material
// and context are those of the message.
func JoinOuter(material []byte, h Header, o *Outer, context map[string]string) ([]byte, error) {
	if len(material) != KeySize {
		return nil, fmt.Errorf("%w: %d bytes, need %d", ErrMaterial, len(material), KeySize)
	}
	blob := append(OuterAAD(h), byte(len(o.IV)), byte(len(o.Metadata)))
	for _, part := range [][]byte{o.IV, o.Tag, o.Metadata, o.Body} {
		blob = append(blob, part...)
	}
	blob = append(blob, make([]byte, outerMACSize)...)
	if len(o.IV) != gcmNonce && len(o.IV) != outerIVLong || len(o.Tag) != gcmTag || len(o.Metadata) > MaxOuterMetadata ||
		len(o.Body) <= MessageOverhead || len(blob) > MaxMessage {
		return nil, fmt.Errorf("%w: an outer encryption of %d bytes, IV %d, tag %d, metadata %d", ErrSize, len(o.Body), len(o.IV), len(o.Tag), len(o.Metadata))
	}
	copy(blob[len(blob)-outerMACSize:], outerMAC(material, blob, context))
	return blob, nil
}

// ParseOuterHeader reads which key a ciphertext of suite 2 belongs to, without
// authenticating it.
func ParseOuterHeader(blob []byte) (Header, error) {
	if len(blob) < minOuter || len(blob) > MaxMessage ||
		blob[0] != messageFormat || binary.BigEndian.Uint16(blob[offSuite:]) != outerSuite {
		return Header{}, ErrCiphertext
	}
	return Header{
		Cell:    [8]byte(blob[offCell:]),
		Key:     [16]byte(blob[offKey:]),
		Version: [16]byte(blob[offVersion:]),
	}, nil
}

// SplitOuter reverses JoinOuter, with the same material and encryption context. It returns
// ErrCiphertext for everything that may be wrong with blob or context.
func SplitOuter(material, blob []byte, context map[string]string) (*Outer, error) {
	if len(material) != KeySize {
		return nil, fmt.Errorf("%w: %d bytes, need %d", ErrMaterial, len(material), KeySize)
	}
	if _, err := ParseOuterHeader(blob); err != nil {
		return nil, err
	}
	if !hmac.Equal(outerMAC(material, blob, context), blob[len(blob)-outerMACSize:]) {
		return nil, ErrCiphertext
	}
	// The MAC shows that JoinOuter made the ciphertext. The sizes are checked nevertheless,
	// so that a bug there cannot cause a read beyond the end.
	iv, metadata := int(blob[offOuter]), int(blob[offOuter+1])
	rest := blob[offOuterIV : len(blob)-outerMACSize]
	if iv != gcmNonce && iv != outerIVLong || metadata > MaxOuterMetadata || len(rest) <= iv+gcmTag+metadata+MessageOverhead {
		return nil, ErrCiphertext
	}
	o := &Outer{}
	o.IV, rest = rest[:iv:iv], rest[iv:]
	o.Tag, rest = rest[:gcmTag:gcmTag], rest[gcmTag:]
	o.Metadata, o.Body = rest[:metadata:metadata], rest[metadata:]
	return o, nil
}

// outerMAC authenticates the length of the data before the MAC, that data, and the context.
func outerMAC(material, blob []byte, context map[string]string) []byte {
	var key [KeySize]byte
	defer clear(key[:])
	newKDF(material).derive(key[:], labelOuter, blob[:offOuter])
	head := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(blob)), uint32(len(blob)-outerMACSize))
	h := hmac.New(sha256.New, key[:])
	_, _ = h.Write(appendContext(append(head, blob[:len(blob)-outerMACSize]...), context))
	return h.Sum(nil)
}
