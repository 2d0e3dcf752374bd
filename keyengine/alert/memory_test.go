package alert

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// TestMemory: what is remembered is there after the file was closed, and does not show who did
// what.
func TestMemory(t *testing.T) {
	v, err := vault.New(time.Now, false)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	o, unseal, err := v.Initialise(&fsmpb.Cluster{Id: make([]byte, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: make([]byte, 16), Epoch: 1}})
	if err != nil {
		t.Fatal(err)
	}
	unseal.Destroy()
	if !v.Install(o) {
		t.Fatal("the vault is open already")
	}
	path := filepath.Join(t.TempDir(), "alerts.db")
	with := func(fn func(m remembered) error) {
		t.Helper()
		f, err := localfile.Open(path, "alerts", 0, v)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Update(func(tx *localfile.Tx) error { return fn(remembered{tx}) }); err != nil {
			t.Fatal(err)
		}
	}
	first := func(want bool, values ...string) {
		t.Helper()
		with(func(m remembered) error {
			if got, err := m.first(values[0], values[1], values[2]); err != nil || got != want {
				t.Errorf("first(%q) is %v (%v), want %v", values, got, err, want)
			}
			return nil
		})
	}
	first(true, "ada", "key", "one")
	first(false, "ada", "key", "one")
	first(true, "ada", "key", "two")
	first(true, "ada", "network", "one")
	first(true, "bob", "key", "one")
	first(true, "ad", "akey", "one")

	with(func(m remembered) error {
		if at, err := m.since("ada", 5); err != nil || at != 5 {
			t.Errorf("since is %d (%v), want 5", at, err)
		}
		return nil
	})
	with(func(m remembered) error {
		if at, err := m.since("ada", 9); err != nil || at != 5 {
			t.Errorf("since is %d (%v), want 5", at, err)
		}
		if at, err := m.since("bob", 9); err != nil || at != 9 {
			t.Errorf("since is %d (%v), want 9", at, err)
		}
		return m.setQuiet(subject{RootUse, "ada"}, 30)
	})
	with(func(m remembered) error {
		for s, want := range map[subject]int64{{RootUse, "ada"}: 30, {RootUse, "bob"}: 0, {DenialBurst, "ada"}: 0} {
			if until, err := m.quietUntil(s); err != nil || until != want {
				t.Errorf("%v is quiet until %d (%v), want %d", s, until, err, want)
			}
		}
		for hour := range historyHours + 50 {
			if err := m.addHour("ada", hour, int(hour)); err != nil {
				return err
			}
			if err := m.addHour("bob", hour, 1); err != nil {
				return err
			}
		}
		all, err := m.hours("ada", 0)
		if err != nil || len(all) != int(historyHours)+1 || all[0] != 49 {
			t.Errorf("%d hours are kept (%v), the first with %d requests; want %d, and 49", len(all), err, all[0], historyHours+1)
		}
		if some, err := m.hours("ada", historyHours+48); err != nil || !slices.Equal(some, []int{int(historyHours) + 48, int(historyHours) + 49}) {
			t.Errorf("the last two hours are %v (%v)", some, err)
		}
		return nil
	})
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ada", "network", RootUse} {
		if bytes.Contains(raw, []byte(name)) {
			t.Errorf("the file shows %q", name)
		}
	}
}
