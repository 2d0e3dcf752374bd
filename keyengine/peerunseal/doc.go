// Package peerunseal is the engine's part of peer-assisted unsealing: how the unsealed nodes
// of a cluster give the keyring to one that restarts. Package cluster/internal/peerunseal is
// the other part, which checks which node it is and carries the messages.
//
// A node that restarts begins a session: it makes a key pair in locked memory, and says of
// which peers it needs how many. From the session and the keyring, which all of them hold,
// the peers derive the same session key and the same polynomial, without talking to each
// other, and each gives its own share of the key, and the keyring wrapped by it. Whoever has
// fewer shares than the cluster's setting asks for learns nothing. A second question of the
// same session is answered with the same share, and one of another session, with other peers
// or another key, with one that does not fit.
//
// What that protects from: a peer that is wrong about the cluster (because it is cut off,
// say, or has a defect) cannot unseal a node alone. It does not protect from a peer that was
// taken over, since each unsealed node holds the keyring anyway. The root key is never sent:
// no node keeps it, and a node that was unsealed by its peers cannot change shares.
//
// It guarantees:
//
//   - The record of a release is committed before the part leaves, on a state in which the
//     cluster's record and the node's registration are those that the peer has checked.
//   - A node that was not unsealed before, or that was sealed by an operator, is not helped:
//     it has no return key.
//   - A return key is replaced after each unsealing, so a copy of a node's files is worth
//     nothing after that.
//   - The keyring and the shares are in the clear in locked memory only.
package peerunseal
