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
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ErrSealed is the answer of a sealed node to everything that needs a key.
var ErrSealed = kmsapi.Errorf(kmsapi.ErrUnavailable, "This node is sealed. Send the request to an unsealed node, or have the custodians unseal this one.")

const (
	// signingKeys bounds the derived signing keys of access keys that are kept.
	signingKeys = 1024
	// openers bounds the keys kept for reading sealed audit records.
	openers = 64

	// A key that seals audit records is replaced after so many or so long, so that
	// one key in the clear opens little.
	sealerRecords = 65_536
	sealerAge     = time.Minute

	// destroyedFor is how long the material of a destroyed key is looked for again:
	// longer than any request that began before lasts.
	destroyedFor = 5 * time.Minute
)

// Vault is where this node's keys are: closed, it holds none; opened by the
// custodians, it holds the keyring and a bounded number of keys under it, all of
// them in locked memory. It prints as [redacted] and is safe for concurrent use.
type Vault struct {
	arena *keymat.Arena
	now   func() time.Time

	opened atomic.Pointer[Opened]
	mu     sync.Mutex // held while opened is replaced

	destroyed struct {
		sync.Mutex
		keys map[fsm.KeyID]time.Time // when they were
	}
}

// Opened is what a vault holds while it is open. A request that began with one
// may find it wiped under its hands: everything in it then fails, and nothing
// reads as zeros.
type Opened struct {
	arena      *keymat.Arena
	ended      chan struct{} // closed by Wipe
	end        sync.Once
	ring       *keymat.Keyring
	materials  *keymat.Cache // of KMS keys
	signing    *keymat.Cache // SigV4 signing keys
	identities *bounded[*fsmpb.Credential, *Known]
	tokens     *bounded[[32]byte, Session] // verified, by the hash of the token
	openers    *bounded[auditKey, *keymat.BodySealer]

	sealing atomic.Pointer[sealing]
	sealer  sync.Mutex // held while sealing is replaced

	// What signs for this node: see SignOrigin.
	origin           *keymat.Secret
	originGeneration uint32
	originCluster    *fsmpb.Cluster

	unregister []func() // takes the caches from those that the arena asks for room
}

// New returns a closed vault. now is the time; mustLock refuses memory that the system
// may swap out.
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
		identities: newBounded[*fsmpb.Credential, *Known](4096),
		tokens:     newBounded[[32]byte, Session](4096),
		openers:    newBounded[auditKey, *keymat.BodySealer](openers),
	}
	// Keys that are unwrapped again in microseconds give way to what has no room.
	o.unregister = append(o.unregister, arena.OnFull(o.materials.Shrink), arena.OnFull(o.signing.Shrink))
	return o
}

// Arena is the locked memory of everything that this node has in the clear.
func (v *Vault) Arena() *keymat.Arena { return v.arena }

// Install opens the vault. It reports false, and takes nothing over, when it is
// open already.
func (v *Vault) Install(o *Opened) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.opened.CompareAndSwap(nil, o)
}

// Seal closes the vault and wipes what it held. It reports whether it was open.
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

// Wipe wipes everything. The keyring goes first: the caches note what they are
// about to unwrap before they do, so whatever got past the keyring is seen by
// the purge, and nothing can be unwrapped into them afterwards.
func (o *Opened) Wipe() {
	o.ring.Wipe()
	o.materials.Purge()
	o.signing.Purge()
	o.identities.clear()
	o.tokens.clear()
	o.openers.clear()
	o.origin.Destroy()
	o.sealing.Store(nil)
	o.end.Do(func() {
		close(o.ended)
		for _, f := range o.unregister {
			f()
		}
	})
}

// Ended is closed once everything was wiped.
func (o *Opened) Ended() <-chan struct{} { return o.ended }

// Sealed reports whether the vault is closed.
func (v *Vault) Sealed() bool { return v.opened.Load() == nil }

// Current is the open vault's content, or ErrSealed.
func (v *Vault) Current() (*Opened, error) {
	if o := v.opened.Load(); o != nil {
		return o, nil
	}
	return nil, ErrSealed
}

// Close seals the vault for good and gives its memory back.
func (v *Vault) Close() error {
	v.Seal()
	return v.arena.Close()
}

// Gone translates the failures of keys that were wiped while in use, as the node
// was sealed meanwhile, and of keys for which there is no room.
func Gone(err error) error {
	if errors.Is(err, keymat.ErrWiped) || errors.Is(err, keymat.ErrDestroyed) || errors.Is(err, keymat.ErrArenaClosed) {
		return ErrSealed
	}
	if errors.Is(err, keymat.ErrArenaFull) {
		return ErrNoRoom
	}
	return err
}

// ErrNoRoom is the answer when the keys in use at this moment fill the memory that
// key material may take.
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
		o.identities.clear()
		o.tokens.clear()
		return
	}
	for _, id := range ev.Destroyed {
		o.materials.EvictKey(id.ID)
	}
}

// Sweep removes what requests that began before a change may have put into the
// caches after it: the material of destroyed keys, and the signing keys of
// credentials that are no more. Run calls it every second.
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
	o.identities.drop(func(c *fsmpb.Credential) bool {
		if newest, _ := s.Credential(fsm.Account(c.Account), c.Id); newest == c && c.Active {
			return false
		}
		o.signing.EvictKey(credentialCacheKey(c.Id))
		return true
	})
}

// CachedKeys is how many versions of keys' material are in memory in the clear.
func (v *Vault) CachedKeys() int {
	o := v.opened.Load()
	if o == nil {
		return 0
	}
	return o.materials.Stats().Entries
}

// MAC authenticates data that leaves this cluster's unsealed nodes and comes
// back to any of them, such as list markers. purpose keeps uses apart. It is
// made with the keyring's newest generation: what has to outlive a new
// generation names its own.
func (v *Vault) MAC(purpose string, data []byte) ([32]byte, error) {
	o, err := v.Current()
	if err != nil {
		return [32]byte{}, err
	}
	return o.mac(o.ring.Newest(), purpose, data)
}

// mac is MAC by the generation that is named.
func (o *Opened) mac(generation uint32, purpose string, data []byte) ([32]byte, error) {
	key, err := o.ring.DeriveMAC(generation, keymat.PurposeSession)
	if err != nil {
		return [32]byte{}, Gone(err)
	}
	msg := make([]byte, 0, len(purpose)+1+len(data))
	msg = append(msg, purpose...) // a constant without a zero byte
	msg = append(msg, 0)
	tag, err := key.Sum(append(msg, data...))
	return tag, Gone(err)
}

const redacted = "[redacted]"

func (*Vault) String() string              { return redacted }
func (*Vault) GoString() string            { return redacted }
func (*Vault) Format(f fmt.State, _ rune)  { _, _ = io.WriteString(f, redacted) }
func (*Vault) LogValue() slog.Value        { return slog.StringValue(redacted) }
func (*Opened) String() string             { return redacted }
func (*Opened) GoString() string           { return redacted }
func (*Opened) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }
func (*Opened) LogValue() slog.Value       { return slog.StringValue(redacted) }
