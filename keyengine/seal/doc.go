// Package seal unseals nodes by keys outside of the cluster, instead of by the custodians:
// a key of a KMS that speaks AWS's protocol, a key in a token of a PKCS #11 module (build tag
// pkcs11), the TPM of the machine (build tag tpm), or a file.
//
// The state has, for each seal of the cluster, a random key that the seal has wrapped, and the
// root key wrapped by that key. A seal is added on a node that is configured with it, when the
// custodians unseal that node: their threshold is needed, and nothing else has the root key.
// Every node that is configured with the seal is then unsealed by it when it starts. The
// custodians' shares stay valid. They unseal a node whose seal is gone, and add another one.
//
// It guarantees:
//
//   - The service behind a seal learns neither the root key nor any other key of the cluster,
//     and what it wraps is bound to the cluster and the seal's name.
//   - The root key is in locked memory only, while the custodians unseal the node.
//   - A seal that fails or hangs keeps neither the node from starting nor the custodians from
//     unsealing it. It is tried again, ever less often, but a PIN that a token refused is not.
//   - A seal is in the state only with the record of it, and none is used after it was
//     removed.
package seal
