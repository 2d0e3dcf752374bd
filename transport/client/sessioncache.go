package client

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// maxCacheFile is larger than any encrypted session.
	maxCacheFile = 16 << 10
	// maxCacheAge is longer than any session lasts; older files are removed.
	maxCacheAge = 24 * time.Hour
)

// sessionCache keeps a session token in a file, for programs that run for one call
// each, since every new session is a record in the audit log. A token is a secret,
// so it is encrypted with a key that is derived from the secret access key: without
// that, the file is worthless. The encryption is also bound to the addresses of the
// servers, the CA and the client's certificate, so that a token is never sent to
// servers other than those it was opened with.
//
// The cache is an optimisation: if anything goes wrong with it, a new session is
// opened.
type sessionCache struct {
	file    string
	aead    cipher.AEAD
	binding []byte
}

type cachedSession struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// newSessionCache returns nil if nothing can be cached. key is that of the
// session.
func newSessionCache(dir, binding, id string, key []byte) *sessionCache {
	if dir == "" || ownDir(dir) != nil {
		return nil
	}
	block, err := aes.NewCipher(mac(key, "conclave session cache v1"))
	if err != nil {
		return nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil
	}
	bound := []byte("conclave session cache v1\n" + id + "\n" + binding)
	name := sha256.Sum256(bound)
	return &sessionCache{file: filepath.Join(dir, hex.EncodeToString(name[:16])), aead: aead, binding: bound}
}

// ownDir creates a directory that no other user can read or write, and refuses an
// existing one that others can.
func ownDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || !ok || int(st.Uid) != os.Getuid() || fi.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is not a directory that only this user can access", dir)
	}
	return nil
}

// load returns the session that was kept, if there is one.
func (c *sessionCache) load() (s cachedSession, ok bool) {
	if c == nil {
		return s, false
	}
	f, err := os.OpenFile(c.file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return s, false
	}
	defer f.Close()
	sealed, err := io.ReadAll(io.LimitReader(f, maxCacheFile))
	if err != nil || len(sealed) < c.aead.NonceSize() {
		return s, false
	}
	raw, err := c.aead.Open(nil, sealed[:c.aead.NonceSize()], sealed[c.aead.NonceSize():], c.binding)
	if err != nil {
		return s, false
	}
	defer clear(raw)
	return s, json.Unmarshal(raw, &s) == nil && s.Token != ""
}

// save keeps a session, and removes files that are too old to be useful.
func (c *sessionCache) save(s cachedSession) error {
	if c == nil {
		return nil
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	defer clear(raw)
	nonce := make([]byte, c.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails: the program ends first
	dir := filepath.Dir(c.file)
	f, err := os.CreateTemp(dir, ".session-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(c.aead.Seal(nonce, nonce, raw, c.binding))
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), c.file); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return removeOld(dir)
}

func removeOld(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && time.Since(fi.ModTime()) > maxCacheAge {
			_ = os.Remove(filepath.Join(dir, e.Name())) // another program may have done it
		}
	}
	return nil
}

// forget removes a session that a server did not accept.
func (c *sessionCache) forget() {
	if c != nil {
		_ = os.Remove(c.file) // if it stays, it is refused and replaced next time
	}
}

// binding identifies the servers that a session is for, and the caller apart from
// the access key.
func (cfg *Config) binding() (string, error) {
	parts := []string{cfg.Address, cfg.ServerName, fmt.Sprint(cfg.Plaintext)}
	for _, name := range []string{cfg.CAFile, cfg.CertFile} {
		sum := ""
		if name != "" {
			raw, err := os.ReadFile(name)
			if err != nil {
				return "", err
			}
			digest := sha256.Sum256(raw)
			sum = hex.EncodeToString(digest[:])
		}
		parts = append(parts, sum)
	}
	return strings.Join(parts, "\n"), nil
}
