package keymat

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"
)

// faults tells whether reading p faults.
func faults(p unsafe.Pointer) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			fault = true
		}
	}()
	sink = *(*byte)(p)
	return false
}

var sink byte

func TestGuardPages(t *testing.T) {
	a := newArena(t, 8192)
	data := a.mem.data
	first := unsafe.Pointer(&data[0])
	last := unsafe.Pointer(&data[len(data)-1])
	if before := uintptr(first) - uintptr(unsafe.Pointer(&a.mem.all[0])); before != uintptr(os.Getpagesize()) {
		t.Errorf("%d bytes of our own before the arena, want a page", before)
	}
	if behind := len(a.mem.all) - len(data) - os.Getpagesize(); behind != os.Getpagesize() {
		t.Errorf("%d bytes of our own behind the arena, want a page", behind)
	}
	if faults(first) || faults(last) {
		t.Error("the arena itself cannot be read")
	}
	if !faults(unsafe.Add(first, -1)) {
		t.Error("reading before the arena does not fault")
	}
	if !faults(unsafe.Add(last, 1)) {
		t.Error("reading behind the arena does not fault")
	}
}

// smapsFlags returns the kernel's VmFlags of the mapping that holds p.
func smapsFlags(t *testing.T, p unsafe.Pointer) map[string]bool {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Skipf("the kernel does not describe mappings: %v", err)
	}
	defer f.Close()
	in := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var from, to uintptr
		if n, _ := fmt.Sscanf(sc.Text(), "%x-%x ", &from, &to); n == 2 {
			in = from <= uintptr(p) && uintptr(p) < to
		}
		if flags, ok := strings.CutPrefix(sc.Text(), "VmFlags:"); ok && in {
			set := map[string]bool{}
			for _, f := range strings.Fields(flags) {
				set[f] = true
			}
			return set
		}
	}
	t.Skip("the kernel shows no flags of mappings")
	return nil
}

func TestMemoryFlags(t *testing.T) {
	a, err := Open(0, true)
	if errors.Is(err, ErrNotLocked) {
		t.Skipf("this system does not let us lock memory: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if !a.Locked() {
		t.Error("Locked() = false")
	}
	flags := smapsFlags(t, unsafe.Pointer(&a.mem.data[0]))
	for flag, meaning := range map[string]string{"lo": "locked", "dd": "left out of core files", "wf": "wiped in forked children"} {
		if !flags[flag] {
			t.Errorf("the memory is not %s", meaning)
		}
	}
}
