// Package peerunseal has the tests of peer-assisted unsealing with whole nodes: those that
// restart are unsealed by the others, and nobody else is.
package peerunseal
