package keys

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// call is a command that calls one operation of the service KMS: a row of the
// tables in the files of the command groups. The members of the request come
// from inputs, and shows says how the answer is written.
type call struct {
	use, short, long, example string

	op     string // of the service KMS
	doing  string // as in "enabling key"; followed by the key or the first argument
	takes  []input
	shows  show
	also   []string             // further operations that run calls
	sets   []string             // members that run sets itself
	flags  func(*cobra.Command) // flags that do not correspond to a member of the request
	pages  int32                // for a list: how many entries a page may have
	files  []outFile
	before func(b *bound) error

	// run is for commands that do more than one call; nil for the others.
	run func(ctx context.Context, c *cli.Connection, b *bound, req proto.Message) error
}

// show says how to write an answer. raw is a member that is written as it is,
// unless the user wants JSON or YAML. Otherwise the answer is written as a table.
// Without either, nothing is written.
type show struct {
	raw   string
	text  bool // raw bytes may be written to a terminal
	pem   string
	table func(w io.Writer, res proto.Message)
}

// writes64 reports whether --base64 affects the output, which it does not if the
// output is text.
func (s show) writes64() bool { return s.raw != "" && !s.text }

// outFile is a flag for a file to which a member of the answer is written.
type outFile struct{ member, flag, usage string }

// tableOf returns a show for a table of a message of type M.
func tableOf[M proto.Message](table func(w io.Writer, res M)) show {
	return show{table: func(w io.Writer, res proto.Message) { table(w, res.(M)) }}
}

// aliasForms are the operations in which an alias can name the key. For all
// others, the client looks up the alias.
var aliasForms = map[string]bool{
	"DescribeKey": true, "Encrypt": true, "Decrypt": true, "ReEncrypt": true, "GetPublicKey": true,
	"GenerateDataKey": true, "GenerateDataKeyWithoutPlaintext": true,
	"GenerateDataKeyPair": true, "GenerateDataKeyPairWithoutPlaintext": true,
	"Sign": true, "Verify": true, "GenerateMac": true, "VerifyMac": true, "DeriveSharedSecret": true,
	"Encapsulate": true, "Decapsulate": true,
}

// operations is the annotation that names the operations that a command calls.
const operations = "operations"

// eachRow, if set, is called for each row of which a command is made, for a
// test.
var eachRow func(call)

// calls returns the commands for rows.
func calls(a *cli.App, rows ...call) []*cobra.Command {
	cmds := make([]*cobra.Command, len(rows))
	for i, r := range rows {
		cmds[i] = newCommand(a, r)
	}
	return cmds
}

// newCommand returns the command for a row.
func newCommand(a *cli.App, row call) *cobra.Command {
	if eachRow != nil {
		eachRow(row)
	}
	b := &bound{app: a, row: row, req: newRequest(row.op)}
	cmd := &cobra.Command{
		Use: row.use, Short: row.short, Long: row.long, Example: row.example,
		Annotations: map[string]string{operations: strings.Join(append([]string{row.op}, row.also...), " ")},
		RunE:        b.runE,
	}
	b.cmd = cmd
	least, most := 0, 0
	for _, in := range row.takes {
		switch {
		case in.arg > 0 && in.many:
			least, most = max(least, in.arg), -1
		case in.arg > 0 && !in.optional:
			least, most = max(least, in.arg), max(most, in.arg)
		case in.arg > 0:
			most = max(most, in.arg)
		}
		if in.bind != nil {
			in.bind(b, in)
		}
	}
	switch {
	case most < 0:
		cmd.Args = cobra.MinimumNArgs(least)
	case least == most:
		cmd.Args = cobra.ExactArgs(least)
	default:
		cmd.Args = cobra.RangeArgs(least, most)
	}
	f := cmd.Flags()
	if row.shows.writes64() && f.Lookup("base64") == nil {
		f.Bool("base64", false, "write base64 instead of raw bytes")
	}
	if row.shows.pem != "" {
		f.BoolVar(&b.pem, "pem", false, "write PEM instead of DER")
	}
	if row.pages > 0 {
		f.IntVar(&b.limit, "limit", 0, "show at most this many (default all)")
		f.StringVar(&b.marker, "marker", "", "continue where a list with --limit ended")
	}
	for _, o := range row.files {
		f.String(o.flag, "", o.usage)
	}
	if row.flags != nil {
		row.flags(cmd)
	}
	return cmd
}

// bound is a row together with the arguments and flags of the command line.
type bound struct {
	app  *cli.App
	row  call
	cmd  *cobra.Command
	args []string
	req  protoreflect.Message

	pem    bool
	limit  int
	marker string
}

// base64 reports whether the user wants bytes as base64.
func (b *bound) base64() bool {
	v, err := b.cmd.Flags().GetBool("base64")
	return err == nil && v
}

var kmsService = kmspb.File_transport_kmspb_kms_proto.Services().ByName("KMS")

func method(op string) protoreflect.MethodDescriptor {
	m := kmsService.Methods().ByName(protoreflect.Name(op))
	if m == nil {
		panic("no operation " + op) // a bug in a row, which shows when the program starts
	}
	return m
}

func newRequest(op string) protoreflect.Message  { return newMessage(method(op).Input()) }
func newResponse(op string) protoreflect.Message { return newMessage(method(op).Output()) }

func newMessage(d protoreflect.MessageDescriptor) protoreflect.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // cannot happen: the type is linked in
	}
	return t.New()
}

func (b *bound) runE(cmd *cobra.Command, args []string) error {
	b.args = args
	if b.limit < 0 {
		return cli.Usagef("--limit %d is negative", b.limit)
	}
	if b.row.before != nil {
		if err := b.row.before(b); err != nil {
			return err
		}
	}
	for _, in := range b.row.takes {
		if in.fill == nil {
			continue
		}
		if err := in.fill(b, in); err != nil {
			return err
		}
	}
	req := b.req.Interface()
	defer wipe(b.req)
	run := b.row.run
	if run == nil {
		run = oneCall
	}
	with := b.app.With
	if b.row.pages > 0 {
		with = b.app.WithEach
	}
	return with(cmd.Context(), b.doing(), func(ctx context.Context, c *cli.Connection) error {
		if err := b.app.Timed(ctx, func(ctx context.Context) error { return b.lookUp(ctx, c) }); err != nil {
			return err
		}
		return run(ctx, c, b, req)
	})
}

// doing says what is done, and to which key or other object.
func (b *bound) doing() string {
	for _, in := range b.row.takes {
		if !in.named {
			continue
		}
		if v := in.given(b); v != "" {
			return b.row.doing + " " + v
		}
	}
	return b.row.doing
}

// oneCall calls the row's operation and shows the answer.
func oneCall(ctx context.Context, c *cli.Connection, b *bound, req proto.Message) error {
	if b.row.pages > 0 {
		return b.list(ctx, c, req)
	}
	res := newResponse(b.row.op)
	defer wipe(res)
	if err := invoke(c, ctx, b.row.op, req, res.Interface()); err != nil {
		return b.dryRun(err)
	}
	return b.show(res)
}

// invoke makes one call.
func invoke(c *cli.Connection, ctx context.Context, op string, req, res proto.Message) error {
	return c.Calls().Invoke(ctx, fmt.Sprintf("/%s/%s", kmsService.FullName(), op), req, res)
}

// dryRun turns the error by which a successful dry run is answered into
// success.
func (b *bound) dryRun(err error) error {
	if f, ok := client.FromError(err); ok && f.Type == "DryRunOperationException" {
		b.app.Note("dry run: the request would have succeeded; nothing was done")
		return nil
	}
	return err
}

func (b *bound) show(res protoreflect.Message) error {
	if err := b.writeFiles(res); err != nil {
		return err
	}
	s := b.row.shows
	// Raw bytes are written unless a flag asks for JSON or YAML; the
	// environment's format does not count.
	if s.raw == "" || b.app.Output == "json" || b.app.Output == "yaml" {
		return b.app.Print(res.Interface(), func(w io.Writer) {
			if s.table != nil {
				s.table(w, res.Interface())
			}
		})
	}
	fields := res.Descriptor().Fields()
	raw := res.Get(fields.ByName(protoreflect.Name(s.raw))).Bytes()
	if f := fields.ByName("ciphertext_for_recipient"); f != nil && res.Has(f) {
		raw = res.Get(f).Bytes()
	}
	if b.pem {
		return emitPEM(b.app, raw, s.pem)
	}
	return emit(b.app, raw, s.writes64() && b.base64(), s.text)
}

// writeFiles writes members to the files that the user named, which only the user
// can read. These members are then not shown.
func (b *bound) writeFiles(res protoreflect.Message) error {
	for _, o := range b.row.files {
		name, err := b.cmd.Flags().GetString(o.flag)
		f := res.Descriptor().Fields().ByName(protoreflect.Name(o.member))
		if err != nil || name == "" || f == nil || !res.Has(f) {
			continue
		}
		raw := res.Get(f).Bytes()
		if err := files.Write(name, raw); err != nil {
			return err
		}
		clear(raw)
		res.Clear(f)
	}
	return nil
}

// list gets all pages, or as many entries as the user wants.
func (b *bound) list(ctx context.Context, c *cli.Connection, req proto.Message) error {
	all, err := b.collect(ctx, c, req)
	if err != nil {
		return err
	}
	if err := b.show(all); err != nil {
		return err
	}
	return b.more(all.Interface().(page))
}

// more prints where a list that was cut short continues.
func (b *bound) more(p page) error {
	if next := p.GetNextMarker(); next != "" {
		b.app.Note("there are more; continue with --marker %s", cli.Quote(cli.Printable(next)))
	}
	return nil
}

// page is one page of a list.
type page interface {
	proto.Message
	GetNextMarker() string
	GetTruncated() bool
}

// collect joins the pages of a list into one answer, which says where the list
// continues if it was cut short. Each page may take the time of one answer.
func (b *bound) collect(ctx context.Context, c *cli.Connection, req proto.Message) (protoreflect.Message, error) {
	r := req.ProtoReflect()
	fields := r.Descriptor().Fields()
	limit, marker := fields.ByName("limit"), fields.ByName("marker")
	if b.marker != "" {
		r.Set(marker, protoreflect.ValueOfString(b.marker))
	}
	all := newResponse(b.row.op)
	entries := listField(all.Descriptor())
	for {
		size := b.row.pages
		if b.limit > 0 {
			size = min(size, int32(min(b.limit-all.Get(entries).List().Len(), 1<<20)))
		}
		r.Set(limit, protoreflect.ValueOfInt32(size))
		res := newResponse(b.row.op)
		if err := b.app.Timed(ctx, func(ctx context.Context) error { return invoke(c, ctx, b.row.op, req, res.Interface()) }); err != nil {
			return nil, err
		}
		p := res.Interface().(page)
		if p.GetTruncated() && p.GetNextMarker() == "" {
			return nil, errors.New("the server cut the list short without saying where it continues")
		}
		before, got := all.Mutable(entries).List(), res.Get(entries).List()
		for i := range got.Len() {
			before.Append(got.Get(i))
		}
		if !p.GetTruncated() {
			return all, nil
		}
		if b.limit > 0 && before.Len() >= b.limit {
			for _, name := range []protoreflect.Name{"next_marker", "truncated"} {
				f := res.Descriptor().Fields().ByName(name)
				all.Set(f, res.Get(f))
			}
			return all, nil
		}
		r.Set(marker, protoreflect.ValueOfString(p.GetNextMarker()))
	}
}

// listField returns the member of an answer that has the entries.
func listField(d protoreflect.MessageDescriptor) protoreflect.FieldDescriptor {
	for i := range d.Fields().Len() {
		if f := d.Fields().Get(i); f.IsList() {
			return f
		}
	}
	panic(d.FullName() + " is not a list") // a bug in a row
}

// wipe overwrites all byte strings of a message, as they may be plaintexts,
// secrets and keys.
func wipe(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() || f.IsList():
		case f.Kind() == protoreflect.BytesKind:
			clear(v.Bytes())
		case f.Kind() == protoreflect.MessageKind:
			wipe(v.Message())
		}
		return true
	})
}

// lookUp replaces aliases by key ids in requests that do not accept aliases.
func (b *bound) lookUp(ctx context.Context, c *cli.Connection) error {
	if aliasForms[b.row.op] {
		return nil
	}
	for _, in := range b.row.takes {
		if !in.key {
			continue
		}
		f := b.req.Descriptor().Fields().ByName(protoreflect.Name(in.member))
		if !b.req.Has(f) {
			continue
		}
		id, err := keyID(c, ctx, b.req.Get(f).String())
		if err != nil {
			return err
		}
		b.req.Set(f, protoreflect.ValueOfString(id))
	}
	return nil
}

// keyID returns the id of a key that may be given by an alias or an alias's
// ARN.
func keyID(c *cli.Connection, ctx context.Context, name string) (string, error) {
	if !isAlias(name) {
		return name, nil
	}
	res, err := c.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: &name})
	if err != nil {
		return "", fmt.Errorf("looking up %s: %w", name, err)
	}
	return res.GetKeyMetadata().GetKeyId(), nil
}

// base64Of encodes bytes for tables.
func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
