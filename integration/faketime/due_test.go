package faketime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	timeDay = 24 * time.Hour
	// period of the automatic rotation: the shortest that there is.
	period = 90 * timeDay
)

// estate is a key for each thing that happens by itself, and a token that ends, all
// at the same time.
type estate struct {
	*world
	due      time.Time
	rotated  string // rotates at due, and every period after
	doomed   string // is to be deleted at due
	expiring string // has imported material that expires at due
	empty    string // waits for an import, with token until due
	token    *kmsapi.ImportKeyMaterialInput
	blobs    [][]byte // ciphertexts of rotated, in order of versions
	blob     []byte   // of expiring
	probing  sync.WaitGroup
	probed   chan struct{}
}

// settle makes an estate and lets time pass until shortly before it is due.
func (w *world) settle() *estate {
	w.t.Helper()
	n := w.nodes[0]
	e := &estate{world: w, probed: make(chan struct{})}
	e.rotated, e.doomed = w.newKey(n, "AWS_KMS"), w.newKey(n, "AWS_KMS")
	e.expiring, e.empty = w.newKey(n, "EXTERNAL"), w.newKey(n, "EXTERNAL")
	mustAsk[struct{}](w, n, "EnableKeyRotation", &kmsapi.EnableKeyRotationInput{KeyId: &e.rotated, RotationPeriodInDays: new(int32(90))})
	e.due = e.nextRotation(n)
	in, _ := w.forImport(n, e.expiring, 1)
	in.ExpirationModel, in.ValidTo = nil, &e.due
	mustAsk[kmsapi.ImportKeyMaterialOutput](w, n, "ImportKeyMaterial", in)
	e.blobs = [][]byte{e.encrypt(n, e.rotated)}
	e.blob = e.encrypt(n, e.expiring)
	// What is promised counts from the next whole second.
	e.leap(e.due.Add(-7*timeDay - time.Second/2))
	for _, n := range w.nodes { // so that each has the material in memory
		e.encrypt(n, e.doomed)
	}
	d := mustAsk[kmsapi.ScheduleKeyDeletionOutput](w, n, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &e.doomed, PendingWindowInDays: new(int32(7))})
	e.isDue("deletion", *d.DeletionDate)
	e.leap(e.due.Add(-timeDay - time.Second/2))
	var p *kmsapi.GetParametersForImportOutput
	e.token, p = w.forImport(n, e.empty, 2)
	e.isDue("the token's end", *p.ParametersValidTo)
	e.leap(e.due.Add(-8 * time.Second))
	return e
}

// isDue makes sure that the estate is due as a whole.
func (e *estate) isDue(what string, at time.Time) {
	e.t.Helper()
	if !at.Equal(e.due) {
		e.t.Fatalf("%s is due at %v, the rotation at %v", what, at, e.due)
	}
}

func (e *estate) nextRotation(n *worldNode) time.Time {
	e.t.Helper()
	return *mustAsk[kmsapi.GetKeyRotationStatusOutput](e.world, n, "GetKeyRotationStatus", &kmsapi.GetKeyRotationStatusInput{KeyId: &e.rotated}).NextRotationDate
}

func (e *estate) encrypt(n *worldNode, key string) []byte {
	e.t.Helper()
	return mustAsk[kmsapi.EncryptOutput](e.world, n, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")}).CiphertextBlob
}

func (e *estate) opens(n *worldNode, blob []byte) error {
	var out *kmsapi.DecryptOutput
	var err error
	e.poll("decrypting", func() bool {
		out, err = ask[kmsapi.DecryptOutput](e.world, n, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
		return !errors.Is(err, kmsapi.ErrUnavailable)
	})
	if err == nil && string(out.Plaintext) != "x" {
		err = fmt.Errorf("opens as %q", out.Plaintext)
	}
	return err
}

// probe uses all keys on all nodes the whole time, most often around the due time,
// so that the audit log shows what could be done with them when.
func (e *estate) probe() {
	for i, n := range e.nodes {
		e.probing.Go(func() {
			for {
				select {
				case <-e.probed:
					return
				case <-time.After(time.Duration(400+i) * time.Millisecond):
				}
				far := e.now().Sub(e.due).Abs() > 2*time.Second && rand.N(10) > 0
				if far || !n.up.Load() {
					continue
				}
				for _, key := range []string{e.rotated, e.expiring, e.doomed} {
					_, _ = ask[kmsapi.EncryptOutput](e.world, n, "Encrypt", &kmsapi.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
				}
			}
		})
	}
}

// records of what happened to a key by itself.
func (e *estate) events(arn, name string) []logged {
	return slices.DeleteFunc(e.records(e.leader(), arn), func(l logged) bool { return l.Name != name })
}

var dueEvents = []struct {
	name string
	key  func(*estate) string
	done func(*estate, *fsm.State) bool
}{
	{"DeleteKey", func(e *estate) string { return e.doomed }, func(e *estate, s *fsm.State) bool { return e.stored(s, e.doomed) == nil }},
	{"RotateKey", func(e *estate) string { return e.rotated }, func(e *estate, s *fsm.State) bool { return len(e.stored(s, e.rotated).Materials) > 1 }},
	{"DeleteExpiredKeyMaterial", func(e *estate) string { return e.expiring }, func(e *estate, s *fsm.State) bool {
		return len(e.stored(s, e.expiring).Materials[0].Wrapped) == 0
	}},
}

// stored is a key in a state.
func (e *estate) stored(s *fsm.State, arn string) *fsmpb.Key {
	for k := range s.AllKeys() {
		if id := fmt.Sprintf("%x-%x-%x-%x-%x", k.Id[:4], k.Id[4:6], k.Id[6:8], k.Id[8:10], k.Id[10:]); bytes.HasSuffix([]byte(arn), []byte(id)) {
			return k
		}
	}
	return nil
}

// done reports whether everything that is due has happened, on every node that
// runs.
func (e *estate) done() bool {
	for _, n := range e.nodes {
		for _, d := range dueEvents {
			if n.up.Load() && !d.done(e, n.cluster.State()) {
				return false
			}
		}
	}
	return true
}

// check is all that must hold once what was due at due is done, where the cluster
// could do it from able on.
func (e *estate) check(able time.Time) error {
	e.t.Helper()
	for limit := able.Add(promptly); !e.done() && e.now().Before(limit.Add(time.Minute)); {
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(2 * time.Second) // for what would happen twice, and caches
	close(e.probed)
	e.probing.Wait()
	errs := []error{e.converged()}
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, d := range dueEvents {
		list := e.events(d.key(e), d.name)
		if len(list) != 1 {
			bad("%d records of %s", len(list), d.name)
		}
		for _, l := range list {
			at := e.appliedAt(l.Place.RaftIndex)
			if l.Error != "" || l.at.Before(e.due) {
				bad("%s at %v by cluster time, due at %v; error %q", d.name, l.at, e.due, l.Error)
			}
			if early := e.due.Sub(at); early > clockTrust && !e.misled.Load() {
				bad("%s happened %v early", d.name, early)
			}
			if late := at.Sub(able); late > promptly {
				bad("%s happened %v after it could", d.name, late)
			}
		}
	}
	errs = append(errs, e.checkKeys(), e.checkUses(), e.checkToken())
	e.mu.Lock()
	defer e.mu.Unlock()
	errs = append(errs, e.faults...)
	e.faults = nil
	return errors.Join(errs...)
}

// checkKeys looks at the keys on every node.
func (e *estate) checkKeys() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	e.blobs = append(e.blobs, e.encrypt(e.leader(), e.rotated))
	for _, n := range e.nodes {
		for i, b := range e.blobs {
			if err := e.opens(n, b); err != nil {
				bad("what version %d encrypted, on %s: %w", i+1, n.id, err)
			}
		}
		if err := e.opens(n, e.blob); !errors.Is(err, kmsapi.ErrInvalidState) {
			bad("material that expired, on %s: %v", n.id, err)
		}
		s := n.cluster.State()
		if k := e.stored(s, e.doomed); k != nil {
			bad("the deleted key is in the state of %s", n.id)
		}
		if k := e.stored(s, e.expiring); len(k.Materials) != 1 || len(k.Materials[0].Wrapped) != 0 {
			bad("material that expired is in the state of %s", n.id)
		}
		if k := e.stored(s, e.rotated); len(k.Materials) != len(e.blobs) {
			bad("%s has %d versions of the key that rotates, want %d", n.id, len(k.Materials), len(e.blobs))
		}
		kept := n.cachedKeys()
		for range 30 { // a request that began before may have put it there again
			if kept == len(e.blobs) {
				break
			}
			time.Sleep(100 * time.Millisecond)
			kept = n.cachedKeys()
		}
		if kept != len(e.blobs) {
			bad("%s holds %d keys in the clear; the %d of the key that rotates are right", n.id, kept, len(e.blobs))
		}
	}
	return errors.Join(errs...)
}

// checkUses holds every use of the keys in the audit log against cluster time.
func (e *estate) checkUses() error {
	var errs []error
	for key, right := range map[string]func(l logged) bool{
		e.rotated: func(l logged) bool { return l.Error == "" },
		e.expiring: func(l logged) bool {
			return l.at.Before(e.due) && l.Error == "" || !l.at.Before(e.due) && l.Error == "KMSInvalidStateException"
		},
		// From the moment on that its deletion is scheduled, until it is gone.
		e.doomed: func(l logged) bool { return l.Error == "KMSInvalidStateException" },
	} {
		scheduled := key != e.doomed
		for _, l := range e.records(e.leader(), key) {
			if l.Name == "ScheduleKeyDeletion" {
				scheduled = true
				continue
			}
			if scheduled && (l.Name == "Encrypt" || l.Name == "Decrypt") && !right(l) {
				errs = append(errs, fmt.Errorf("%s with %s at %v, due at %v, has the outcome %q", l.Name, key, l.at, e.due, l.Error))
			}
		}
	}
	return errors.Join(errs...)
}

// checkToken makes sure that the token has ended, on every node, and that the
// material that expired can be imported again.
func (e *estate) checkToken() error {
	var errs []error
	for _, n := range e.nodes {
		var err error
		e.poll("an import", func() bool {
			_, err = ask[kmsapi.ImportKeyMaterialOutput](e.world, n, "ImportKeyMaterial", e.token)
			return !errors.Is(err, kmsapi.ErrUnavailable)
		})
		if !errors.Is(err, kmsapi.ErrExpiredImportToken) {
			errs = append(errs, fmt.Errorf("the token on %s: %v", n.id, err))
		}
	}
	in, _ := e.forImport(e.nodes[0], e.expiring, 1)
	mustAsk[kmsapi.ImportKeyMaterialOutput](e.world, e.nodes[1], "ImportKeyMaterial", in)
	for _, n := range e.nodes {
		if err := e.opens(n, e.blob); err != nil {
			errs = append(errs, fmt.Errorf("material that was imported again, on %s: %w", n.id, err))
		}
	}
	return errors.Join(errs...)
}

// hooked lets a test see, and stop, the proposals of what is due.
type hooked struct {
	keyengine.Replica
	hook func(ctx context.Context, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error)
}

// Propose implements keyengine.Replica.
func (h *hooked) Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error) {
	if isDue(r) {
		return h.hook(ctx, h.Replica, r)
	}
	return h.Replica.Propose(ctx, r)
}

// onDue has f run in place of the proposals of what is due, on all nodes.
func (w *world) onDue(f func(ctx context.Context, n *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error)) {
	for _, n := range w.nodes {
		n.replica = func(r keyengine.Replica) keyengine.Replica {
			return &hooked{r, func(ctx context.Context, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error) {
				return f(ctx, n, next, r)
			}}
		}
	}
}

func TestDueTime(t *testing.T) {
	for _, c := range dueCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			inTimeWith(t, c.before, func(w *world) {
				e := w.settle()
				e.probe()
				if err := e.check(c.run(e)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
