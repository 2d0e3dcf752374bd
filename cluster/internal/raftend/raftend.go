// Package raftend makes Raft's futures end when Raft does. After its shutdown
// hashicorp/raft does not answer the requests that are left in its queues, so a caller
// would wait for such a future for ever.
package raftend

import (
	"context"
	"reflect"

	"github.com/hashicorp/raft"
)

// End is closed once Raft has ended: its Shutdown is over, and it answers nothing more.
type End chan struct{}

// Bind makes a future end with raft.ErrRaftShutdown when e is closed before Raft has
// answered. It must be called before any wait for the future.
//
// Raft's futures have a field for such a channel, but Raft sets it for some kinds of
// requests only, and returns the others as interfaces without access to it.
func (e End) Bind(f raft.Future) {
	v := reflect.ValueOf(f)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return // it has been answered already
	}
	if field := v.Elem().FieldByName("ShutdownCh"); field.IsValid() && field.CanSet() && field.Type() == reflect.TypeFor[chan struct{}]() {
		field.Set(reflect.ValueOf((chan struct{})(e)))
	}
}

// Await waits for a future of Raft until ctx ends, since Raft does not support contexts.
func (e End) Await(ctx context.Context, f raft.Future) error {
	e.Bind(f)
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
