// Package raftend has the futures of Raft end when Raft does. Once hashicorp/raft is shut
// down, it does not answer what still waits in its queues: who waits for such a future
// would wait for ever.
package raftend

import (
	"context"
	"reflect"

	"github.com/hashicorp/raft"
)

// End is closed once Raft has ended: its Shutdown is over, and it answers nothing more.
type End chan struct{}

// Bind has a future that Raft does not answer end with raft.ErrRaftShutdown when e is
// closed. It is to be called before anybody waits for the future.
//
// Raft's futures have a field for such a channel, but Raft sets it for a few kinds of
// requests only, and gives the others out as interfaces without it.
func (e End) Bind(f raft.Future) {
	v := reflect.ValueOf(f)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return // one that is answered already
	}
	if field := v.Elem().FieldByName("ShutdownCh"); field.IsValid() && field.CanSet() && field.Type() == reflect.TypeFor[chan struct{}]() {
		field.Set(reflect.ValueOf((chan struct{})(e)))
	}
}

// Await waits for a future of Raft, which knows no contexts.
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
