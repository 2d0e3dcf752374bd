package access

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/iampb"
)

func accessKeyCommand(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "key", Short: "Manage the access keys of users, who can have two",
		Long: `Key manages the access keys of users, who can have two. Without --user, they are those of
the caller.

To replace an access key: create another, use it, deactivate the old one, and delete it
when nobody misses it.`,
		Example: `  conclave iam key create --user alice --secret-file new.env
  conclave iam key list --user alice`,
	}
	cmd.AddCommand(createKeyCommand(a))
	user := func(b *binder) { b.text("user_name", "user", "the user (default the caller)") }
	keyed := func(more func(*binder)) func(*binder) {
		return func(b *binder) {
			b.arg("access_key_id")
			user(b)
			if more != nil {
				more(b)
			}
		}
	}
	cmd.AddCommand(newCommands(a,
		row{
			use: "list", short: "List the access keys of a user", op: "ListAccessKeys", doing: "listing access keys", list: true,
			example: `  conclave iam key list --user alice`,
			binds:   user,
			table: tableOf(func(w io.Writer, r *iampb.ListAccessKeysResponse) {
				cli.Line(w, "ACCESS KEY", "USER", "STATUS", "CREATED")
				for _, k := range r.GetAccessKeyMetadata() {
					cli.Line(w, k.GetAccessKeyId(), cli.OrDash(k.GetUserName()), k.GetStatus(), cli.When(k.GetCreateDate()))
				}
			}),
		},
		row{
			use: "deactivate ID", short: "Make an access key useless, until it is activated again", op: "UpdateAccessKey", doing: "deactivating access key",
			example: `  conclave iam key deactivate "$SPARE" --user alice`,
			binds:   keyed(func(b *binder) { b.is("status", "Inactive") }),
		},
		row{
			use: "activate ID", short: "Activate an access key that was deactivated", op: "UpdateAccessKey", doing: "activating access key",
			example: `  conclave iam key activate "$SPARE" --user alice`,
			binds:   keyed(func(b *binder) { b.is("status", "Active") }),
		},
		row{
			use: "delete ID", short: "Delete an access key", op: "DeleteAccessKey", doing: "deleting access key",
			example: `  conclave iam key delete "$SPARE" --user alice`,
			binds:   keyed(nil),
		},
		row{
			use: "last-used ID", short: "Print when an access key was last used, and for which service", op: "GetAccessKeyLastUsed", doing: "looking up the last use of access key",
			example: `  conclave iam key last-used "$SPARE"`,
			binds:   func(b *binder) { b.arg("access_key_id") },
			table: tableOf(func(w io.Writer, r *iampb.GetAccessKeyLastUsedResponse) {
				used := r.GetAccessKeyLastUsed()
				cli.Line(w, "user", cli.OrDash(r.GetUserName()))
				cli.Line(w, "last used", cli.When(used.GetLastUsedDate()))
				cli.Line(w, "service", cli.OrDash(used.GetServiceName()))
				cli.Line(w, "region", cli.OrDash(used.GetRegion()))
			}),
		},
	)...)
	return cmd
}

func createKeyCommand(a *cli.App) *cobra.Command {
	var kf keyFlags
	cmd := newCommand(a, row{
		use: "create", short: "Create an access key", op: "CreateAccessKey", doing: "creating an access key",
		long: `Create creates an access key. Its secret is shown only once, or, with --secret-file,
written to a new file of mode 0600 for a shell to read.`,
		example: `  conclave iam key create --user alice --secret-file alice-2.env`,
		binds:   func(b *binder) { b.text("user_name", "user", "the user (default the caller)") },
		run: func(ctx context.Context, c *cli.Connection, b *binder) error {
			out, err := cli.NewSecretFile(kf.file)
			if err != nil {
				return err
			}
			defer out.Discard()
			return createKey(ctx, a, c, message[*iampb.CreateAccessKeyRequest](b), out, "")
		},
	})
	kf.bindFile(cmd)
	return cmd
}

// keyFlags are the flags of commands that create an access key.
type keyFlags struct {
	create bool
	file   string
}

// bind makes the flags of a command that creates an access key only if it is told to.
func (k *keyFlags) bind(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&k.create, "create-key", false, "create an access key too, and show its secret")
	k.bindFile(cmd)
}

func (k *keyFlags) bindFile(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.file, "secret-file", "", "file for the access key, which must not exist yet")
}

func (k *keyFlags) wanted() bool { return k.create || k.file != "" }

// createKey creates an access key, and shows it or stores it in a file, which may be nil. arn
// is that of its user, if it is known.
func createKey(ctx context.Context, a *cli.App, c *cli.Connection, req *iampb.CreateAccessKeyRequest, out *cli.SecretFile, arn string) error {
	var res *iampb.CreateAccessKeyResponse
	err := a.Timed(ctx, func(ctx context.Context) (err error) {
		res, err = c.IAM().CreateAccessKey(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	k := res.GetAccessKey()
	return a.Deliver(cli.AccessKey{UserName: k.GetUserName(), UserARN: arn, AccessKeyID: k.GetAccessKeyId(), SecretAccessKey: k.GetSecretAccessKey()}, out)
}
