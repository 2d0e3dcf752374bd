package harness

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// makeDisk mounts a file system for the node's data until the test ends.
func (n *Node) makeDisk(size int64) error {
	dir := n.diskDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := mountMemory(dir, size); err != nil {
		return err
	}
	n.cluster.T.Cleanup(func() { // after the cluster was closed
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			n.cluster.T.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return nil
}

func mountMemory(dir string, size int64) error {
	return os.NewSyscallError("mount", syscall.Mount("conclave-test", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, fmt.Sprintf("size=%d,mode=700", size)))
}

// CanMakeDisks returns why Options.Disk is not possible here, or nil if it is.
func CanMakeDisks() error {
	dir, err := os.MkdirTemp("", "conclave-test-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := mountMemory(dir, 1<<20); err != nil {
		return fmt.Errorf("a file system may not be mounted here, which takes root: %w", err)
	}
	return os.NewSyscallError("unmount", syscall.Unmount(dir, 0))
}

// room returns the free and the total bytes of a directory's file system.
func room(dir string) (free, total int64, err error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, 0, os.NewSyscallError("statfs", err)
	}
	return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize, nil
}

// resize changes the size of a file, including the space that is allocated to it.
func resize(f *os.File, from, to int64) error {
	to = max(to, 0)
	if to <= from {
		return f.Truncate(to)
	}
	for {
		if err := syscall.Fallocate(int(f.Fd()), 0, from, to-from); !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fallocate", err)
		}
	}
}
