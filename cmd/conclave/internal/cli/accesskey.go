package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// AccessKey is an access key that was just created.
type AccessKey struct {
	UserName        string `json:"user_name,omitempty"`
	UserARN         string `json:"user_arn,omitempty"`
	AccessKeyID     string `json:"access_key_id"`
	SecretAccessKey string `json:"secret_access_key,omitempty"`
}

// SecretFile is a new file for an access key. A nil SecretFile is none.
type SecretFile struct {
	f       *os.File
	name    string
	written bool
}

// NewSecretFile creates a file of mode 0600, which must not exist yet, before the access key is
// created: it is too late to fail afterwards. It returns nil for "". The caller has to call
// Discard in the end.
func NewSecretFile(name string) (*SecretFile, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &SecretFile{f: f, name: name}, nil
}

// Discard removes the file, unless an access key is in it.
func (s *SecretFile) Discard() {
	if s != nil && !s.written {
		_ = s.f.Close()
		_ = os.Remove(s.name) // an empty file that stays is no harm
	}
}

// Store writes an access key to the file, in lines for a shell.
func (s *SecretFile) Store(k *AccessKey) error {
	s.written = true // or a part of it
	_, err := fmt.Fprintf(s.f, "AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n", Quote(k.AccessKeyID), Quote(k.SecretAccessKey))
	return errors.Join(err, s.f.Sync(), s.f.Close(), files.SyncDir(filepath.Dir(s.name)))
}

// Deliver shows a new access key, with its secret if there is no file for it. If it returns no
// error, the secret was shown or stored.
func (a *App) Deliver(k AccessKey, to *SecretFile) error {
	id := k.AccessKeyID
	if to != nil {
		if err := to.Store(&k); err != nil {
			return fmt.Errorf("access key %s was created, but could not be stored; delete it: %w", id, err)
		}
		k.SecretAccessKey = ""
		a.Note("the secret is only in %s", to.name)
	}
	err := a.Print(k, func(w io.Writer) {
		if k.UserName != "" {
			Line(w, "user", k.UserName)
		}
		Line(w, "access key id", id)
		if k.SecretAccessKey != "" {
			Line(w, "secret access key", k.SecretAccessKey)
		}
	})
	if err != nil && to == nil {
		return fmt.Errorf("access key %s was created, but could not be shown; delete it: %w", id, err)
	}
	return nil
}
