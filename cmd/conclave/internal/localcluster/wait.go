package localcluster

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/health"
)

// Poll calls done until it returns true or an error, or ctx ends.
func Poll(ctx context.Context, done func() (bool, error)) error {
	wait := 2 * time.Millisecond
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(wait*3/2, 100*time.Millisecond)
	}
}

// WaitReady waits until the node with this health port serves. Without a port, it
// returns at once.
func WaitReady(ctx context.Context, ops string) error {
	if ops == "" {
		return nil
	}
	if err := waitFor(ctx, ops, "/readyz", func() error { return nil }); err != nil {
		return fmt.Errorf("the server did not become ready: %w", err)
	}
	return nil
}

// waitFor queries one of a node's health paths until it answers with 200, ended
// returns an error because it never will, or ctx ends.
func waitFor(ctx context.Context, ops, path string, ended func() error) error {
	return Poll(ctx, func() (bool, error) {
		if err := ended(); err != nil {
			return false, err
		}
		_, code, err := health.State(ctx, ops, path)
		return err == nil && code == http.StatusOK, nil
	})
}

// whenLed makes a call to a cluster that was just started, and repeats it as long as it fails
// because the cluster has no leader yet, or a node is missing. tooEarly recognises such errors.
func whenLed(ctx context.Context, call func() error, tooEarly func(error) bool) error {
	return Poll(ctx, func() (bool, error) {
		err := call()
		if err != nil && tooEarly(err) {
			return false, nil
		}
		return err == nil, err
	})
}
