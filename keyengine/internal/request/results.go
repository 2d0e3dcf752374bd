package request

import (
	"context"
	"errors"
)

// Results keeps the results of slow steps of a request, such as generating an RSA key or
// calling an external key store. A request is evaluated again if its read set has changed,
// the last time while it holds up the log, and must not repeat these steps. It is not safe
// for concurrent use; a request is evaluated by one goroutine.
type Results struct{ made map[string]made }

// made is the result of one step.
type made struct {
	value []byte
	err   error
}

type resultsKey struct{}

// ErrOutside is the error of an evaluation that would have to call something outside the
// cluster while it holds up the log. It is never recorded or returned to callers.
var ErrOutside = errors.New("the request needs an answer from an external key store first")

// resultsContext is a context with Results. Since every request needs one, it is a single
// allocation.
type resultsContext struct {
	context.Context
	results Results
}

// Value returns the Results for their key, and otherwise the parent's value.
func (c *resultsContext) Value(key any) any {
	if key == (resultsKey{}) {
		return &c.results
	}
	return c.Context.Value(key)
}

// WithResults adds Results to a request's context. The caller must wipe them. If the
// context has Results already, it is returned unchanged, with nil.
func WithResults(ctx context.Context) (context.Context, *Results) {
	if ctx.Value(resultsKey{}) != nil {
		return ctx, nil
	}
	c := &resultsContext{Context: ctx}
	return c, &c.results
}

// Wipe clears the results.
func (o *Results) Wipe() {
	if o == nil {
		return
	}
	for _, m := range o.made {
		clear(m.value)
	}
}

// Once runs a slow step, or returns its result from an earlier evaluation of the same
// request. The result is a copy, which the caller must wipe.
func (ev *Evaluation) Once(make func() ([]byte, error)) ([]byte, error) {
	m := remembered(ev, "", make)
	return append([]byte(nil), m.value...), m.err
}

// Outside is Once for calls to something outside the cluster. The name must include
// everything that the result depends on. Errors are kept too, so that the next evaluation
// has the same outcome. No call is made while the log is held up: Outside then returns
// ErrOutside, and the leader makes the call before it evaluates again (see exclusive in
// keyengine).
func (ev *Evaluation) Outside(name string, ask func() ([]byte, error)) ([]byte, error) {
	if o, _ := ev.Ctx.Value(resultsKey{}).(*Results); ev.Ctx.Value(newestState{}) != nil {
		if o == nil {
			return nil, ErrOutside
		}
		if _, ok := o.made[name]; !ok {
			return nil, ErrOutside
		}
	}
	m := remembered(ev, name, ask)
	return append([]byte(nil), m.value...), m.err
}

func remembered(ev *Evaluation, name string, make func() ([]byte, error)) made {
	o, _ := ev.Ctx.Value(resultsKey{}).(*Results)
	if o != nil {
		if m, ok := o.made[name]; ok {
			return m
		}
	}
	var m made
	m.value, m.err = make()
	if o != nil {
		if o.made == nil {
			o.made = map[string]made{}
		}
		o.made[name] = m
	}
	return m
}
