// Package wire has the encoding of Raft entries, batches and records, to and from the
// messages of fsmpb.
//
// What is encoded here decodes here, on every node of a release that knows the schema, and
// to the same. Decoding refuses whatever it does not know, where protobuf would pass it
// over in silence: a node that applied a part of an entry would have another state than
// the others.
package wire
