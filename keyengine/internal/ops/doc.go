// Package ops implements the operations that manage keys, each as a function of an
// evaluation and an input, and has the table of all operations.
package ops
