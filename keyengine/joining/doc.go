// Package joining lets a new machine join the cluster with a token, without files that
// somebody made for it.
//
// An operator gives the CA of the nodes' certificates to the cluster, whose keyring wraps its
// key, and makes a token for one node. The machine makes a key, which it keeps, and sends the
// public key with the token. The leader adds the node and certifies the key.
//
// It guarantees:
//
//   - Only the cluster makes tokens, and each step is recorded before it is answered.
//   - A token is for one node id and one peer address, which never were a member before, and
//     for a limited time. It is used once: whatever the answer was, it certifies no second key.
//   - The certificate has the names of the token. The request for it decides about nothing but
//     the public key.
//   - Whoever has no valid token learns nothing from the answer about why it is refused.
//   - The CA's key is in the clear only in locked memory, and on the heap while it signs.
package joining
