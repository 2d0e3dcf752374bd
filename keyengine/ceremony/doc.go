// Package ceremony lets operators initialise the cluster, which creates the shares of its
// unseal key, unseal a node with a threshold of these shares, and seal it. On an unsealed
// node, the same threshold lets the root user of an account in: the break-glass ceremony. Each
// share is encrypted to the node that it is for, decrypted into locked memory, and wiped when
// the ceremony ends, whatever its outcome. Ceremonies are in the memory of one node: a restart
// forgets them, and the shares that two nodes have do not add up. Events on a sealed node are
// recorded once it is unsealed.
package ceremony
