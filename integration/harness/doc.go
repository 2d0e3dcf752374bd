// Package harness starts whole clusters for tests, injects the faults that machines and
// networks have, and compares what the clients saw with the audit log.
//
// A cluster runs in the test's process, through cmd/conclave/node, which main uses as well,
// or as processes of the real binary, which can be killed. Both look the same to a test. A
// history records calls as their clients saw them, and a witness check compares it with the
// audit log, read as a sequential history.
package harness
