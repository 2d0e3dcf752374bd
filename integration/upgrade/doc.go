// Package upgrade has the tests of rolling upgrades and restarts: a cluster of the release before this
// one is upgraded node by node, goes back, and is upgraded for good, while clients use it.
package upgrade
