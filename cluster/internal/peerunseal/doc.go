// Package peerunseal is the cluster's part of peer-assisted unsealing: unsealed nodes give a
// node that restarts, and is sealed, what unseals it.
//
// The node that restarts asks its peers (AskUnseal). It gets no secret in the answer. A peer
// that is willing opens a connection of its own to the address that the node has in the
// Raft configuration, asks it there to prove, for a nonce, that it is the one who asked
// (ChallengeUnseal), and sends its part over the same connection (DeliverUnseal). So a copy
// of a node's disk that runs anywhere else gets nothing, and is noticed.
//
// A peer gives a part only if all of this holds:
//
//   - The cluster has peer-assisted unsealing enabled, and the peer is unsealed and has
//     applied everything that was committed before the question.
//   - The node is a member, and the certificates at both ends of the connection are of the
//     nodes that they should be of.
//   - No process with that node's identity has proved lately that it is unsealed, and none
//     does while the peer answers.
//   - The node's incarnation is newer than the registered one, its disk held, when it
//     started, at least what the node is known to have stored, and it has the state of the
//     cluster at an index beyond that.
//   - The peer's engine agrees; see package keyengine/peerunseal. It checks the node's
//     return key, and commits the record of the release before the part leaves.
//
// What a caller could do with such questions is bounded: there is one of a node at a time,
// and few a minute.
package peerunseal
