// Package bootstrap brings a node that starts into its cluster. The first nodes found it,
// once; any other start finds out whether the node's disk is the one that the cluster knows.
//
// What may be relied on:
//
//   - First nodes that found a cluster write the same first configuration. A founding that
//     was cut short at any moment can be done again.
//   - A node whose disk is empty or went back is stopped, with ErrWipedDisk or ErrRolledBack,
//     as soon as its own files, a node that answers, or the log show that it had more.
//   - Of what others say against a disk, an unsealed node that knows what the cluster does
//     has the last word. Without one, whoever objects is believed.
//
// cluster/DESIGN.md, "Founding", has the reasons.
package bootstrap
