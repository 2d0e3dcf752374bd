// Package backup writes, opens and uses backups of a cluster.
//
// A backup holds the whole replicated state at one moment, and the audit log up to there.
// It is encrypted by the keyring, so that an unsealed node can write one at any time. It
// names the share set of its cluster, and as many shares as unseal the cluster open it,
// without the cluster. docs/backup-format.md has the format.
//
// The package guarantees the following. Nothing that a backup contains is returned before
// it is authenticated: a file that was changed in any bit, cut short, or put together from
// several is refused. Whoever cannot unseal the cluster can make no file that its shares
// open. What is read takes a bounded amount of memory beside the state itself. Shares, and
// the keys that follow from them, are in the locked memory of the vault only.
package backup
