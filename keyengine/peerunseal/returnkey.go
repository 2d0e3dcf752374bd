package peerunseal

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
)

// KeyFile keeps the return keys of a node. What is saved survives a crash.
type KeyFile interface {
	LoadKeys() ([]byte, error) // nil if there is no file
	SaveKeys(b []byte) error
	RemoveKeys() error
}

const keyFormat = 1

// returnKeys are the return keys of a node, as its file has them. Next is set while it is
// not known whether the state has it already.
type returnKeys struct {
	Format  int    `json:"format"`
	Current []byte `json:"current,omitempty"` // seeds of Ed25519 keys
	Next    []byte `json:"next,omitempty"`
}

func (k *returnKeys) wipe() {
	clear(k.Current)
	clear(k.Next)
}

// loadKeys reads the file. The caller must wipe the result.
func loadKeys(f KeyFile) (*returnKeys, error) {
	b, err := f.LoadKeys()
	defer clear(b)
	k := &returnKeys{Format: keyFormat}
	if err != nil || b == nil {
		return k, err
	}
	if err := json.Unmarshal(b, k); err != nil {
		return nil, errors.New("the file of return keys is damaged")
	}
	if k.Format != keyFormat {
		return nil, fmt.Errorf("the file of return keys has format %d, and this release knows %d", k.Format, keyFormat)
	}
	for _, seed := range [][]byte{k.Current, k.Next} {
		if len(seed) != 0 && len(seed) != ed25519.SeedSize {
			return nil, errors.New("the file of return keys is damaged")
		}
	}
	return k, nil
}

func (k *returnKeys) save(f KeyFile) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	defer clear(b)
	return f.SaveKeys(b)
}

// find calls use with the private key that belongs to a public key, and reports whether the
// file has it.
func (k *returnKeys) find(public []byte, use func(ed25519.PrivateKey)) bool {
	for _, seed := range [][]byte{k.Current, k.Next} {
		if len(seed) != ed25519.SeedSize || len(public) != ed25519.PublicKeySize {
			continue
		}
		key := ed25519.NewKeyFromSeed(seed)
		found := bytes.Equal(publicOf(key), public)
		if found {
			use(key)
		}
		clear(key)
		if found {
			return true
		}
	}
	return false
}

func publicOf(k ed25519.PrivateKey) []byte { return k[ed25519.SeedSize:] }
