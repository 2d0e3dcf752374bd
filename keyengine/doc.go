// Package keyengine implements the KMS engine. Every operation on a key goes through it: it
// is evaluated, a record of the outcome is committed by a majority, and only then is it
// answered.
//
// A request is evaluated on one immutable state (request.Evaluation). The evaluation notes
// every object that the outcome depends on, with its version. This read set is part of the
// record, and apply rejects the record if any of the objects has changed. An answer is
// therefore correct at the position of its record in the log, whichever node gave it, and
// once a call that grants or withdraws authority has returned, every node honours it.
//
// # From request to release
//
//	Engine.Do                    a caller, an operation of the table, an input
//	  limits.allow, hasRoom      refuse a throttled caller, or all if the disk is full
//	  record.Recorder.Commit     evaluates, proposes the record, looks at the verdict
//	    request.Evaluate         on one state, without effect
//	      Evaluation.Admit       is the caller's credential still good?
//	      the Region, the source, the members of the input
//	      the operation          ops, cryptops: read, decide, use keys, collect changes
//	      the record             read set, changes, encrypted audit record
//	    conflict                 an object of the read set has changed: evaluate again
//	  release                    the answer, unless it is too old
//	  onLeader                   after record.MaxTries conflicts: the leader runs exclusive,
//	                             which evaluates and records while nothing else is committed
//
// Everything else that is recorded takes the same path with an event instead of an
// operation (Recorder.CommitEvent): sessions, reads of the audit log, and what the root
// user and operators do. Events on a sealed node wait in record.Pending until they can be
// recorded. Scheduled changes to keys, such as deletion and rotation, are evaluated and
// recorded by the leader (schedule).
//
// # Packages, from the bottom up
//
//	kmsapi              inputs, outputs and errors, with the one schema of members
//	internal/keymat     key material in locked memory
//	internal/vault      the key hierarchy; no other package holds the keyring
//	internal/record     records and how they are committed
//	iam                 the identity of callers
//	internal/request    one evaluation: resolve, authorise, read set, record
//	internal/keystore   custom key stores, which are outside the cluster
//	internal/cryptops   operations that use keys
//	internal/ops        operations that manage keys, and the table of all operations
//	internal/schedule   scheduled changes to keys
//	ceremony            initialising the cluster, sealing and unsealing a node
//	joining             the CA of the nodes' certificates, and join tokens
//	keyengine           Engine: the pipeline above, and forwarding
//
// Keys are in the clear only in internal/vault and internal/keymat, in locked memory, and
// only while the node is unsealed.
package keyengine
