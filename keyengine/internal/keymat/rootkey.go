package keymat

import "encoding/binary"

// WrapRoot wraps the root key under the unseal key, and binds it to the share set of the
// unseal key and to its epoch.
func WrapRoot(unseal, root *Secret, cluster, shareSet [16]byte, epoch uint32) ([]byte, error) {
	return wrapSecret(unseal, rootBinding(cluster, shareSet, epoch), root)
}

// UnwrapRoot reverses WrapRoot. It returns ErrUnwrap for an unseal key that was combined
// from wrong shares, and for another share set.
func UnwrapRoot(a *Arena, unseal *Secret, cluster, shareSet [16]byte, epoch uint32, blob []byte) (*Secret, error) {
	return unwrapKey(a, unseal, rootBinding(cluster, shareSet, epoch), blob)
}

// WrapKEK wraps the key of a keyring generation under the root key.
func WrapKEK(root *Secret, cluster [16]byte, generation uint32, kek *Secret) ([]byte, error) {
	return wrapSecret(root, kekBinding(cluster, generation), kek)
}

// UnwrapKEK reverses WrapKEK.
func UnwrapKEK(a *Arena, root *Secret, cluster [16]byte, generation uint32, blob []byte) (*Secret, error) {
	return unwrapKey(a, root, kekBinding(cluster, generation), blob)
}

func rootBinding(cluster, shareSet [16]byte, epoch uint32) Binding {
	return Binding{
		Purpose: purposeRoot,
		Cluster: cluster,
		Object:  shareSet[:],
		Version: binary.BigEndian.AppendUint32(nil, epoch),
	}
}

func kekBinding(cluster [16]byte, generation uint32) Binding {
	return Binding{Purpose: purposeKEK, Cluster: cluster, Generation: generation}
}

func wrapSecret(key *Secret, b Binding, s *Secret) (blob []byte, err error) {
	err = s.With(func(plain []byte) error {
		blob, err = Wrap(key, b, plain)
		return err
	})
	return blob, err
}

// unwrapKey unwraps a key of the hierarchy, which has KeySize bytes.
func unwrapKey(a *Arena, key *Secret, b Binding, blob []byte) (*Secret, error) {
	if len(blob) != KeySize+WrapOverhead {
		return nil, ErrUnwrap
	}
	return Unwrap(a, key, b, blob)
}
