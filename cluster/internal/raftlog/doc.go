// Package raftlog keeps Raft's log, term and vote on a disk, and knows how the disk
// fares.
//
// A Store may be relied on for this: what StoreLogs, Set and SetUint64 said was stored is
// there after a crash at any moment, or the store does not open; what is read is what was
// stored, byte by byte; and after the first write that failed it does nothing more, since
// nobody knows what reached the disk. The format is described in cluster/DESIGN.md, "The
// log on the disk".
package raftlog
