// Package ops has the operations that manage keys, each a function of an evaluation and an
// input, and the table of all operations.
package ops
