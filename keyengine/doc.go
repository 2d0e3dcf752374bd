// Package keyengine is the only door to keys. Every operation on a key is
// decided, carried out and recorded here, in that order, and answered only once
// the record of the outcome is committed by a majority.
//
// A request is evaluated on one immutable state (request.Evaluation), which notes
// every object that the outcome depends on with its version. The record that is
// committed carries that read set, and is refused at apply if any of it has changed.
// So an answer that was given was right at the position of its record in the log,
// whichever node gave it, and callers on any node see authority withdrawn or
// granted as soon as the call that did it has returned.
//
// # From request to release
//
//	Engine.Do                    a caller, an operation of the table, an input
//	  limits.allow, hasRoom      a throttled caller, or a full disk, ends here
//	  record.Recorder.Commit     has it decided, proposes the record, looks at the verdict
//	    request.Evaluate         on one state, without effect
//	      Evaluation.Admit       is the caller's credential still good?
//	      the Region, the source, the members of the input
//	      the operation          ops, cryptops: read, decide, use keys, take changes
//	      the record             read set, changes, encrypted audit record
//	    conflict                 what was read has changed: evaluate again
//	  release                    the answer, unless it is too old
//	  onLeader                   after record.MaxTries conflicts: the leader runs exclusive,
//	                             which evaluates and records while nothing else is committed
//
// What is no operation on a key takes the same way with an event in place of an
// operation (Recorder.CommitEvent): sessions, reading the audit log, what root and
// operators do. What a sealed node cannot record waits in record.Pending. What is due
// on keys, such as deletion and rotation, is evaluated and recorded by the leader
// (schedule).
//
// # Packages, from below
//
//	kmsapi              inputs, outputs and errors, with the one schema of members
//	internal/keymat     key material in locked memory
//	internal/vault      the key hierarchy; nobody else holds the keyring
//	internal/record     records and how they are committed
//	iam                 who callers are
//	internal/request    one evaluation: resolve, authorise, read set, record
//	internal/keystore   what is asked outside of the cluster
//	internal/cryptops   operations that use keys
//	internal/ops        operations that manage keys, and the table of all
//	internal/schedule   what happens to keys by itself
//	ceremony            what operators do with a node's seal
//	keyengine           Engine: the pipeline above, and forwarding
//
// Keys in the clear are below internal/vault and internal/keymat, in locked
// memory, and only while the node is unsealed.
package keyengine
