package keys

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// visitAll calls visit with all commands that a user may call.
func visitAll(cmd *cobra.Command, visit func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "completion" && c.Name() != "help" {
			visit(c)
			visitAll(c, visit)
		}
	}
}

// TestEveryOperationHasACommand takes the operations from the description of
// the service.
func TestEveryOperationHasACommand(t *testing.T) {
	called := make(map[string]bool)
	visitAll(commandTree(), func(c *cobra.Command) {
		for _, op := range strings.Fields(c.Annotations[operations]) {
			called[op] = true
		}
	})
	for i := range kmsService.Methods().Len() {
		op := string(kmsService.Methods().Get(i).Name())
		if !called[op] {
			t.Errorf("no command calls %s", op)
		}
		delete(called, op)
	}
	if len(called) > 0 {
		t.Errorf("the service has no %v", slices.Sorted(maps.Keys(called)))
	}
}

// TestEveryMemberCanBeSet: each member of each request has an argument or a flag.
func TestEveryMemberCanBeSet(t *testing.T) {
	// Members that are not on the command line, with the reason.
	without := map[string]bool{
		"customer_master_key_spec": true, // AWS's deprecated name of key_spec
		"limit":                    true, // pages are the client's own affair
		"marker":                   true,
	}
	reached := make(map[string]map[string]bool)
	rows := func(r call) {
		for _, op := range append([]string{r.op}, r.also...) {
			if reached[op] == nil {
				reached[op] = make(map[string]bool)
			}
			for _, in := range r.takes {
				reached[op][in.member] = true
			}
			for _, m := range r.sets {
				reached[op][m] = true
			}
		}
	}
	eachRow = rows
	defer func() { eachRow = nil }()
	commandTree()
	for name, flag := range map[string]string{"encryption_context_subset": "context-subset", "encryption_context_equals": "context-equals", "source_arn": "source-arn"} {
		cmd, _, err := commandTree().Find([]string{"grant", "create"})
		if err != nil || cmd.Flags().Lookup(flag) == nil {
			t.Errorf("no flag sets %s of a grant's constraints", name)
		}
	}
	if n := (&kmspb.GrantConstraints{}).ProtoReflect().Descriptor().Fields().Len(); n != 3 {
		t.Errorf("a grant has %d constraints, and flags for 3", n)
	}
	for op, members := range reached {
		fields := method(op).Input().Fields()
		for i := range fields.Len() {
			if name := string(fields.Get(i).Name()); !members[name] && !without[name] {
				t.Errorf("no command sets %s of %s", name, op)
			}
		}
	}
}

func TestKeyNames(t *testing.T) {
	for _, c := range []struct {
		given, want string
		alias       bool
	}{
		{"1234abcd-12ab-34cd-56ef-1234567890ab", "1234abcd-12ab-34cd-56ef-1234567890ab", false},
		{"mrk-1234abcd12ab34cd56ef1234567890ab", "mrk-1234abcd12ab34cd56ef1234567890ab", false},
		{"arn:aws:kms:us-east-1:000000000000:key/x", "arn:aws:kms:us-east-1:000000000000:key/x", false},
		{"arn:aws:kms:us-east-1:000000000000:alias/x", "arn:aws:kms:us-east-1:000000000000:alias/x", true},
		{"alias/payments", "alias/payments", true},
		{"payments", "alias/payments", true},
		{"mrk-payments", "alias/mrk-payments", true},
		{"1234ABCD-12ab-34cd-56ef-1234567890ab", "alias/1234ABCD-12ab-34cd-56ef-1234567890ab", true},
		{"", "", false},
	} {
		if got := Name(c.given); got != c.want || isAlias(got) != c.alias {
			t.Errorf("%q: %q, alias %v; want %q, %v", c.given, got, isAlias(got), c.want, c.alias)
		}
	}
}

// commandTree returns a command with all commands of the package.
func commandTree() *cobra.Command {
	root := new(cobra.Command)
	root.AddCommand(slices.Concat(Manage(new(cli.App)), Use(new(cli.App)))...)
	return root
}
