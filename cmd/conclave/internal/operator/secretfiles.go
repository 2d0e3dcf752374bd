package operator

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// secretFiles are new files for secrets in a directory, mode 0600, created before there are any
// secrets.
type secretFiles struct {
	dir   string
	files []*os.File
}

// newSecretFiles creates files, or none if one of them exists already.
func newSecretFiles(dir string, names []string) (*secretFiles, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d := &secretFiles{dir: dir}
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, errors.Join(err, d.discard())
		}
		d.files = append(d.files, f)
	}
	return d, nil
}

// discard removes the files.
func (d *secretFiles) discard() error {
	if d == nil {
		return nil
	}
	var errs []error
	for _, f := range d.files {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) { // by fill
			errs = append(errs, err)
		}
		errs = append(errs, os.Remove(f.Name()))
	}
	return errors.Join(errs...)
}

// fill writes the files, makes them durable, and closes them.
func (d *secretFiles) fill(contents [][]byte) error {
	if len(contents) != len(d.files) {
		return errors.New("the server returned a different number of shares")
	}
	var errs []error
	for i, f := range d.files {
		_, err := f.Write(contents[i])
		errs = append(errs, err, f.Sync(), f.Close())
	}
	return errors.Join(append(errs, files.SyncDir(d.dir))...)
}
