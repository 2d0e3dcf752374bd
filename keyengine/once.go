package keyengine

import "context"

// once keeps what one request must not make twice because it takes long, such as
// an RSA key: a request is evaluated again when what it read has changed, and the
// last time while the cluster waits for it.
type once struct{ made []byte }

type onceKey struct{}

// withOnce gives a request room for such a thing; done wipes it.
func withOnce(ctx context.Context) (context.Context, func()) {
	if ctx.Value(onceKey{}) != nil {
		return ctx, func() {}
	}
	o := new(once)
	return context.WithValue(ctx, onceKey{}, o), func() { clear(o.made) }
}

// once makes something, or returns what an earlier evaluation of the same request
// made. The result is a copy that the caller wipes.
func (ev *eval) once(make func() ([]byte, error)) ([]byte, error) {
	o, _ := ev.ctx.Value(onceKey{}).(*once)
	if o == nil {
		return make()
	}
	if o.made == nil {
		var err error
		if o.made, err = make(); err != nil {
			return nil, err
		}
	}
	return append([]byte(nil), o.made...), nil
}
