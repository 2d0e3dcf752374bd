// Package policy implements the IAM policy language as far as key policies use
// it: it parses a document, lists the principals that it names, and decides
// requests by it.
//
// The package is pure. It reads no clock, does no I/O and keeps no state, so
// the same document and the same request give the same decision on every node
// and at every time. A [Document] never changes after [Parse] and may be used
// by any number of goroutines at once.
//
// What the caller may rely on:
//
//   - What cannot be evaluated is not accepted. Parse refuses, with
//     [ErrUnsupported] and the name of the element, every document that uses
//     Condition, NotPrincipal, NotAction, NotResource, policy variables, or
//     principals other than AWS ones. No element is ever ignored: an ignored
//     Condition would make an Allow wider and an ignored NotAction a Deny
//     narrower than its author intended.
//   - The default is to deny. The zero [Decision], a missing document and a
//     request with an empty or malformed part are all implicit denials.
//   - An explicit Deny that matches wins over everything.
//   - Names are compared byte by byte. Case is ignored only in actions, and
//     only for the letters A to Z. There is no Unicode folding or
//     normalization, so no other character can pass for an ASCII one.
//   - Evaluate allocates nothing, and its time is bounded by the size of the
//     document (at most [MaxKeyPolicySize]) even for the worst patterns.
//
// DESIGN.md explains the choices.
package policy
