package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/term"
)

// maxShare is longer than any share.
const maxShare = 4096

// ReadShare reads a custodian's share: from the file or, if that is "", from a prompt that
// does not show it, or from standard input if that is no terminal. The caller must clear
// it.
func (a *App) ReadShare(file string) ([]byte, error) {
	var raw []byte
	var err error
	if in := a.terminal(); file == "" && in != nil {
		raw, err = a.prompt(in, "share (not shown): ")
	} else {
		raw, err = a.ReadInput(file, maxShare)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the share: %w", err)
	}
	share := []byte(strings.TrimSpace(string(raw)))
	clear(raw)
	if len(share) == 0 {
		return nil, errors.New("reading the share: the input is empty")
	}
	return share, nil
}

// prompt reads a line without showing it, and restores the terminal even if it
// is interrupted.
func (a *App) prompt(in *os.File, text string) ([]byte, error) {
	before, err := term.GetState(int(in.Fd()))
	if err != nil {
		return nil, err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	defer signal.Stop(interrupted)
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	fmt.Fprint(a.Stderr, text)
	go func() {
		line, err := term.ReadPassword(int(in.Fd()))
		got <- answer{line, err}
	}()
	defer fmt.Fprintln(a.Stderr)
	select {
	case r := <-got:
		return r.line, r.err
	case <-interrupted:
		return nil, errors.Join(errors.New("interrupted"), term.Restore(int(in.Fd()), before))
	}
}

// maxSharesInput is longer than all shares of any set.
const maxSharesInput = 255 * maxShare

// ReadShares passes shares to add until it reports that there are enough. They are read from
// the files or, if there are none, from prompts that do not show them, or from standard
// input if that is no terminal, one on each line. At a terminal a share that is refused can
// be entered again.
func (a *App) ReadShares(names []string, add func(share []byte) (enough bool, err error)) error {
	one := func(share []byte) (bool, error) {
		defer clear(share)
		return add(share)
	}
	if len(names) == 0 && a.terminal() != nil {
		for {
			share, err := a.ReadShare("")
			if err != nil {
				return err
			}
			enough, err := one(share)
			if err != nil {
				a.Note("conclave: %v", err)
			}
			if enough {
				return err
			}
		}
	}
	var shares [][]byte
	if len(names) == 0 {
		raw, err := a.ReadInput("", maxSharesInput)
		if err != nil {
			return fmt.Errorf("reading the shares: %w", err)
		}
		shares = bytes.Fields(raw)
		defer clear(raw)
	}
	for _, name := range names {
		share, err := a.ReadShare(name)
		if err != nil {
			return err
		}
		defer clear(share)
		shares = append(shares, share)
	}
	for _, share := range shares {
		if enough, err := one(share); err != nil || enough {
			return err
		}
	}
	return nil
}
