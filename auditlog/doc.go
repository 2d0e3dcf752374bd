// Package auditlog keeps the append-only record of everything that a cluster
// answered: a Merkle tree (RFC 6962, SHA-256) whose leaves are entries. It is
// stored in segment files that are byte-identical on all nodes and that an
// outsider can verify with only the files and one public key.
//
// What a reader may rely on:
//
//   - Entries are ordered and dense. An entry, once appended, is never changed or
//     removed; appending an index again is a no-op when the entry is the same and
//     stops the log when it is not.
//   - After Sync returns, everything appended before it survives any crash. Of
//     what was appended since, whole entries may be lost from the end; Raft has
//     them and replays them. Damage to durable entries is never taken for a torn
//     end: Open refuses it and names the file.
//   - A write that fails stops the log for good, because after a failed write or
//     fsync the content of the disk is unknown.
//   - A log that lacks history reports that (Missing) and continues to record. It
//     accepts the missing entries from anybody, because it checks them against the
//     roots in the replicated state before it keeps them.
//   - Every byte read back is checked against its leaf hash before use.
//
// Log provides this for a node. A log is verified from outside with package
// auditlog/verify, which uses no Log. What both need is in this package too and depends
// only on its input: Entry, DecodeFrame, DurableMark, Frontier, and the verification of inclusion and
// consistency proofs. Package auditlog/checkpoint signs and verifies checkpoints.
//
// The files of a log directory:
//
//	lock                   held while a process has the log open
//	durable                how far the log was fsynced, with the tree up to there
//	checkpoint             newest signed tree head (C2SP tlog-checkpoint)
//	segments/00000000.seg  entries 0 … 65,535
//	pending/<index>.seg    entries after a gap, from that index on
//	tile/<L>/x001/234      256 hashes each (C2SP tlog-tiles), full tiles only
//	tmp/                   nothing of value: removed at start
package auditlog
