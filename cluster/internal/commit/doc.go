// Package commit brings the records of all nodes into Raft's log, and back the outcome of
// each. The outline of the pipeline:
//
//  1. Propose checks a record against fsm's decoder and encodes it, once. From here on its
//     bytes travel. The caller leaves it in the queue of its node's Proposer.
//  2. The Proposer (one goroutine a node) forms batches: at once when nothing is in flight,
//     else when a batch is full or its first record has waited long enough. A batch has a
//     number; each is sent until it has its answer, as the same bytes.
//  3. Its Link leads to the leader's Committer: directly on the leader, else over a stream
//     between nodes, which is the cluster package's.
//  4. The Committer puts batches of all nodes into Raft entries, up to two in flight, and
//     has Raft apply them.
//  5. The apply future has the verdicts, which go back over the Link to whoever proposed.
//
// What may be relied on: a caller gets the verdict that the state machine gave, or an
// error that says whether anything was submitted; nothing is guessed. The state machine
// knows a batch by node, incarnation and number, so that sending one again applies nothing
// twice.
package commit
