// Package cluster makes several nodes act as one. It runs Raft over mutual TLS, carries
// each node's records to the leader and their verdicts back, and stops a node that can no
// longer be trusted from taking part.
//
// It guarantees:
//
//   - A verdict that Propose returns was read from the replicated state machine after a
//     majority of voters had stored the record with fsync. It is never inferred from a
//     role, a lease or a timeout.
//   - A record is applied at most once, no matter how often the network, a change of leader
//     or an overload made the node send it again.
//   - After Barrier returns nil, State contains everything that was committed when Barrier
//     was called.
//   - Gossip is an address book only. No decision depends on it.
//   - A storage error, a diverged state, a newer incarnation of the node or a rolled-back
//     disk stops the node: it leaves the network at once and calls Config.OnFault.
//
// DESIGN.md beside this file explains the parts and the reasons.
package cluster
