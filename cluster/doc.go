// Package cluster makes several nodes one: it runs Raft over mutual TLS, brings
// each node's records to the leader and their verdicts back, and keeps a node
// that cannot be trusted any more from taking part.
//
// What a caller may rely on:
//
//   - A verdict that Propose returns was read from the replicated state machine
//     after a majority of voters had stored the record with fsync. A verdict is
//     never guessed from a role, a lease or a timeout.
//   - A record is applied at most once, however often the network, a leader
//     change or an overload made the node send it again.
//   - After Barrier returns nil, State contains everything that was committed
//     when Barrier was called.
//   - Nothing is decided from gossip: it is an address book.
//   - A storage error, a diverged state, a newer incarnation of the node or a
//     disk that was rolled back stops the node: it leaves the network at once
//     and Config.OnFault is told.
//
// DESIGN.md beside this file explains the parts and the reasons.
package cluster
