// Package simulateops implements the operations of IAM that simulate requests: they say how a
// request would be decided, and by which statements, and which condition keys that depends on.
// The answers are those of the evaluator that also decides requests (package policy).
//
// What a simulation rests on is read and recorded like everything else. The simulation itself
// follows when the record has been committed, as it may take a while.
package simulateops
