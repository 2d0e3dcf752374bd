package vault

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/bounded"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ErrSealed is returned by a sealed node for everything that needs a key.
var ErrSealed = kmsapi.Errorf(kmsapi.ErrUnavailable, "This node is sealed. Send the request to an unsealed node, or have the custodians unseal this one.")

const (
	// signingKeys is the number of derived signing keys that are cached.
	signingKeys = 1024
	// openers is the number of keys that are cached for decrypting audit records.
	openers = 64

	// A key that encrypts audit records is replaced after this many records or this much
	// time, so that a compromised key affects few records.
	sealerRecords = 65_536
	sealerAge     = time.Minute

	// destroyedFor is how long the material of a destroyed key is evicted again, which is
	// longer than any request takes that began before.
	destroyedFor = 5 * time.Minute
)

// Vault holds this node's keys. While closed it holds none; while open it holds the keyring
// and a limited number of keys under it, all in locked memory. It is formatted as
// [redacted] and is safe for concurrent use.
type Vault struct {
	arena *keymat.Arena
	now   func() time.Time

	opened atomic.Pointer[Opened]
	mu     sync.Mutex // held while opened is replaced

	destroyed struct {
		sync.Mutex
		keys map[fsm.KeyID]time.Time // when each was destroyed
	}
}

// Opened is the content of an open vault. It may be wiped while a request uses it: its
// methods then fail, and never return zeros.
type Opened struct {
	arena      *keymat.Arena
	ended      chan struct{} // closed by Wipe
	end        sync.Once
	ring       *keymat.Keyring
	materials  *keymat.Cache // material of KMS keys
	signing    *keymat.Cache // SigV4 signing keys
	identities *bounded.Map[*fsmpb.Credential, *Known]
	tokens     *bounded.Map[[32]byte, Session] // verified tokens, by hash
	openers    *bounded.Map[auditKey, *keymat.BodySealer]

	sealing atomic.Pointer[sealing]
	sealer  sync.Mutex // held while sealing is replaced

	// The key that signs for this node; see SignOrigin.
	origin           *keymat.Secret
	originGeneration uint32
	originCluster    *fsmpb.Cluster

	adopted atomic.Pointer[fsmpb.Cluster] // the record that the keyring is in step with; see Adopt

	unregister []func() // unregisters the caches from arena.OnFull
}

// New returns a closed vault. now returns the time. If mustLock is set, New fails if memory
// cannot be locked.
func New(now func() time.Time, mustLock bool) (*Vault, error) {
	a, err := keymat.Open(0, mustLock)
	if err != nil {
		return nil, err
	}
	v := &Vault{arena: a, now: now}
	v.destroyed.keys = make(map[fsm.KeyID]time.Time)
	return v, nil
}

func newOpened(arena *keymat.Arena, ring *keymat.Keyring) *Opened {
	o := &Opened{
		arena:      arena,
		ended:      make(chan struct{}),
		ring:       ring,
		materials:  keymat.NewCache(0),
		signing:    keymat.NewCache(signingKeys),
		identities: bounded.New[*fsmpb.Credential, *Known](4096),
		tokens:     bounded.New[[32]byte, Session](4096),
		openers:    bounded.New[auditKey, *keymat.BodySealer](openers),
	}
	// Cached keys can be unwrapped again in microseconds, so evict them when the arena is
	// full.
	o.unregister = append(o.unregister, arena.OnFull(o.materials.Shrink), arena.OnFull(o.signing.Shrink))
	return o
}

// Arena returns the locked memory for all secrets of this node.
func (v *Vault) Arena() *keymat.Arena { return v.arena }

// Install opens the vault. If it is open already, Install returns false and the caller
// keeps o.
func (v *Vault) Install(o *Opened) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.opened.CompareAndSwap(nil, o)
}

// Seal closes the vault and wipes its content. It reports whether the vault was open.
func (v *Vault) Seal() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	o := v.opened.Swap(nil)
	if o == nil {
		return false
	}
	o.Wipe()
	return true
}

// Wipe wipes all keys. The keyring comes first. A cache notes an entry before it unwraps
// the key for it, so Purge finds whatever was unwrapped before the keyring was wiped, and
// nothing can be unwrapped afterwards.
func (o *Opened) Wipe() {
	o.ring.Wipe()
	o.materials.Purge()
	o.signing.Purge()
	o.identities.Clear()
	o.tokens.Clear()
	o.openers.Clear()
	o.origin.Destroy()
	o.sealing.Store(nil)
	o.end.Do(func() {
		close(o.ended)
		for _, f := range o.unregister {
			f()
		}
	})
}

// Ended returns a channel that is closed once everything has been wiped.
func (o *Opened) Ended() <-chan struct{} { return o.ended }

// Sealed reports whether the vault is closed.
func (v *Vault) Sealed() bool { return v.opened.Load() == nil }

// Current returns the content of the open vault, or ErrSealed.
func (v *Vault) Current() (*Opened, error) {
	if o := v.opened.Load(); o != nil {
		return o, nil
	}
	return nil, ErrSealed
}

// Close seals the vault for good and releases its memory.
func (v *Vault) Close() error {
	v.Seal()
	return v.arena.Close()
}

// Gone translates errors of keys that were wiped while in use, because the node was sealed,
// into ErrSealed, and that of a full arena into ErrNoRoom.
func Gone(err error) error {
	if errors.Is(err, keymat.ErrWiped) || errors.Is(err, keymat.ErrDestroyed) || errors.Is(err, keymat.ErrArenaClosed) {
		return ErrSealed
	}
	if errors.Is(err, keymat.ErrArenaFull) {
		return ErrNoRoom
	}
	return err
}

// ErrNoRoom is returned when the keys in use fill the locked memory.
var ErrNoRoom = kmsapi.Errorf(kmsapi.ErrUnavailable, "Too many keys are in use on this node at this moment. Retry the request, or send it to another node.")

// Follow keeps the caches in step with the state. It does not block.
func (v *Vault) Follow(ev fsm.Events) {
	if len(ev.Destroyed) > 0 {
		now := v.now()
		v.destroyed.Lock()
		for _, id := range ev.Destroyed {
			v.destroyed.keys[id] = now
		}
		v.destroyed.Unlock()
	}
	o := v.opened.Load()
	if o == nil {
		return
	}
	if ev.Restored {
		o.materials.Purge()
		o.signing.Purge()
		o.identities.Clear()
		o.tokens.Clear()
		return
	}
	for _, id := range ev.Destroyed {
		o.materials.EvictKey(id.ID)
	}
}

// Sweep removes entries that requests may have added to the caches after the state changed:
// material of destroyed keys, and signing keys of credentials that no longer exist. It must
// be called about every second.
func (v *Vault) Sweep(s *fsm.State, now time.Time) {
	o := v.opened.Load()
	v.destroyed.Lock()
	for id, at := range v.destroyed.keys {
		if o != nil {
			o.materials.EvictKey(id.ID)
		}
		if now.Sub(at) > destroyedFor {
			delete(v.destroyed.keys, id)
		}
	}
	v.destroyed.Unlock()
	if o == nil {
		return
	}
	o.identities.Drop(func(c *fsmpb.Credential) bool {
		if newest, _ := s.Credential(fsm.Account(c.Account), c.Id); newest == c && c.Active {
			return false
		}
		o.signing.EvictKey(credentialCacheKey(c.Id))
		return true
	})
}

// CachedKeys returns the number of versions of key material that are in memory in the
// clear.
func (v *Vault) CachedKeys() int {
	o := v.opened.Load()
	if o == nil {
		return 0
	}
	return o.materials.Stats().Entries
}

// MAC authenticates data that unsealed nodes issue and later accept on any node, such as
// list markers. purpose separates its uses. The MAC is made with the oldest generation of
// the keyring, so that all nodes make the same one and it stays valid.
func (v *Vault) MAC(purpose string, data []byte) ([32]byte, error) {
	o, err := v.Current()
	if err != nil {
		return [32]byte{}, err
	}
	return o.mac(o.ring.Oldest(), purpose, data)
}

// mac is MAC with a given generation.
func (o *Opened) mac(generation uint32, purpose string, data []byte) ([32]byte, error) {
	key, err := o.ring.DeriveMAC(generation, keymat.PurposeSession)
	if err != nil {
		return [32]byte{}, Gone(err)
	}
	msg := make([]byte, 0, len(purpose)+1+len(data))
	msg = append(msg, purpose...) // a constant without zero bytes
	msg = append(msg, 0)
	tag, err := key.Sum(append(msg, data...))
	return tag, Gone(err)
}

const redacted = "[redacted]"

// String and the other formatting methods return "[redacted]".
func (*Vault) String() string             { return redacted }
func (*Vault) GoString() string           { return redacted }
func (*Vault) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }
func (*Vault) LogValue() slog.Value       { return slog.StringValue(redacted) }

// String and the other formatting methods return "[redacted]".
func (*Opened) String() string             { return redacted }
func (*Opened) GoString() string           { return redacted }
func (*Opened) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }
func (*Opened) LogValue() slog.Value       { return slog.StringValue(redacted) }
