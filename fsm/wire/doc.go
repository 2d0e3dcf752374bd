// Package wire encodes and decodes Raft entries, batches and records, which are
// messages of fsmpb.
//
// What it encodes decodes to the same message on every node whose release knows the
// schema. Decoding refuses anything unknown, where protobuf would silently skip it: a node
// that applied only a part of an entry would have another state than the others.
package wire
