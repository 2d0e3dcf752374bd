// Package raftlog keeps Raft's log, term and vote on disk and measures how well the disk
// works.
//
// A Store guarantees the following. After a crash at any moment, everything for which
// StoreLogs, Set and SetUint64 had returned nil is still there, or the store does not open.
// A read returns what was stored, byte by byte. After the first failed write the store
// refuses all further operations, since it is unknown what reached the disk. The format is
// described in cluster/DESIGN.md, "The log on the disk".
package raftlog
