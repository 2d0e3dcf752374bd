package fsm

import (
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

func putSetting(name, value string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutSetting{PutSetting: &fsmpb.Setting{Name: name, Value: []byte(value)}}}
}

func deleteSetting(name string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteSetting{DeleteSetting: &fsmpb.SettingName{Name: name}}}
}

// finalized returns a record that is proposed once the level was raised.
func finalized(changes ...*fsmpb.Change) func(*world) *fsmpb.Record {
	return func(w *world) *fsmpb.Record {
		if w.fsm.Current().Level() == 1 {
			w.finalize()
		}
		return record(changes...)
	}
}

// TestSettings: a setting is replaced or deleted only by who has read its newest version, and
// what happens to another one does not matter.
func TestSettings(t *testing.T) {
	m := newMachine(t)
	kind := fsmpb.Kind_KIND_SETTING
	read := func(name string) Version { return m.fsm.Current().VersionOf(kind, []byte(name)) }
	value := func(name string) string {
		s, _ := Object[*fsmpb.Setting](m.fsm.Current(), []byte(name))
		return string(s.GetValue())
	}
	wantVerdicts(t, m.propose(record(putSetting("a", "1"))), Invalid) // below level 2
	m.finalize()
	before := m.fsm.Current().Hash()
	wantVerdicts(t, m.propose(record(putSetting("a", "1")), record(putSetting("b", "1"))), Accepted, Accepted)
	if m.fsm.Current().Hash() == before {
		t.Error("the state hash does not cover settings")
	}
	a, b := read("a"), read("b")
	wantVerdicts(t, m.propose(reads(record(putSetting("a", "2")), kind, []byte("a"), a)), Accepted)
	wantVerdicts(t, m.propose(
		reads(record(putSetting("a", "3")), kind, []byte("a"), a), // it has changed since
		reads(record(deleteSetting("a")), kind, []byte("a"), a),   // so has this
		reads(record(putSetting("c", "1")), kind, []byte("c"), b), // it never existed
		reads(record(putSetting("b", "2")), kind, []byte("b"), b), // only others have changed
		reads(record(deleteSetting("a")), kind, []byte("a"), read("a")),
		record(deleteSetting("d")),
	), Conflict, Conflict, Conflict, Accepted, Accepted, Conflict)
	if value("a") != "" || value("b") != "2" || read("a") != 0 {
		t.Errorf("a is %q, b is %q", value("a"), value("b"))
	}
	other := blank(t)
	if err := other.restore(m.snapshot()); err != nil {
		t.Fatal(err)
	}
	if s, _ := Object[*fsmpb.Setting](other.fsm.Current(), []byte("b")); string(s.GetValue()) != "2" {
		t.Errorf("b is %q in the restored state", s.GetValue())
	}
}
