// Package keyengine is the only door to keys. Every operation on a key is
// decided, carried out and recorded here, in that order, and answered only once
// the record of the outcome is committed by a majority.
//
// A request is evaluated on one immutable state (eval), which notes every object
// that the outcome depends on with its version. The record that is committed
// carries that read set, and is refused at apply if any of it has changed. So an
// answer that was given was right at the position of its record in the log,
// whichever node gave it, and callers on any node see authority withdrawn or
// granted as soon as the call that did it has returned.
//
// # From request to release
//
//	Engine.Do                  a caller, an operation of the table, an input
//	  limits.allow, hasRoom    a throttled caller, or a full disk, ends here
//	  evaluate                 on one state, without effect (do.go, eval.go)
//	    eval.admit             is the caller's credential still good?
//	    inRegion, checkSource, Validate, mayGrow
//	    Operation.run          ops_*.go: read, decide, use keys, take changes
//	    newRecord              read set, changes, encrypted audit record (record.go)
//	  commit                   Replica.Propose; settle looks at the verdict
//	    conflict               what was read has changed: evaluate again
//	    accepted               release: the answer, unless it is too old
//	  onLeader                 after maxTries conflicts (forward.go): the leader runs
//	                           exclusive, which evaluates and records while nothing
//	                           else is committed
//
// What is no operation on a key takes the same way with an event in place of an
// operation (commitEvent): sessions, reading the audit log, what root and operators
// do. What a sealed node cannot record waits in pendingEvents. What is due on keys,
// such as deletion and rotation, is evaluated and recorded by the leader in Lead
// (due.go).
//
// Keys in the clear are below internal/vault and internal/keymat, in locked
// memory, and only while the node is unsealed.
package keyengine
