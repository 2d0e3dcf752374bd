// Package bootstrap brings a starting node into its cluster. The first nodes bootstrap the
// cluster, once. At any other start the package finds out whether the node's disk is the
// one that the cluster knows.
//
// It guarantees:
//
//   - First nodes that bootstrap a cluster write the same first configuration. A bootstrap
//     that was interrupted at any moment can be repeated.
//   - A node whose disk is empty or was rolled back is stopped, with ErrWipedDisk or
//     ErrRolledBack, as soon as its own files, a node that answers, or the log show that it
//     had more data.
//   - Of the objections to a disk, those of an unsealed node that is up to date are
//     decisive. Without one, any objection is believed.
//
// cluster/DESIGN.md, "Bootstrap", has the reasons.
package bootstrap
