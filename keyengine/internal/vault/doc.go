// Package vault holds the keys of one node: what is wrapped, and by what, is decided here
// and nowhere else.
//
// The unseal key, which the shares make up, wraps the root key; the root key wraps the
// keyring; and the keyring wraps everything else that is secret: material of KMS keys,
// secrets of access keys and of key stores, private halves of wrapping keys in import
// tokens, the seeds of the keys that sign checkpoints and Raft entries, and audit
// records. The keys of the MACs are derived from it: of session and grant tokens, of list
// markers, of credentials, and of what nodes send each other.
//
// A [Vault] is closed or open. It is opened by Open with the unseal key, or by Found and
// Install for a new cluster, and what it holds while it is open is an [Opened]. Methods of
// Vault return [ErrSealed] while it is closed. A request that keeps an Opened to its end
// sees ErrSealed, and never wrong bytes, from the moment on that the vault is sealed.
//
// What may be relied on: keys in the clear are in the arena's locked memory only, and lent
// to a function that may neither keep nor change them; what is wrapped for one object opens
// for that object only; Seal returns after all of it was wiped, but for what a function has
// on loan, which is wiped when that function returns; caches hold nothing that the state
// has deleted for longer than until the next Sweep.
//
// The vault decides nothing about requests: who may use a key, and what is recorded of it,
// is the engine's to say.
package vault
