package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

// row is a command that calls one operation of IAM or STS.
type row struct {
	use, short, long, example string

	op    string
	doing string // as in "creating user"; followed by the first argument
	// binds makes the arguments and flags, each of which sets a member of the request.
	binds func(*binder)
	// table writes the answer for people; nil if there is nothing to say.
	table func(io.Writer, proto.Message)
	list  bool // the answer is a page of a list
	// run is for commands that do more than the call; nil for the others.
	run func(ctx context.Context, c *cli.Connection, b *binder) error
	// also are further operations that run calls.
	also []string
}

// operations is the annotation that names the operations that a command calls.
const operations = "operations"

// tableOf returns a table for answers of type M.
func tableOf[M proto.Message](table func(io.Writer, M)) func(io.Writer, proto.Message) {
	return func(w io.Writer, res proto.Message) { table(w, res.(M)) }
}

// newCommands returns the commands for rows.
func newCommands(a *cli.App, rows ...row) []*cobra.Command {
	cmds := make([]*cobra.Command, len(rows))
	for i, r := range rows {
		cmds[i] = newCommand(a, r)
	}
	return cmds
}

func newCommand(a *cli.App, r row) *cobra.Command {
	b := &binder{app: a, row: r, req: newMessage(method(r.op).Input())}
	b.cmd = &cobra.Command{
		Use: r.use, Short: r.short, Long: r.long, Example: r.example,
		Annotations: calls(append([]string{r.op}, r.also...)...),
		RunE:        b.runE,
	}
	if r.binds != nil {
		r.binds(b)
	}
	switch {
	case b.most < 0:
		b.cmd.Args = cobra.MinimumNArgs(b.least)
	case b.least == b.most:
		b.cmd.Args = cobra.ExactArgs(b.least)
	default:
		b.cmd.Args = cobra.RangeArgs(b.least, b.most)
	}
	if r.list {
		b.paged = pagesOf(b.cmd)
	}
	return b.cmd
}

// calls returns the annotations of a command that calls operations.
func calls(ops ...string) map[string]string {
	return map[string]string{operations: strings.Join(ops, " ")}
}

// services are those whose operations have commands here.
var services = []protoreflect.ServiceDescriptor{
	iampb.File_transport_iampb_iam_proto.Services().ByName("IAM"),
	iampb.File_transport_iampb_sts_proto.Services().ByName("STS"),
}

func method(op string) protoreflect.MethodDescriptor {
	for _, s := range services {
		if m := s.Methods().ByName(protoreflect.Name(op)); m != nil {
			return m
		}
	}
	panic("no operation " + op) // a bug in a row, which shows when the program starts
}

func newMessage(d protoreflect.MessageDescriptor) protoreflect.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // cannot happen: the type is linked in
	}
	return t.New()
}

func (b *binder) runE(cmd *cobra.Command, args []string) error {
	b.args = args
	for _, fill := range b.fills {
		if err := fill(); err != nil {
			return err
		}
	}
	doing := b.row.doing
	if len(args) > 0 {
		doing += " " + args[0]
	}
	return b.app.WithEach(cmd.Context(), doing, func(ctx context.Context, c *cli.Connection) error {
		if err := b.app.Timed(ctx, func(ctx context.Context) error { return b.resolve(ctx, c) }); err != nil {
			return err
		}
		if b.row.run != nil {
			return b.row.run(ctx, c, b)
		}
		if b.row.list {
			return b.paged.print(ctx, b.app, c, b.row.op, b.req.Interface(), b.row.table)
		}
		res, err := b.call(ctx, c)
		if err != nil {
			return err
		}
		return b.show(res)
	})
}

// call calls the row's operation.
func (b *binder) call(ctx context.Context, c *cli.Connection) (proto.Message, error) {
	var res proto.Message
	err := b.app.Timed(ctx, func(ctx context.Context) (err error) {
		res, err = invoke(ctx, c, b.row.op, b.req.Interface())
		return err
	})
	return res, err
}

func (b *binder) show(res proto.Message) error {
	return b.app.Print(res, func(w io.Writer) {
		if b.row.table != nil {
			b.row.table(w, res)
		}
	})
}

// invoke makes one call.
func invoke(ctx context.Context, c *cli.Connection, op string, req proto.Message) (proto.Message, error) {
	m := method(op)
	res := newMessage(m.Output()).Interface()
	err := c.Calls().Invoke(ctx, fmt.Sprintf("/%s/%s", m.Parent().FullName(), op), req, res)
	return res, err
}

// maxItems is the largest page that a list of IAM may have.
const maxItems = 1000

// pages are the flags of a list.
type pages struct {
	limit  int
	marker string
}

func pagesOf(cmd *cobra.Command) *pages {
	p := new(pages)
	cmd.Flags().IntVar(&p.limit, "limit", 0, "show at most this many (default all)")
	cmd.Flags().StringVar(&p.marker, "marker", "", "continue where a list with --limit ended")
	return p
}

// page is one page of a list.
type page interface {
	proto.Message
	GetIsTruncated() bool
	GetMarker() string
}

// print shows a list, and says where it continues if it was cut short.
func (p *pages) print(ctx context.Context, a *cli.App, c *cli.Connection, op string, req proto.Message, table func(io.Writer, proto.Message)) error {
	if p.limit < 0 {
		return cli.Usagef("--limit %d is negative", p.limit)
	}
	all, err := p.collect(ctx, a, c, op, req)
	if err != nil {
		return err
	}
	if err := a.Print(all, func(w io.Writer) { table(w, all) }); err != nil {
		return err
	}
	if all.GetIsTruncated() {
		a.Note("there are more; continue with --marker %s", cli.Quote(cli.Printable(all.GetMarker())))
	}
	return nil
}

// collect joins the pages of a list into one answer. Each may take the time of one answer.
func (p *pages) collect(ctx context.Context, a *cli.App, c *cli.Connection, op string, req proto.Message) (page, error) {
	r := req.ProtoReflect()
	set := func(member string, v protoreflect.Value) { r.Set(fieldOf(r, member), v) }
	if p.marker != "" {
		set("marker", protoreflect.ValueOfString(p.marker))
	}
	all := newMessage(method(op).Output())
	marker, truncated := fieldOf(all, "marker"), fieldOf(all, "is_truncated")
	for {
		size := maxItems
		if p.limit > 0 {
			size = min(size, p.limit-entries(all))
		}
		set("max_items", protoreflect.ValueOfInt32(int32(size)))
		var res proto.Message
		err := a.Timed(ctx, func(ctx context.Context) (err error) {
			res, err = invoke(ctx, c, op, req)
			return err
		})
		if err != nil {
			return nil, err
		}
		all.Clear(marker)
		all.Clear(truncated)
		proto.Merge(all.Interface(), res) // which appends to lists
		got := all.Interface().(page)
		switch {
		case !got.GetIsTruncated():
			return got, nil
		case got.GetMarker() == "":
			return nil, errors.New("the server cut the list short without saying where it continues")
		case p.limit > 0 && entries(all) >= p.limit:
			return got, nil
		}
		set("marker", protoreflect.ValueOfString(got.GetMarker()))
	}
}

// entries returns the number of entries of all lists of an answer.
func entries(m protoreflect.Message) (n int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.IsList() {
			n += m.Get(f).List().Len()
		}
	}
	return n
}

// everything gets all entries of a list.
func everything[M proto.Message](ctx context.Context, a *cli.App, c *cli.Connection, op string, req proto.Message) (M, error) {
	all, err := new(pages).collect(ctx, a, c, op, req)
	if err != nil {
		var none M
		return none, err
	}
	return all.(M), nil
}

func fieldOf(m protoreflect.Message, member string) protoreflect.FieldDescriptor {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(member))
	if f == nil {
		panic(fmt.Sprintf("%s has no member %s", m.Descriptor().FullName(), member)) // a bug in a row
	}
	return f
}
