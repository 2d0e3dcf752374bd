// Command conclave is the key management service: the server, the tools of its
// operators, and a client.
//
// Data is written to standard output and everything else to standard error.
// Secrets are read from files, the environment or a hidden prompt, never from
// the command line, where other users of the machine could see them. Only main
// ends the process. The exit codes are in docs/cli.md.
package main

import (
	"context"
	"os"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
