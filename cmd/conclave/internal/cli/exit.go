package cli

import (
	"errors"
	"fmt"
)

// Exit codes; docs/cli.md has the table.
const (
	ExitError  = 1
	ExitUsage  = 2
	ExitSealed = 3

	// ExitStatusSealed is what `operator status` says of a sealed node, as Vault's
	// status does.
	ExitStatusSealed = 2
)

// CodedError carries the exit code of an error. An error of nil ends the process
// with the code and without a message.
type CodedError struct {
	Code int
	err  error
}

// Error is the message of the error that the code goes with.
func (e *CodedError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.err.Error()
}

// Unwrap returns the error that the code goes with.
func (e *CodedError) Unwrap() error { return e.err }

// Usage is an error of whoever wrote the command line.
func Usage(err error) error { return &CodedError{ExitUsage, err} }

// Usagef is Usage of an error that fmt.Errorf makes.
func Usagef(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

// Report tells of an error and returns the exit code.
func (a *App) Report(err error) int {
	if err == nil {
		return 0
	}
	code := ExitError
	if coded, ok := errors.AsType[*CodedError](err); ok {
		if coded.err == nil {
			return coded.Code
		}
		code = coded.Code
	}
	fmt.Fprintf(a.Stderr, "conclave: %v\n", err)
	return code
}

// Note tells the user something that is not data.
func (a *App) Note(format string, args ...any) { fmt.Fprintf(a.Stderr, format+"\n", args...) }
