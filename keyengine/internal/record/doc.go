// Package record builds records and commits them to the replicated log. A record consists
// of an audit record, the changes that it makes, and its read set: the objects that must
// not have changed. Everything is committed through a [Recorder]. If it returns without an
// error, the record was accepted.
package record
