package fsm

import (
	"encoding/hex"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/regionid"
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
// The cluster's record, its nodes and its accounts belong to no account. iamkinds.go has the
// ids of users and the like.

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

func (a Account) String() string {
	var b [20]byte // of the largest number
	i := len(b)
	for n := uint64(a); n > 0 || i > len(b)-accountDigits; n /= 10 {
		i--
		b[i] = byte('0' + n%10)
	}
	return string(b[i:])
}

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
	return regionid.Append(a.Append(b), region)
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
	ok := k.Account.Valid() && len(id) == len(k.ID) && regionid.Valid(region)
	copy(k.ID[:], id)
	return k, ok
}

// parseKeyID parses the result of KeyID.Bytes.
func parseKeyID(b []byte) (KeyID, bool) {
	account, rest, ok := CutAccount(b)
	if !ok {
		return KeyID{}, false
	}
	region, id, ok := regionid.Cut(rest)
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
