package vault

import (
	"fmt"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// WrappedFileKey is the size of a wrapped file key.
const WrappedFileKey = keymat.KeySize + keymat.WrapOverhead

// fileKeyBinding binds a file's key to the hash of its header, which also tells kinds of
// files apart.
func fileKeyBinding(header [32]byte) keymat.Binding {
	return keymat.Binding{Object: header[:], Spec: "BACKUP"}
}

// NewFileKey returns a random key for a file outside of the state, such as a backup, and the
// key wrapped by the settled generation of the keyring and bound to the hash of the file's
// header. Whoever has t shares and the header can unwrap it without the cluster. The
// caller must destroy the key.
func NewFileKey(o *Opened, header [32]byte) (key *keymat.Secret, generation uint32, wrapped []byte, err error) {
	if key, err = o.arena.Random(keymat.KeySize); err != nil {
		return nil, 0, nil, Gone(err)
	}
	err = key.With(func(b []byte) error {
		generation, wrapped, err = o.ring.WrapSettled(keymat.PurposeBackup, fileKeyBinding(header), b)
		return err
	})
	if err != nil {
		key.Destroy()
		return nil, 0, nil, fmt.Errorf("wrapping a file's key: %w", Gone(err))
	}
	return key, generation, wrapped, nil
}

// OpenFileKey reverses NewFileKey. It returns an error that wraps keymat.ErrUnwrap if the
// header or the wrapped key was changed.
func OpenFileKey(o *Opened, header [32]byte, generation uint32, wrapped []byte) (*keymat.Secret, error) {
	if len(wrapped) != WrappedFileKey {
		return nil, keymat.ErrUnwrap
	}
	key, err := o.ring.Unwrap(generation, keymat.PurposeBackup, fileKeyBinding(header), wrapped)
	return key, Gone(err)
}
