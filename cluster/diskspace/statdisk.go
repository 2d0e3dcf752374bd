package diskspace

import "golang.org/x/sys/unix"

// statDisk asks the operating system for the space that this process may use on the disk of
// a directory.
func statDisk(dir string) (Room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Room{}, err
	}
	size := uint64(st.Bsize)
	return Room{
		Free: uint64(st.Bavail) * size, Total: uint64(st.Blocks) * size,
		FreeInodes: uint64(st.Ffree), TotalInodes: uint64(st.Files),
	}, nil
}
