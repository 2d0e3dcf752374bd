//go:build !linux

package harness

import (
	"errors"
	"os"
)

var errNoDisks = errors.New("file systems in memory are made on Linux alone")

func (n *Node) makeDisk(int64) error { return errNoDisks }

// CanMakeDisks returns why Options.Disk is not possible here, or nil if it is.
func CanMakeDisks() error { return errNoDisks }

func room(string) (free, total int64, err error) { return 0, 0, errNoDisks }

func resize(*os.File, int64, int64) error { return errNoDisks }
