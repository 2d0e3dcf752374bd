// Package ceremony lets operators initialise the cluster, which creates the shares of its
// unseal key, unseal a node with a threshold of these shares, and seal it. Each share is
// encrypted to the node that it is for, decrypted into locked memory, and wiped when the
// ceremony ends, whatever its outcome. Events on a sealed node are recorded once it is
// unsealed.
package ceremony
