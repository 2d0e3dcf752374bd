package peerunseal

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/conclavekms/conclave/cluster/internal/durable"
)

// maxKeyFile bounds the file of return keys, in bytes.
const maxKeyFile = 4096

// LoadKeys returns the content of the file of return keys; nil if there is none.
func (p *Peers) LoadKeys() ([]byte, error) {
	f, err := os.Open(p.cfg.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, maxKeyFile+1)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n == 0 {
		return nil, nil // it was about to be removed
	}
	if n > maxKeyFile {
		return nil, errors.New("the file of return keys is too long")
	}
	return b[:n], nil
}

// SaveKeys replaces the content of the file of return keys. It is on the disk when SaveKeys
// returns.
func (p *Peers) SaveKeys(b []byte) error { return durable.Replace(p.cfg.KeyFile, b) }

// RemoveKeys removes the file of return keys. It is emptied first, so that a crash does not
// bring it back.
func (p *Peers) RemoveKeys() error {
	if _, err := os.Lstat(p.cfg.KeyFile); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := durable.Replace(p.cfg.KeyFile, nil); err != nil {
		return err
	}
	if err := os.Remove(p.cfg.KeyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
