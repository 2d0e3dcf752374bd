// Package schedule makes the scheduled changes to keys: deletion, rotation and the expiry
// of imported material. The log rejects a change that comes too early, so a fast clock does
// no harm.
package schedule
