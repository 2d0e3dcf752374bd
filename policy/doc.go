// Package policy implements the IAM policy language: it parses documents, lists
// the principals and condition keys that they name, decides requests by them,
// and explains decisions.
//
// The package is pure. It reads no clock, does no I/O and keeps no state: what
// a decision depends on besides the documents, it asks a [Context] for, so the
// same documents, request and answers give the same decision on every node. A
// [Document] never changes after [Parse] and may be used by any number of
// goroutines at once.
//
// What the caller may rely on:
//
//   - What cannot be evaluated is not accepted. Parse refuses a document with
//     an unknown element, operator or kind of principal, a value of the wrong
//     type, or a name that appears twice. Nothing is ever ignored: an ignored
//     Condition would make an Allow wider and an ignored NotAction a Deny
//     narrower than its author intended.
//   - The default is to deny. The zero [Decision], a missing document, one of
//     the wrong kind, and a request with an empty or malformed part are all
//     implicit denials. A condition that cannot be told (several values where
//     one is expected, a value that is not of the operator's type, a variable
//     without a value in what a statement excepts) makes an Allow not match
//     and a Deny match.
//   - An explicit Deny that matches, in any of the policies, wins over
//     everything.
//   - Names are compared byte by byte. Case is ignored only in actions, in
//     condition keys and by the operators that say so, and only for letters
//     that a document can contain. No other character can pass for an ASCII
//     one.
//   - The Context is asked for a key only if the decision depends on it, and
//     for each only once. Of the time, Evaluate tells between which limits the
//     decision stays the same.
//   - Evaluate allocates little or nothing, and its time is bounded by the sizes
//     of the documents and of the values, even for the worst patterns.
//
// DESIGN.md explains the choices. Package lint finds what is valid but probably
// not meant.
package policy
