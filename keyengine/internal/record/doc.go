// Package record has what was decided committed to the replicated log. A record is an audit
// entry, the changes that it makes, and what has to hold for it: the read set. [Recorder] is
// the one way there; what it returns without an error was accepted.
package record
