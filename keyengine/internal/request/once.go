package request

import (
	"context"
	"errors"
)

// Results keeps what one request must not make twice because it takes long, such as
// an RSA key or the answer of an external key store: a request is evaluated again
// when what it read has changed, and the last time while the cluster waits for it.
// It is not safe for concurrent use; one request is evaluated by one goroutine.
type Results struct{ made map[string]made }

// made is what came of something that was made.
type made struct {
	value []byte
	err   error
}

type resultsKey struct{}

// ErrOutside is the outcome of an evaluation on the leader while the log is held,
// which would have to ask something outside of the cluster. It is never recorded
// and reaches no caller.
var ErrOutside = errors.New("an answer from outside of the cluster is needed")

// resultsContext is a request's context with its Results. Every request has one, so it
// is a context by itself and not put together from several.
type resultsContext struct {
	context.Context
	results Results
}

func (c *resultsContext) Value(key any) any {
	if key == (resultsKey{}) {
		return &c.results
	}
	return c.Context.Value(key)
}

// WithResults gives a request room for such things, which the caller wipes. A request
// that has it already gets no other: then the Results are nil.
func WithResults(ctx context.Context) (context.Context, *Results) {
	if ctx.Value(resultsKey{}) != nil {
		return ctx, nil
	}
	c := &resultsContext{Context: ctx}
	return c, &c.results
}

// Wipe overwrites what was kept.
func (o *Results) Wipe() {
	if o == nil {
		return
	}
	for _, m := range o.made {
		clear(m.value)
	}
}

// Once makes something, or returns what an earlier evaluation of the same request
// made. The result is a copy that the caller wipes.
func (ev *Evaluation) Once(make func() ([]byte, error)) ([]byte, error) {
	m := remembered(ev, "", make)
	return append([]byte(nil), m.value...), m.err
}

// Outside is once for what is asked outside of the cluster; name has everything
// that the answer depends on. Failures are remembered too, so that the evaluation
// that is recorded comes to the same. While the cluster waits nothing is asked:
// then the leader asks in between (exclusive in keyengine), and evaluates again.
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
