package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// terminal returns standard input if it is a terminal, and nil otherwise.
func (a *App) terminal() *os.File {
	if in, ok := a.Stdin.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		return in
	}
	return nil
}

// Confirm asks the person at the terminal a question, and returns an error unless the answer is
// yes. It waits for as long as that takes.
func (a *App) Confirm(question string) error {
	in := a.terminal()
	if in == nil {
		return Usagef("there is nobody to confirm this: add --yes")
	}
	fmt.Fprintf(a.Stderr, "%s (yes or no): ", question)
	answer, err := bufio.NewReader(io.LimitReader(in, 16)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("not confirmed: nothing was changed")
	}
	return nil
}
