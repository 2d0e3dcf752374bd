// Package auditlog is the append-only record of everything a cluster answered:
// a Merkle tree (RFC 6962, SHA-256) whose leaves are entries, kept in segment
// files that are byte-identical on all nodes and that an outsider can check with
// nothing but the files and one public key.
//
// What a reader may rely on:
//
//   - Entries are ordered and dense. An entry, once appended, is never changed or
//     removed; appending an index again is a no-op when the entry is the same and
//     stops the log when it is not.
//   - After Sync returns, everything appended before it survives any crash. What
//     was appended since may be lost, whole entries from the end; Raft holds it
//     and replays it. Damage to what was durable is never taken for a torn end:
//     Open refuses it and names the file.
//   - A write that fails stops the log for good, for after a failed write or fsync
//     nobody knows what the disk holds.
//   - A log that lacks history says so (Missing), goes on recording meanwhile, and
//     accepts the missing entries from anyone, because it checks them against the
//     roots in the replicated state before it keeps them.
//   - Every byte read back is checked against its leaf hash before use.
//
// A node relies on a Log for that. Who checks a log from outside relies on package
// auditlog/verify instead, which uses no Log. What both need is here and is a function of
// its input alone: Entry, DecodeFrame, DurableMark, Frontier, Checkpoint, and the checks of
// inclusion and consistency proofs.
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
