package keymat

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

var (
	// ErrGeneration is returned for a keyring generation that does not exist or cannot be
	// added.
	ErrGeneration = errors.New("no such keyring generation")
	// ErrWiped is returned by a keyring, and by the keys derived from it, after it has been
	// wiped. A concurrent use may return ErrDestroyed, which ErrWiped wraps.
	ErrWiped = fmt.Errorf("keyring has been wiped: %w", ErrDestroyed)
	// ErrPurpose is returned for a purpose that keyrings do not support.
	ErrPurpose = errors.New("unknown purpose")
)

// Keyring holds the key encryption keys of one cluster by generation, from 1. The newest
// one writes; all of them read. It is formatted as [redacted] and is safe for concurrent
// use.
type Keyring struct {
	redacted
	arena   *Arena
	cluster [16]byte

	mu      sync.RWMutex
	keks    map[uint32]*Secret
	oldest  uint32
	newest  uint32
	settled uint32       // see Settled; 0 for the newest
	wiped   *atomic.Bool // shared with derived keys
}

// NewKeyring returns a keyring without generations.
func NewKeyring(a *Arena, cluster [16]byte) *Keyring {
	return &Keyring{arena: a, cluster: cluster, keks: make(map[uint32]*Secret), wiped: new(atomic.Bool)}
}

// Generate adds a random generation, one above the newest, and returns its number. It is
// durable only once the result of [Keyring.WrapGeneration] is.
func (k *Keyring) Generate() (uint32, error) {
	kek, err := k.arena.Random(KeySize)
	if err != nil {
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.add(k.newest+1, kek); err != nil {
		kek.Destroy()
		return 0, err
	}
	return k.newest, nil
}

// Add adds a generation and takes ownership of kek. On failure, kek still belongs to the
// caller.
func (k *Keyring) Add(generation uint32, kek *Secret) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.add(generation, kek)
}

func (k *Keyring) add(generation uint32, kek *Secret) error {
	switch {
	case k.wiped.Load():
		return ErrWiped
	case generation == 0:
		return fmt.Errorf("%w: 0", ErrGeneration)
	case k.keks[generation] != nil:
		return fmt.Errorf("%w: generation %d exists already", ErrGeneration, generation)
	case kek.Len() != KeySize:
		return fmt.Errorf("%w: a key of %d bytes, not %d", ErrSize, kek.Len(), KeySize)
	}
	k.keks[generation] = kek
	k.newest = max(k.newest, generation)
	if k.oldest == 0 || generation < k.oldest {
		k.oldest = generation
	}
	return nil
}

// Load unwraps a generation that [Keyring.WrapGeneration] wrapped and adds it.
func (k *Keyring) Load(root *Secret, generation uint32, wrapped []byte) error {
	kek, err := UnwrapKEK(k.arena, root, k.cluster, generation, wrapped)
	if err != nil {
		return fmt.Errorf("keyring generation %d: %w", generation, err)
	}
	if err := k.Add(generation, kek); err != nil {
		kek.Destroy()
		return err
	}
	return nil
}

// WrapGeneration returns a generation's key, wrapped under the root key for storage.
func (k *Keyring) WrapGeneration(root *Secret, generation uint32) ([]byte, error) {
	kek, err := k.kek(generation)
	if err != nil {
		return nil, err
	}
	return WrapKEK(root, k.cluster, generation, kek)
}

// Newest returns the newest generation, or 0 if there is none.
func (k *Keyring) Newest() uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.newest
}

// Oldest returns the oldest generation, or 0 if there is none. Generations are never removed,
// so all unsealed nodes have the same one at all times.
func (k *Keyring) Oldest() uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.oldest
}

// Settled returns the generation for what leaves the node and is not in the state, such as
// tokens and messages: the newest that all unsealed nodes have, as far as they do not lag far
// behind. It is the newest one unless [Keyring.Settle] has set another.
func (k *Keyring) Settled() uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.settled != 0 {
		return k.settled
	}
	return k.newest
}

// Settle sets the generation that Settled returns.
func (k *Keyring) Settle(generation uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wiped.Load() {
		return ErrWiped
	}
	if k.keks[generation] == nil {
		return fmt.Errorf("%w: %d", ErrGeneration, generation)
	}
	k.settled = generation
	return nil
}

// Generations returns the generations, oldest first.
func (k *Keyring) Generations() []uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	out := make([]uint32, 0, len(k.keks))
	for g := range k.keks {
		out = append(out, g)
	}
	slices.Sort(out)
	return out
}

func (k *Keyring) kek(generation uint32) (*Secret, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.wiped.Load() {
		return nil, ErrWiped
	}
	kek := k.keks[generation]
	if kek == nil {
		return nil, fmt.Errorf("%w: %d", ErrGeneration, generation)
	}
	return kek, nil
}

// WrapFor wraps plaintext with the newest generation, which it returns to be stored with
// the blob. It sets b's format, purpose, cluster and generation. It refuses a plaintext
// that is empty or longer than MaxSecret, and returns ErrZero for one that is all zeros:
// such key material must be refused when it is imported.
func (k *Keyring) WrapFor(p Purpose, b Binding, plaintext []byte) (generation uint32, blob []byte, err error) {
	return k.wrap(k.Newest(), p, b, plaintext)
}

// WrapSettled is WrapFor with the generation of [Keyring.Settled].
func (k *Keyring) WrapSettled(p Purpose, b Binding, plaintext []byte) (generation uint32, blob []byte, err error) {
	return k.wrap(k.Settled(), p, b, plaintext)
}

func (k *Keyring) wrap(generation uint32, p Purpose, b Binding, plaintext []byte) (_ uint32, blob []byte, err error) {
	if !p.known() {
		return 0, nil, fmt.Errorf("%w: %q", ErrPurpose, p)
	}
	kek, err := k.kek(generation)
	if err != nil {
		return 0, nil, err
	}
	b.Format, b.Purpose, b.Cluster, b.Generation = WrapFormat, p, k.cluster, generation
	blob, err = Wrap(kek, b, plaintext)
	return generation, blob, err
}

// Unwrap unwraps a blob of WrapFor into the arena, and material of KMS keys into the part
// of it for such material. It sets b as WrapFor does.
func (k *Keyring) Unwrap(generation uint32, p Purpose, b Binding, blob []byte) (*Secret, error) {
	if !p.known() {
		return nil, fmt.Errorf("%w: %q", ErrPurpose, p)
	}
	kek, err := k.kek(generation)
	if err != nil {
		return nil, err
	}
	b.Format, b.Purpose, b.Cluster, b.Generation = 0, p, k.cluster, generation
	var into filler = k.arena
	if p == PurposeMaterial {
		into = k.arena.Material()
	}
	return unwrapInto(into, kek, b, blob)
}

// Wipe destroys all generations and makes every MAC key and BodySealer of the keyring
// unusable. The keyring cannot be used again; unsealing creates a new one. Secrets that it
// unwrapped belong to their owners.
func (k *Keyring) Wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wiped.Store(true)
	for _, kek := range k.keks {
		kek.Destroy()
	}
	clear(k.keks)
	k.oldest, k.newest, k.settled = 0, 0, 0
}
