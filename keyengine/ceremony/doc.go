// Package ceremony is what operators do with the seal of a node: they initialise the
// cluster, which deals the shares of its unseal key, unseal the node with enough of these,
// and seal it. A share is encrypted to the node that it is for, is in locked memory from
// there on, and is wiped when the ceremony ends, however it ends. What a sealed node cannot
// record is recorded once it is unsealed.
package ceremony
