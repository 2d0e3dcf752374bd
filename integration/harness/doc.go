// Package harness starts whole clusters for tests, breaks them in the ways that
// machines and networks do, and checks what their clients saw against what the
// audit log says.
//
// A cluster runs in the test's process, through cmd/conclave/node, which is what
// main starts, or as processes of the real binary, which can be killed for good.
// Both look the same to a test. A history records calls as their clients saw
// them; a witness check compares it with the audit log read as a sequential
// history.
package harness
