// Package commit brings the records of all nodes into Raft's log and the outcome of each
// record back to its node. This is the pipeline:
//
//  1. Propose checks a record with fsm's decoder and encodes it, once. From here on only
//     its bytes are passed on. The caller leaves it in the queue of its node's Proposer.
//  2. The Proposer, one goroutine on each node, forms batches: at once when nothing is in
//     flight, otherwise when a batch is full or its first record has waited long enough.
//     Each batch has a number and is sent, always as the same bytes, until it has its
//     answer.
//  3. Its Link leads to the leader's Committer: directly on the leader, otherwise over a
//     stream between nodes, which package peers provides.
//  4. The Committer puts batches of all nodes into Raft entries, up to two in flight, and
//     passes them to Raft.
//  5. The apply future contains the verdicts, which go back over the Link to the callers of
//     Propose.
//
// It guarantees that a caller gets the verdict of the state machine, or an error that says
// whether anything was submitted. Nothing is guessed. The state machine identifies a batch
// by node, incarnation and number, so that a batch which is sent again is not applied
// twice.
package commit
