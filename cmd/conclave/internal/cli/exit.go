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

	// ExitStatusSealed is the exit code of `operator status` for a sealed node, as
	// that of Vault's status.
	ExitStatusSealed = 2
)

// CodedError is an error with an exit code. If it wraps no error, the process
// ends with the code and without a message.
type CodedError struct {
	Code int
	err  error
}

// Error returns the message of the wrapped error.
func (e *CodedError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.err.Error()
}

// Unwrap returns the wrapped error.
func (e *CodedError) Unwrap() error { return e.err }

// Usage returns an error that is caused by a wrong command line.
func Usage(err error) error { return &CodedError{ExitUsage, err} }

// Usagef is Usage with an error made by fmt.Errorf.
func Usagef(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

// Report prints an error and returns the exit code.
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

// Note prints a message to the user on standard error.
func (a *App) Note(format string, args ...any) { fmt.Fprintf(a.Stderr, format+"\n", args...) }
