package fsm

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// This file has the ids of objects, as they stand in read sets and in the table. The id
// of an object that belongs to an account begins with the account, in five bytes, so
// that the objects of one account are next to each other and accounts are in order. The
// rest has the same form in all accounts:
//
//	account · Region · key            a key, and what a key has one of
//	account · Region · key · grant    a grant
//	account · Region · name           an alias
//	account · name                    a credential, a custom key store, its keys
//	account                           the set of an account's custom key stores
//
// The cluster's record and its nodes belong to no account.

// Account is an AWS account id of 12 digits, as a number.
type Account uint64

const (
	accountDigits = 12
	accountBytes  = 5 // 10^12 is less than 2^40
	accounts      = 1_000_000_000_000
)

// ParseAccount parses an account id, which has exactly 12 digits.
func ParseAccount(s string) (Account, bool) {
	if len(s) != accountDigits {
		return 0, false
	}
	var a Account
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		a = 10*a + Account(c-'0')
	}
	return a, true
}

func (a Account) String() string { return fmt.Sprintf("%0*d", accountDigits, uint64(a)) }

// Valid reports whether the account has at most 12 digits.
func (a Account) Valid() bool { return a < accounts }

// Append appends the account as it stands at the beginning of ids.
func (a Account) Append(b []byte) []byte {
	return append(b, byte(a>>32), byte(a>>24), byte(a>>16), byte(a>>8), byte(a))
}

// CutAccount returns the account that b begins with, and the rest of b.
func CutAccount(b []byte) (a Account, rest []byte, ok bool) {
	if len(b) < accountBytes {
		return 0, nil, false
	}
	for _, c := range b[:accountBytes] {
		a = a<<8 | Account(c)
	}
	return a, b[accountBytes:], a.Valid()
}

// AccountID returns the id of an object of which an account has one.
func AccountID(a Account) []byte { return a.Append(nil) }

// KeyID names a KMS key. The Region is a part of it, as related multi-Region
// keys have the same id.
type KeyID struct {
	Account Account
	Region  string
	ID      [16]byte
}

func (k KeyID) String() string {
	return k.Account.String() + "/" + k.Region + "/" + hex.EncodeToString(k.ID[:])
}

// Bytes returns the id as it stands in read sets and in the table.
func (k KeyID) Bytes() []byte { return append(regional(k.Account, k.Region, len(k.ID)), k.ID[:]...) }

// IDOf returns the id of a key.
func IDOf(k *fsmpb.Key) KeyID {
	return KeyID{Account: Account(k.Account), Region: k.Region, ID: [16]byte(k.Id)}
}

// regional returns the beginning of the id of an object in a Region, with room for
// more bytes.
func regional(a Account, region string, more int) []byte {
	b := make([]byte, 0, accountBytes+2*(len(region)/3+1)+more)
	return appendRegion(a.Append(b), region)
}

// Three characters of a Region are encoded in two bytes, so that ids need no more memory
// with the account than they would without it: in the table, the id of a key in any of
// AWS's Regions fits into 32 bytes. Each character has a number, in the order of the
// characters, and unused places of the last three are 0. There is always at least one of
// those, so no encoded Region is a prefix of another, and they sort as their texts do.
const (
	regionBase = 40
	regionChar = "-0123456789abcdefghijklmnopqrstuvwxyz"
	noChar     = regionBase - 1 // a character that no Region has
)

func appendRegion(b []byte, region string) []byte {
	for end := false; !end; {
		n := 0
		for i := range 3 {
			c := 0
			if i < len(region) {
				if c = 1 + strings.IndexByte(regionChar, region[i]); c == 0 {
					c = noChar
				}
			}
			n = n*regionBase + c
			end = c == 0
		}
		region = region[min(3, len(region)):]
		b = append(b, byte(n>>8), byte(n))
	}
	return b
}

// cutRegion returns the Region that b begins with, and the rest of b.
func cutRegion(b []byte) (region string, rest []byte, ok bool) {
	var text [33]byte
	for n := 0; n+3 <= len(text) && len(b) >= 2; b = b[2:] {
		three := int(b[0])<<8 | int(b[1])
		for _, c := range [...]int{three / (regionBase * regionBase), three / regionBase % regionBase, three % regionBase} {
			switch {
			case c > len(regionChar):
				return "", nil, false
			case c > 0:
				text[n] = regionChar[c-1]
			}
			if n++; c == 0 {
				region = string(text[:n-1])
				return region, b[2:], bytes.Equal(appendRegion(nil, region)[2*((n-1)/3):], b[:2])
			}
		}
	}
	return "", nil, false
}

// named returns the id of an object that has a name and no Region.
func named(a Account, name string) []byte {
	return append(a.Append(make([]byte, 0, accountBytes+len(name))), name...)
}

// AliasID returns the id of an alias.
func AliasID(a Account, region, name string) []byte {
	return append(regional(a, region, len(name)), name...)
}

// GrantID returns the id of a grant: that of its key, then the grant's own 32 bytes.
func GrantID(key KeyID, id []byte) []byte { return append(key.Bytes(), id...) }

// CredentialID returns the id of a credential.
func CredentialID(a Account, id string) []byte { return named(a, id) }

// KeyStoreID returns the id of a custom key store, which is also that of the
// set of its keys.
func KeyStoreID(a Account, store string) []byte { return named(a, store) }

// keyID returns the id of a key, and whether it is valid.
func keyID(account uint64, region string, id []byte) (KeyID, bool) {
	k := KeyID{Account: Account(account), Region: region}
	ok := k.Account.Valid() && len(id) == len(k.ID) && validRegion(region)
	copy(k.ID[:], id)
	return k, ok
}

// parseKeyID parses the result of KeyID.Bytes.
func parseKeyID(b []byte) (KeyID, bool) {
	account, rest, ok := CutAccount(b)
	if !ok {
		return KeyID{}, false
	}
	region, id, ok := cutRegion(rest)
	if !ok {
		return KeyID{}, false
	}
	return keyID(uint64(account), region, id)
}

// keyPart has the fields by which a message names the key that it belongs to.
type keyPart interface {
	GetAccount() uint64
	GetRegion() string
	GetKey() []byte
}

// owning returns the id of the key that a message belongs to, and whether it is valid.
func owning(m keyPart) (KeyID, bool) { return keyID(m.GetAccount(), m.GetRegion(), m.GetKey()) }

// keyBytes returns that id as it stands in the table. It is also the id of an
// object of which a key has one.
func keyBytes(m keyPart) (id []byte, valid bool) {
	k, valid := owning(m)
	return k.Bytes(), valid
}

// ofAccount returns the id of an object that has a name in an account and no Region.
func ofAccount[M interface {
	GetAccount() uint64
	GetId() string
}](id func(Account, string) []byte, m M) ([]byte, bool) {
	a := Account(m.GetAccount())
	return id(a, m.GetId()), a.Valid()
}

func validRegion(r string) bool {
	if len(r) == 0 || len(r) > 32 {
		return false
	}
	for _, c := range []byte(r) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
