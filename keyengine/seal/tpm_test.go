//go:build tpm

package seal

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
)

// machine is a TPM in software, of swtpm.
type machine struct {
	t      *testing.T
	dir    string
	cancel func()
}

// newMachine starts a TPM. Without swtpm the test is skipped.
func newMachine(t *testing.T) *machine {
	t.Helper()
	optional.Program(t, "swtpm")        // of Debian's package of that name
	dir, err := os.MkdirTemp("", "tpm") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir}
	t.Cleanup(func() {
		m.stop()
		_ = os.RemoveAll(dir)
	})
	m.start()
	return m
}

func (m *machine) socket() string { return filepath.Join(m.dir, "s") }

// start starts the machine: its PCRs are zero, and its TPM has the state that it had.
func (m *machine) start() {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+m.dir, "--server", "type=unixio,path="+m.socket(), "--flags", "not-need-init,startup-clear")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cancel()
		m.t.Fatal(err)
	}
	m.cancel = func() { cancel(); _ = cmd.Wait(); _ = os.Remove(m.socket()) }
	enginetest.WaitFor(m.t, "swtpm", func() bool {
		conn, err := net.Dial("unix", m.socket())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (m *machine) stop() { m.cancel() }

// boot starts the machine, and it measures something into a PCR.
func (m *machine) boot(pcr int, what string) {
	m.t.Helper()
	m.stop()
	m.start()
	m.use(func(t transport.TPM) {
		_, err := tpm2.PCREvent{PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)}, EventData: tpm2.TPM2BEvent{Buffer: []byte(what)}}.Execute(t)
		if err != nil {
			m.t.Fatal(err)
		}
	})
}

func (m *machine) use(fn func(transport.TPM)) {
	m.t.Helper()
	conn, err := connectTPM(m.socket())
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	fn(transport.FromReadWriter(conn))
}

func (m *machine) seal(pcrs string) Seal {
	m.t.Helper()
	return parse(m.t, "tpm:"+m.socket()+pcrs)
}

// refuses says that the seal does not unseal the node, which the custodians still can.
func (f *fixture) refuses(t *testing.T, s Seal, want string) {
	t.Helper()
	f.start(t, s)
	if f.s.step(t.Context()); !f.node.Vault.Sealed() || !strings.Contains(f.s.Status(), want) {
		t.Errorf("sealed %v, status %q, want %q", f.node.Vault.Sealed(), f.s.Status(), want)
	}
	f.node.Unseal(f.shares...)
}

// opens says that the seal unseals the node.
func (f *fixture) opens(t *testing.T, s Seal) {
	t.Helper()
	f.start(t, s)
	if f.s.step(t.Context()); f.node.Vault.Sealed() {
		t.Fatalf("the node is sealed: %q", f.s.Status())
	}
}

// TestTPMSeal: the TPM of a machine unseals its node, also after it has restarted. Another one
// does not, nor this one after it was cleared.
func TestTPMSeal(t *testing.T) {
	f := newFixture(t, 2)
	m := newMachine(t)
	f.start(t, m.seal(""))
	f.custodians(t)
	if l := f.s.List(); len(l) != 1 || l[0].Name != "tpm:n1" {
		t.Fatalf("seals %v\n%s", l, f.log.String())
	}
	for range 5 { // more than the objects that a TPM can hold at a time
		f.opens(t, m.seal(""))
	}
	m.boot(7, "another system")
	f.opens(t, m.seal(""))
	f.refuses(t, newMachine(t).seal(""), "sealed by another TPM")
	f.refuses(t, m.seal("?pcrs=7"), "sealed to no PCRs, and the configuration says the PCRs 7")

	s, wrapped := m.seal(""), f.cluster().Seals[0].WrappedKey
	right := about(f.cluster(), s.Name())
	for name, c := range map[string]Context{
		"another cluster": {Cluster: right.Cluster[2:] + right.Cluster[:2], Seal: right.Seal},
		"another seal":    {Cluster: right.Cluster, Seal: right.Seal + "x"},
	} {
		if _, err := s.Unwrap(t.Context(), f.node.Vault.Arena(), wrapped, c); err == nil || !strings.Contains(err.Error(), "something else") {
			t.Errorf("%s, not %+v but %+v: %v", name, right, c, err)
		}
	}
	m.use(func(t transport.TPM) {
		if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(t); err != nil {
			m.t.Fatal(err)
		}
	})
	f.refuses(t, m.seal(""), "this one has been cleared since")
}

// TestTPMPolicy: with PCRs, the TPM unseals only on what the machine had started when the
// custodians unsealed it.
func TestTPMPolicy(t *testing.T) {
	f := newFixture(t, 2)
	m := newMachine(t)
	m.boot(7, "the system")
	f.start(t, m.seal("?pcrs=7+11"))
	f.custodians(t)
	f.opens(t, m.seal("?pcrs=11+7"))
	m.boot(7, "another system")
	f.refuses(t, m.seal("?pcrs=7+11"), "the PCRs 7+11 have other values")
	f.refuses(t, m.seal("?pcrs=7"), "sealed to the PCRs 7+11, and the configuration says the PCRs 7:")
	f.refuses(t, m.seal(""), "sealed to the PCRs 7+11, and the configuration says no PCRs")
	m.boot(11, "the system")
	f.refuses(t, m.seal("?pcrs=7+11"), "the PCRs 7+11 have other values")
	m.boot(7, "the system")
	f.opens(t, m.seal("?pcrs=7+11"))

	// Who edits the list of PCRs gets the TPM to refuse.
	o, err := decodeObject(f.cluster().Seals[0].WrappedKey)
	if err != nil {
		t.Fatal(err)
	}
	m.boot(7, "another system")
	o.pcrs = 0
	if _, err := m.seal("").Unwrap(t.Context(), f.node.Vault.Arena(), o.encode(), about(f.cluster(), "tpm:n1")); err == nil || !strings.Contains(err.Error(), "does not unseal") {
		t.Errorf("without the PCRs: %v", err)
	}
}

// TestTPMBlob: the TPM opens nothing but what it has sealed.
func TestTPMBlob(t *testing.T) {
	f := newFixture(t, 2)
	m := newMachine(t)
	f.start(t, m.seal("?pcrs=7"))
	f.custodians(t)
	s, wrapped := m.seal("?pcrs=7"), f.cluster().Seals[0].WrappedKey
	arena, right := f.node.Vault.Arena(), about(f.cluster(), "tpm:n1")
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		if _, err := s.Unwrap(t.Context(), arena, bad, right); err == nil {
			t.Errorf("with byte %d of %d changed, it is unwrapped", i, len(wrapped))
		}
	}
	for n := range len(wrapped) {
		if _, err := s.Unwrap(t.Context(), arena, wrapped[:n], right); err == nil {
			t.Errorf("the first %d bytes are unwrapped", n)
		}
	}
	if _, err := s.Unwrap(t.Context(), arena, append(bytes.Clone(wrapped), 0), right); err == nil {
		t.Error("with a byte more, it is unwrapped")
	}
	key, err := s.Unwrap(t.Context(), arena, wrapped, right)
	if err != nil {
		t.Fatalf("as it is: %v", err)
	}
	key.Destroy()
}

// TestTPMIsGone: a node whose TPM is missing or hangs starts and says why it is sealed, within
// moments. The custodians unseal it.
func TestTPMIsGone(t *testing.T) {
	f := newFixture(t, 2)
	m := newMachine(t)
	f.start(t, m.seal(""))
	f.custodians(t)
	f.refuses(t, parse(t, "tpm:"+filepath.Join(m.dir, "none")), "no such file")
	f.refuses(t, parse(t, "tpm:"+os.DevNull), "the TPM's storage key")
	f.refuses(t, parse(t, "tpm:"+m.dir), "neither a device nor a socket")
	path := filepath.Join(m.dir, "h")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := parse(t, "tpm:"+path).(*tpmSeal)
	s.timeout = 20 * time.Millisecond
	f.refuses(t, s, fmt.Sprintf("the TPM %s does not answer", path))
	enginetest.WaitFor(t, "the call to end", func() bool { return len(s.busy) == 0 })
	f.opens(t, m.seal(""))
}
