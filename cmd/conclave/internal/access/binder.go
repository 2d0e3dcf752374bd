package access

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

// binder makes the arguments and flags of a command, and sets the members of its request from
// them.
type binder struct {
	app *cli.App
	row row
	cmd *cobra.Command
	req protoreflect.Message

	args        []string // of the command line
	least, most int      // how many arguments there may be; most is negative for any number
	fills       []func() error
	policies    []string // members with a POLICY; see resolve
	paged       *pages   // of a list
}

// maxDocument is more than any policy document has that a server takes.
const maxDocument = 256 << 10

func (b *binder) set(member, value string) {
	b.req.Set(fieldOf(b.req, member), protoreflect.ValueOfString(value))
}

func (b *binder) get(member string) string { return b.req.Get(fieldOf(b.req, member)).String() }

func (b *binder) fill(f func() error) { b.fills = append(b.fills, f) }

// is sets a member to a fixed value.
func (b *binder) is(member, value string) {
	fieldOf(b.req, member)
	b.fill(func() error {
		b.set(member, value)
		return nil
	})
}

// arg is the next argument.
func (b *binder) arg(member string) {
	b.least++
	b.optional(member)
}

// optional is the next argument, which may be left out.
func (b *binder) optional(member string) {
	fieldOf(b.req, member)
	n := b.most
	b.most++
	b.fill(func() error {
		if n < len(b.args) {
			b.set(member, b.args[n])
		}
		return nil
	})
}

// policy is the next argument, a POLICY.
func (b *binder) policy(member string) {
	b.arg(member)
	b.policies = append(b.policies, member)
}

// rest are all further arguments, one at least.
func (b *binder) rest(use func(values []string) error) {
	n := b.most
	b.least, b.most = n+1, -1
	b.fill(func() error { return use(b.args[n:]) })
}

// texts are all further arguments, as the values of a member.
func (b *binder) texts(member string) {
	b.rest(func(values []string) error {
		b.append(member, values)
		return nil
	})
}

// tags are all further arguments, each KEY=VALUE.
func (b *binder) tags(member string) {
	b.rest(func(values []string) error { return b.setTags(member, "", values) })
}

func (b *binder) append(member string, values []string) {
	list := b.req.Mutable(fieldOf(b.req, member)).List()
	for _, v := range values {
		list.Append(protoreflect.ValueOfString(v))
	}
}

func (b *binder) setTags(member, flag string, values []string) error {
	tags, err := tagsOf(flag, values)
	for _, t := range tags {
		b.req.Mutable(fieldOf(b.req, member)).List().Append(protoreflect.ValueOfMessage(t.ProtoReflect()))
	}
	return err
}

// tagsOf parses tags, each KEY=VALUE. The server reports duplicates.
func tagsOf(flag string, values []string) ([]*iampb.Tag, error) {
	var tags []*iampb.Tag
	for _, v := range values {
		key, value, ok := strings.Cut(v, "=")
		if !ok {
			return nil, cli.Usagef("%s%q is not KEY=VALUE", flag, v)
		}
		tags = append(tags, &iampb.Tag{Key: &key, Value: &value})
	}
	return tags, nil
}

// text is a flag.
func (b *binder) text(member, flag, usage string) {
	fieldOf(b.req, member)
	v := b.cmd.Flags().String(flag, "", usage)
	b.fill(func() error {
		if b.cmd.Flags().Changed(flag) {
			b.set(member, *v)
		}
		return nil
	})
}

// needed makes a flag required.
func (b *binder) needed(flag string) {
	f := b.cmd.Flags().Lookup(flag)
	b.fill(func() error {
		if !f.Changed {
			return cli.Usagef("--%s is required: %s", flag, f.Usage)
		}
		return nil
	})
}

// list is a flag that may be repeated.
func (b *binder) list(member, flag, usage string) {
	fieldOf(b.req, member)
	v := b.cmd.Flags().StringArray(flag, nil, usage+"; may be repeated")
	b.fill(func() error {
		if len(*v) > 0 {
			b.append(member, *v)
		}
		return nil
	})
}

// tagFlag is the flag for the tags of what is created.
func (b *binder) tagFlag(member string) {
	v := b.cmd.Flags().StringArray("tag", nil, "KEY=VALUE; may be repeated")
	b.fill(func() error { return b.setTags(member, "--tag ", *v) })
}

// seconds is a flag with a duration.
func (b *binder) seconds(member, flag, usage string) {
	fieldOf(b.req, member)
	v := b.cmd.Flags().Duration(flag, 0, usage)
	b.fill(func() error {
		if !b.cmd.Flags().Changed(flag) {
			return nil
		}
		if *v%time.Second != 0 || *v < 0 || *v > 1<<31*time.Second-1 {
			return cli.Usagef("--%s %v is not a number of seconds", flag, *v)
		}
		b.req.Set(fieldOf(b.req, member), protoreflect.ValueOfInt32(int32(*v/time.Second)))
		return nil
	})
}

// boolean is a flag that is set or not.
func (b *binder) boolean(member, flag, usage string) {
	fieldOf(b.req, member)
	v := b.cmd.Flags().Bool(flag, false, usage)
	b.fill(func() error {
		if b.cmd.Flags().Changed(flag) {
			b.req.Set(fieldOf(b.req, member), protoreflect.ValueOfBool(*v))
		}
		return nil
	})
}

// before is a flag with a time in the past.
func (b *binder) before(member, flag, usage string) {
	fieldOf(b.req, member)
	v := b.cmd.Flags().String(flag, "", usage+": "+pastTimes)
	b.fill(func() error {
		if *v == "" {
			return nil
		}
		t, err := pastTime(flag, *v)
		if err == nil {
			b.req.Set(fieldOf(b.req, member), protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()))
		}
		return err
	})
}

const pastTimes = "a time such as 2026-01-02T15:04:05Z, or how long ago, such as 720h"

// pastTime parses the value of a flag that is a time, or how long ago it was.
func pastTime(flag, v string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, v); err == nil {
		return t, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return time.Time{}, cli.Usagef("--%s %q is neither a time such as 2026-01-02T15:04:05Z nor a duration such as 720h", flag, v)
	}
	return time.Now().Add(-d), nil
}

// document is the next argument, a file with a policy document, or standard input if it is "-"
// or left out.
func (b *binder) document(member string) {
	fieldOf(b.req, member)
	n := b.most
	b.most++
	b.fill(func() error {
		name := "-"
		if n < len(b.args) {
			name = b.args[n]
		}
		return b.read(member, name)
	})
}

// file is a flag with a file.
func (b *binder) file(member, flag, usage string) {
	fieldOf(b.req, member)
	v := b.cmd.Flags().String(flag, "", usage+", - for standard input")
	b.fill(func() error {
		if *v == "" {
			return nil
		}
		return b.read(member, *v)
	})
}

func (b *binder) read(member, name string) error {
	raw, err := b.app.ReadInput(name, maxDocument)
	if err == nil && len(raw) == 0 {
		err = fmt.Errorf("%s is empty", name)
	}
	if err == nil {
		b.set(member, string(raw))
	}
	return err
}

// resolve replaces the names of policies by their ARNs.
func (b *binder) resolve(ctx context.Context, c *cli.Connection) error {
	for _, member := range b.policies {
		if !b.req.Has(fieldOf(b.req, member)) {
			continue
		}
		arn, err := policyARN(ctx, c, b.get(member))
		if err != nil {
			return err
		}
		b.set(member, arn)
	}
	return nil
}

// message returns the request.
func message[M proto.Message](b *binder) M { return b.req.Interface().(M) }
