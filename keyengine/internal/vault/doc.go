// Package vault holds the keys of one node. It alone decides what is wrapped under which
// key.
//
// The unseal key, which is split into shares, wraps the root key. The root key wraps the
// keyring. The keyring wraps all other secrets: material of KMS keys, secrets of access
// keys and of key stores, private keys in import tokens, the seeds of the keys that sign
// checkpoints and Raft entries, and audit records. The keys of MACs are derived from it:
// for session and grant tokens, list markers, credentials, and messages between nodes.
//
// A [Vault] is closed or open. It is opened with the unseal key by Open, or for a new
// cluster by Initialise and Install. An [Opened] is the content of an open vault. Methods of
// Vault return [ErrSealed] while it is closed. A request may keep an Opened until it ends;
// once the vault is sealed, it gets ErrSealed and never wrong bytes.
//
// The package guarantees the following. Keys in the clear are in the arena's locked memory
// only, and are passed to functions that must neither keep nor change them. A secret that
// was wrapped for one object can be unwrapped for that object only. When Seal returns, all
// keys are wiped, except for those that a function is using, which are wiped when it
// returns. Caches hold nothing that was deleted from the state for longer than until the
// next Sweep.
//
// The vault does not authorise or record anything. That is the engine's task.
package vault
