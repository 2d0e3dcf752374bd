// Package keymaterial has the rules for a key's state and the versions of its material: what
// a change of a key may add, replace and remove. Each rule is a sentence for people, and a
// function returns the one that is broken, or "".
package keymaterial

import (
	"bytes"
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// External is the origin of keys whose material is imported.
const External = "EXTERNAL"

// Lost reports whether a key had material that it no longer has. Material that a newer
// generation of the keyring wraps is not lost.
func Lost(was, is *fsmpb.Key) bool {
	for _, m := range was.GetMaterials() {
		kept := slices.ContainsFunc(is.Materials, func(n *fsmpb.Material) bool {
			return bytes.Equal(n.Id, m.Id) && (bytes.Equal(n.Wrapped, m.Wrapped) || len(n.Wrapped) > 0 && n.Generation > m.Generation)
		})
		if len(m.Wrapped) > 0 && !kept {
			return true
		}
	}
	return false
}

// Complete reports whether a key has all imported material that was ever current.
func Complete(k *fsmpb.Key) bool {
	current := false
	for _, m := range k.Materials {
		if !m.Pending && len(m.Wrapped) == 0 {
			return false
		}
		current = current || !m.Pending
	}
	return current
}

// Tokens: an import token that was used is remembered until it has expired.
// Otherwise anybody who saw it could import deleted material again.
func Tokens(was, n *fsmpb.Key, now int64) (broken string) {
	rest := n.UsedTokens
	for _, u := range was.GetUsedTokens() {
		if len(rest) > 0 && bytes.Equal(rest[0].Id, u.Id) && rest[0].Expires == u.Expires {
			rest = rest[1:]
		} else if u.Expires > now {
			return "it removes a used import token that has not expired"
		}
	}
	return ""
}

// Check: a key keeps its material unchanged, and rotations and imports
// append to it. Only imported material can be destroyed by itself. Its identity
// then stays, so that nothing else is imported in its place, unless the material
// was never current: then it may be removed altogether.
func Check(was, n *fsmpb.Key, generation func(uint32) bool) (broken string) {
	rest := n.Materials
	for _, m := range was.GetMaterials() {
		switch {
		case len(rest) > 0 && bytes.Equal(rest[0].Id, m.Id):
			if broken := checkOne(n.Origin, m, rest[0], generation); broken != "" {
				return broken
			}
			rest = rest[1:]
		case n.Origin != External || !m.Pending:
			return "it removes key material"
		}
	}
	for i, m := range n.Materials {
		if len(m.Id) != 16 || slices.ContainsFunc(n.Materials[:i], func(o *fsmpb.Material) bool { return bytes.Equal(o.Id, m.Id) }) {
			return "key material has no id, or the id of other material"
		}
	}
	for _, m := range rest {
		if n.Origin != External && (m.Pending || len(m.Wrapped) == 0) {
			return "it adds generated key material without the material"
		}
		if len(m.Wrapped) > 0 && !generation(m.Generation) {
			return "key material is not wrapped by a generation of the keyring"
		}
	}
	return ""
}

// checkOne checks a version of a key's material against what it was before.
func checkOne(origin string, was, n *fsmpb.Material, generation func(uint32) bool) (broken string) {
	if !bytes.Equal(was.MaterialId, n.MaterialId) || was.Created != n.Created || !bytes.Equal(was.PublicKey, n.PublicKey) {
		return "it changes the identity of key material"
	}
	rotated := was.Pending && !n.Pending
	if was.Pending != n.Pending && !rotated || !rotated && (was.Rotated != n.Rotated || was.OnDemand != n.OnDemand) {
		return "it changes when key material became current"
	}
	same := was.Generation == n.Generation && bytes.Equal(was.Wrapped, n.Wrapped)
	// Material is wrapped again after the keyring got another generation. Whether it is the
	// same material cannot be seen here: it is as long.
	if len(was.Wrapped) > 0 && len(n.Wrapped) == len(was.Wrapped) && n.Generation > was.Generation && generation(n.Generation) {
		same = true
	}
	if origin != External {
		if !same || rotated || was.ValidTo != n.ValidTo || was.Description != n.Description {
			return "it changes generated key material"
		}
		return ""
	}
	switch {
	case same:
	case len(n.Wrapped) == 0: // destroyed
		if n.Generation != 0 || n.ValidTo != 0 {
			return "it deletes imported key material, but not all of it"
		}
	case len(was.Wrapped) > 0:
		return "it replaces imported key material"
	case !generation(n.Generation):
		return "key material is not wrapped by a generation of the keyring"
	}
	return ""
}
