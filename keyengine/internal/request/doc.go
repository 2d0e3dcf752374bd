// Package request evaluates one request on one state. An [Evaluation] notes what it reads,
// finds keys, decides what the caller may do, and collects changes. [Evaluate] runs an
// operation with it and builds the record of the outcome. Nothing takes effect until the
// caller of Evaluate commits the record.
package request
