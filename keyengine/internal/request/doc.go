// Package request evaluates one request on one state. An [Evaluation] notes what it reads,
// finds keys, decides what the caller may do, and takes the changes; [Evaluate] runs an
// operation with it and makes the record of the outcome. Nothing here has an effect: that
// is for who commits the record.
package request
