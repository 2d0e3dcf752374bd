package seal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// file is a seal whose key is in a file. Whoever reads that file and the state has all keys
// of the cluster. It is read for each use, so the key is not in memory otherwise.
type file struct{ path, name string }

// maxFile bounds the file, in bytes.
const maxFile = 256

func openFile(path string) (Seal, error) {
	f := &file{path: path}
	err := f.use(func(key []byte) error {
		h := sha256.Sum256(append([]byte("conclave seal file v1\x00"), key...))
		f.name = "file:" + hex.EncodeToString(h[:8])
		return nil
	})
	return f, err
}

// use calls fn with the key.
func (f *file) use(fn func(key []byte) error) error {
	return readPrivate(f.path, func(given []byte) error {
		key := make([]byte, maxFile)
		defer clear(key)
		n, err := base64.StdEncoding.Strict().Decode(key, given)
		if err != nil || n != keymat.KeySize || bytes.Equal(key[:n], make([]byte, n)) {
			return fmt.Errorf("seal: %s does not have %d bytes in base64", f.path, keymat.KeySize)
		}
		return fn(key[:n])
	})
}

// readPrivate calls fn with what is in a small file that only its owner can read, without
// space around it. It wipes that afterwards.
func readPrivate(path string, fn func(text []byte) error) error {
	in, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("seal: %s must be a file that only its owner can read", path)
	}
	text := make([]byte, maxFile+1)
	defer clear(text)
	n, err := io.ReadFull(in, text)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("seal: %w", err)
	}
	if n > maxFile {
		return fmt.Errorf("seal: %s has more than %d bytes", path, maxFile)
	}
	return fn(bytes.TrimSpace(text[:n]))
}

// Name implements Seal.
func (f *file) Name() string { return f.name }

// sealSet binds what a file wraps to its purpose, the cluster and the seal.
func sealSet(about Context) (cluster, set [16]byte) {
	c, s := sha256.Sum256([]byte("conclave seal file cluster v1\x00"+about.Cluster)), sha256.Sum256([]byte("conclave seal file name v1\x00"+about.Seal))
	return [16]byte(c[:16]), [16]byte(s[:16])
}

// Wrap implements Seal.
func (f *file) Wrap(_ context.Context, arena *keymat.Arena, key *keymat.Secret, about Context) (wrapped []byte, err error) {
	err = f.use(func(b []byte) error {
		own, err := arena.Store(b) // wipes b
		if err != nil {
			return err
		}
		defer own.Destroy()
		cluster, set := sealSet(about)
		wrapped, err = keymat.WrapRoot(own, key, cluster, set, 0)
		return err
	})
	return wrapped, err
}

// Unwrap implements Seal.
func (f *file) Unwrap(_ context.Context, arena *keymat.Arena, wrapped []byte, about Context) (key *keymat.Secret, err error) {
	err = f.use(func(b []byte) error {
		own, err := arena.Store(b) // wipes b
		if err != nil {
			return err
		}
		defer own.Destroy()
		cluster, set := sealSet(about)
		key, err = keymat.UnwrapRoot(arena, own, cluster, set, 0, wrapped)
		return err
	})
	return key, err
}
