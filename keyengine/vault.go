package keyengine

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// errSealed is the answer of a sealed node to everything that needs a key.
var errSealed = kmsapi.Errorf(kmsapi.ErrUnavailable, "This node is sealed. Send the request to an unsealed node, or have the custodians unseal this one.")

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

// vault is where this node's keys are: closed, it holds none; opened by the
// custodians, it holds the keyring and a bounded number of keys under it, all of
// them in locked memory. It prints as [redacted] and is safe for concurrent use.
type vault struct {
	arena *keymat.Arena
	clock Clock

	opened atomic.Pointer[opened]
	mu     sync.Mutex // held while opened is replaced

	destroyed struct {
		sync.Mutex
		keys map[fsm.KeyID]time.Time // when they were
	}
}

// opened is what a vault holds while it is open. A request that began with one
// may find it wiped under its hands: everything in it then fails, and nothing
// reads as zeros.
type opened struct {
	cluster    [16]byte
	ended      chan struct{} // closed by wipe
	end        sync.Once
	ring       *keymat.Keyring
	materials  *keymat.Cache // of KMS keys
	signing    *keymat.Cache // SigV4 signing keys
	identities *bounded[*fsmpb.Credential, *known]
	tokens     *bounded[[32]byte, sessionClaims] // verified, by the hash of the token
	openers    *bounded[auditKey, *keymat.BodySealer]

	sealing atomic.Pointer[sealing]
	sealer  sync.Mutex // held while sealing is replaced

	// What signs for this node: see signOrigin.
	origin           *keymat.Secret
	originGeneration uint32
	originCluster    *fsmpb.Cluster

	unregister []func() // takes the caches from those that the arena asks for room
}

// auditKey names a key that sealed audit records.
type auditKey struct {
	generation uint32
	salt       [16]byte
}

// sealing is the key that seals this node's audit records for now.
type sealing struct {
	key   *keymat.BodySealer
	since time.Time
	left  atomic.Int64
}

// newVault returns a closed vault.
func newVault(cfg Config) (*vault, error) {
	a, err := keymat.Open(0, !cfg.AllowUnlockedMemory)
	if err != nil {
		return nil, err
	}
	if !a.Locked() {
		cfg.Logger.Warn("key memory is not locked: the system may swap keys out")
	}
	v := &vault{arena: a, clock: cfg.Clock}
	v.destroyed.keys = make(map[fsm.KeyID]time.Time)
	return v, nil
}

func newOpened(arena *keymat.Arena, cluster [16]byte, ring *keymat.Keyring) *opened {
	o := &opened{
		cluster:    cluster,
		ended:      make(chan struct{}),
		ring:       ring,
		materials:  keymat.NewCache(0),
		signing:    keymat.NewCache(signingKeys),
		identities: newBounded[*fsmpb.Credential, *known](4096),
		tokens:     newBounded[[32]byte, sessionClaims](4096),
		openers:    newBounded[auditKey, *keymat.BodySealer](openers),
	}
	// Keys that are unwrapped again in microseconds give way to what has no room.
	o.unregister = append(o.unregister, arena.OnFull(o.materials.Shrink), arena.OnFull(o.signing.Shrink))
	return o
}

// install opens the vault. It reports false, and takes nothing over, when it is
// open already.
func (v *vault) install(o *opened) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.opened.CompareAndSwap(nil, o)
}

// seal closes the vault and wipes what it held. It reports whether it was open.
func (v *vault) seal() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	o := v.opened.Swap(nil)
	if o == nil {
		return false
	}
	o.wipe()
	return true
}

// wipe wipes everything. The keyring goes first: the caches note what they are
// about to unwrap before they do, so whatever got past the keyring is seen by
// the purge, and nothing can be unwrapped into them afterwards.
func (o *opened) wipe() {
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

func (v *vault) sealed() bool { return v.opened.Load() == nil }

// current is the open vault's content, or errSealed.
func (v *vault) current() (*opened, error) {
	if o := v.opened.Load(); o != nil {
		return o, nil
	}
	return nil, errSealed
}

// close seals the vault for good and gives its memory back.
func (v *vault) close() error {
	v.seal()
	return v.arena.Close()
}

// gone translates the failures of keys that were wiped while in use, as the node
// was sealed meanwhile, and of keys for which there is no room.
func gone(err error) error {
	if errors.Is(err, keymat.ErrWiped) || errors.Is(err, keymat.ErrDestroyed) || errors.Is(err, keymat.ErrArenaClosed) {
		return errSealed
	}
	if errors.Is(err, keymat.ErrArenaFull) {
		return errNoRoom
	}
	return err
}

// errNoRoom is the answer when the keys in use at this moment fill the memory that
// key material may take.
var errNoRoom = kmsapi.Errorf(kmsapi.ErrUnavailable, "Too many keys are in use on this node at this moment. Retry the request, or send it to another node.")

// follow keeps the caches in step with the state. It does not block.
func (v *vault) follow(_ *fsm.State, ev fsm.Events) {
	if len(ev.Destroyed) > 0 {
		now := v.clock.Now()
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

// sweep removes what requests that began before a change may have put into the
// caches after it: the material of destroyed keys, and the signing keys of
// credentials that are no more. Run calls it every second.
func (v *vault) sweep(s *fsm.State, now time.Time) {
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

// cachedKeys is how many versions of keys' material are in memory in the clear.
func (v *vault) cachedKeys() int {
	o := v.opened.Load()
	if o == nil {
		return 0
	}
	return o.materials.Stats().Entries
}

// newMaterial makes the first or next version of a symmetric key's material: 32
// random bytes, wrapped for exactly that key.
func (v *vault) newMaterial(k *fsmpb.Key, created int64) (*fsmpb.Material, error) {
	secret, err := v.arena.Material().Random(keymat.KeySize)
	if err != nil {
		return nil, gone(err)
	}
	return v.wrapMaterial(k, created, secret)
}

// givenMaterial wraps material that was made elsewhere as a version of a key's. It
// wipes b.
func (v *vault) givenMaterial(k *fsmpb.Key, created int64, b []byte) (*fsmpb.Material, error) {
	secret, err := v.arena.Material().Store(b)
	if err != nil {
		return nil, gone(err)
	}
	return v.wrapMaterial(k, created, secret)
}

// wrapMaterial wraps a secret for a key, and destroys it.
func (v *vault) wrapMaterial(k *fsmpb.Key, created int64, secret *keymat.Secret) (*fsmpb.Material, error) {
	defer secret.Destroy()
	version := make([]byte, 16)
	_, _ = rand.Read(version) // never fails: crypto/rand ends the process instead
	m := &fsmpb.Material{Id: version, Created: created}
	return m, secret.With(func(b []byte) error {
		m.MaterialId = keyMaterialID(k, b)
		return v.wrapAgain(k, m, b)
	})
}

// wrapAgain wraps material for a key under the keyring's newest generation, as
// the version that m names.
func (v *vault) wrapAgain(k *fsmpb.Key, m *fsmpb.Material, b []byte) error {
	o, err := v.current()
	if err != nil {
		return err
	}
	id := fsm.IDOf(k)
	m.Generation, m.Wrapped, err = o.ring.WrapFor(keymat.PurposeMaterial, materialBinding(id, m.Id, k.Spec, k.Usage, k.Origin), b)
	if err != nil {
		return fmt.Errorf("wrapping material of key %v: %w", id, gone(err))
	}
	return nil
}

// keyMaterialID is AWS's KeyMaterialId, a function of the key and the material.
// Keys of one multi-Region set have the same.
func keyMaterialID(k *fsmpb.Key, material []byte) []byte {
	h := sha256.New()
	_, _ = io.WriteString(h, "conclave key material id v1\x00")
	_, _ = h.Write(k.Id)
	_, _ = h.Write(material)
	return h.Sum(nil)
}

func materialBinding(id fsm.KeyID, version []byte, spec, usage, origin string) keymat.Binding {
	return keymat.Binding{Object: id.Bytes(), Version: version, Spec: spec, Usage: usage, Origin: origin}
}

// withMaterial lends a version of a key's material in the clear to use, which
// may neither keep nor change it.
func (v *vault) withMaterial(k *fsmpb.Key, m *fsmpb.Material, use func(material []byte) error) error {
	o, err := v.current()
	if err != nil {
		return err
	}
	if len(k.Id) != 16 || len(m.Id) != 16 {
		return fmt.Errorf("key %x has material %x of no known form", k.Id, m.Id)
	}
	id := fsm.IDOf(k)
	var used error
	cached := keymat.NewCacheID(id.ID, [16]byte(m.Id), m.Wrapped, k.Region, k.Spec, k.Usage, k.Origin, strconv.Itoa(int(m.Generation)))
	err = o.materials.Use(cached, func() (*keymat.Secret, error) {
		return o.ring.Unwrap(m.Generation, keymat.PurposeMaterial, materialBinding(id, m.Id, k.Spec, k.Usage, k.Origin), m.Wrapped)
	}, func(b []byte) error {
		used = use(b)
		return nil
	})
	if err != nil {
		return fmt.Errorf("unwrapping material of key %v: %w", id, gone(err))
	}
	return used
}

// sealBody seals an audit record in the clear.
func (v *vault) sealBody(requestID [16]byte, record []byte) (body []byte, generation uint32, salt [16]byte, commitment auditlog.Hash, err error) {
	o, err := v.current()
	if err != nil {
		return nil, 0, salt, commitment, err
	}
	return o.sealBody(v.clock.Now(), requestID, record)
}

func (o *opened) sealBody(now time.Time, requestID [16]byte, record []byte) (body []byte, generation uint32, salt [16]byte, commitment auditlog.Hash, err error) {
	key, err := o.sealingKey(now)
	if err != nil {
		return nil, 0, salt, commitment, gone(err)
	}
	body, c, err := key.Seal(requestID, record)
	if err != nil {
		return nil, 0, salt, commitment, gone(err)
	}
	return body, key.Generation(), key.Salt(), c, nil
}

// sealingKey is the key to seal one record with.
func (o *opened) sealingKey(now time.Time) (*keymat.BodySealer, error) {
	if s := o.sealing.Load(); s.good(now) {
		return s.key, nil
	}
	o.sealer.Lock()
	defer o.sealer.Unlock()
	if s := o.sealing.Load(); s.good(now) {
		return s.key, nil
	}
	key, err := o.ring.NewAuditKey()
	if err != nil {
		return nil, err
	}
	s := &sealing{key: key, since: now}
	s.left.Store(sealerRecords - 1)
	// The last key is not wiped: records may be just being sealed with it.
	o.sealing.Store(s)
	return key, nil
}

// good takes one record of what the key may seal. A clock that was set back
// counts as too long.
func (s *sealing) good(now time.Time) bool {
	if s == nil {
		return false
	}
	age := now.Sub(s.since)
	return age >= 0 && age < sealerAge && s.left.Add(-1) >= 0
}

// openBody opens the sealed record of an entry and checks it against the
// entry's commitment.
func (v *vault) openBody(e auditlog.Entry) ([]byte, error) {
	o, err := v.current()
	if err != nil {
		return nil, err
	}
	id := auditKey{e.Generation, e.Salt}
	key, ok := o.openers.get(id)
	if !ok {
		if key, err = o.ring.AuditKey(e.Generation, e.Salt); err != nil {
			return nil, fmt.Errorf("audit entry %d: %w", e.Index, gone(err))
		}
		o.openers.put(id, key)
	}
	record, err := key.Open(e.RequestID, e.Commitment, e.Body)
	if err != nil {
		return nil, fmt.Errorf("audit entry %d: %w", e.Index, gone(err))
	}
	return record, nil
}

// mac authenticates data that leaves this cluster's unsealed nodes and comes
// back to any of them, such as list markers. purpose keeps uses apart. It is
// made with the keyring's newest generation: what has to outlive a new
// generation names its own.
func (v *vault) mac(purpose string, data []byte) ([32]byte, error) {
	o, err := v.current()
	if err != nil {
		return [32]byte{}, err
	}
	return o.mac(o.ring.Newest(), purpose, data)
}

func (o *opened) mac(generation uint32, purpose string, data []byte) ([32]byte, error) {
	key, err := o.ring.DeriveMAC(generation, keymat.PurposeSession)
	if err != nil {
		return [32]byte{}, gone(err)
	}
	msg := make([]byte, 0, len(purpose)+1+len(data))
	msg = append(msg, purpose...) // a constant without a zero byte
	msg = append(msg, 0)
	tag, err := key.Sum(append(msg, data...))
	return tag, gone(err)
}

const redacted = "[redacted]"

func (*vault) String() string              { return redacted }
func (*vault) GoString() string            { return redacted }
func (*vault) Format(f fmt.State, _ rune)  { _, _ = io.WriteString(f, redacted) }
func (*vault) LogValue() slog.Value        { return slog.StringValue(redacted) }
func (*opened) String() string             { return redacted }
func (*opened) GoString() string           { return redacted }
func (*opened) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }
func (*opened) LogValue() slog.Value       { return slog.StringValue(redacted) }
