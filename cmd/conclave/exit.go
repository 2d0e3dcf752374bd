package main

import (
	"errors"
	"fmt"
)

// Exit codes; docs/cli.md has the table.
const (
	exitError  = 1
	exitUsage  = 2
	exitSealed = 3

	// exitStatusSealed is what `operator status` says of a sealed node, as Vault's
	// status does.
	exitStatusSealed = 2
)

// codedError carries the exit code of an error. An error of nil ends the process
// with the code and without a message.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codedError) Unwrap() error { return e.err }

func usage(err error) error                   { return &codedError{exitUsage, err} }
func usagef(format string, args ...any) error { return usage(fmt.Errorf(format, args...)) }

// report tells of an error and returns the exit code.
func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	code := exitError
	if coded, ok := errors.AsType[*codedError](err); ok {
		if coded.err == nil {
			return coded.code
		}
		code = coded.code
	}
	fmt.Fprintf(a.stderr, "conclave: %v\n", err)
	return code
}

// note tells the user something that is not data.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }
