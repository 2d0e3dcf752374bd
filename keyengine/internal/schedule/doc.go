// Package schedule does what happens to keys by itself when its time has come: deletion,
// rotation, expiry of imported material. The log refuses what is early, so a clock that runs
// ahead does no harm.
package schedule
