// Package raftlogtest damages stored logs for tests.
package raftlogtest

import (
	"bytes"
	"testing"

	"go.etcd.io/bbolt"
)

// Rewrite changes one value in the bbolt file at path, which must not be open, and returns
// the old value.
func Rewrite(t testing.TB, path, bucket string, key []byte, change func([]byte) []byte) (old []byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		old = bytes.Clone(b.Get(key))
		return b.Put(key, change(bytes.Clone(old)))
	})
	if err != nil {
		t.Fatal(err)
	}
	return old
}
