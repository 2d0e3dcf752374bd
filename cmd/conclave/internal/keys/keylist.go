package keys

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// listedKey is what `key list` shows of a key, without what the caller may not
// see.
type listedKey struct {
	KeyID       string   `json:"key_id"`
	ARN         string   `json:"key_arn"`
	Aliases     []string `json:"aliases"`
	State       string   `json:"key_state,omitempty"`
	Spec        string   `json:"key_spec,omitempty"`
	Usage       string   `json:"key_usage,omitempty"`
	Description string   `json:"description,omitempty"`
	LastUsed    string   `json:"last_used,omitempty"`
	LastUsedFor string   `json:"last_used_for,omitempty"`
}

type listedKeys struct {
	Keys       []*listedKey `json:"keys"`
	NextMarker string       `json:"next_marker,omitempty"`
}

// together is how many keys are queried concurrently.
const together = 8

func keyListCall() call {
	return call{
		use: "list", short: "List keys with alias, state, spec, last use and description",
		op: "ListKeys", also: []string{"DescribeKey", "GetKeyLastUsage", "ListAliases"}, doing: "listing keys", pages: 1000,
		long: `List shows all keys. ListKeys returns only ids, so two more calls are made for each
key, which are in the audit log; --quiet lists only the ids, without these calls.`,
		example: `  conclave key list
  conclave key list --limit 20 -o json
  conclave key list --quiet`,
		flags: func(cmd *cobra.Command) { cmd.Flags().BoolP("quiet", "q", false, "print only the key ids") },
		run:   listKeys,
	}
}

func listKeys(ctx context.Context, c *cli.Connection, b *bound, req proto.Message) error {
	got, err := b.collect(ctx, c, req)
	if err != nil {
		return err
	}
	res := got.Interface().(*kmspb.ListKeysResponse)
	if quiet, err := b.cmd.Flags().GetBool("quiet"); err == nil && quiet {
		for _, k := range res.GetKeys() {
			if _, err := fmt.Fprintln(b.app.Stdout, cli.Printable(k.GetKeyId())); err != nil {
				return err
			}
		}
		return b.more(res)
	}
	out := &listedKeys{Keys: make([]*listedKey, len(res.GetKeys())), NextMarker: res.GetNextMarker()}
	for i, k := range res.GetKeys() {
		out.Keys[i] = &listedKey{KeyID: k.GetKeyId(), ARN: k.GetKeyArn(), Aliases: []string{}}
	}
	if err := b.nameKeys(ctx, c, out.Keys); err != nil {
		return err
	}
	if err := b.inquire(ctx, c, out.Keys); err != nil {
		return err
	}
	err = b.app.Print(out, func(w io.Writer) {
		cli.Line(w, "ALIAS", "KEY ID", "STATE", "SPEC", "LAST USED", "DESCRIPTION")
		for _, k := range out.Keys {
			names := make([]string, len(k.Aliases))
			for i, n := range k.Aliases {
				names[i] = strings.TrimPrefix(n, "alias/")
			}
			cli.Line(w, cli.OrDash(strings.Join(names, ",")), k.KeyID, cli.OrDash(k.State), cli.OrDash(k.Spec), cli.OrDash(k.LastUsed), cli.OrDash(k.Description))
		}
	})
	if err != nil {
		return err
	}
	return b.more(res)
}

// nameKeys adds their aliases to keys, unless the caller may not list them.
func (b *bound) nameKeys(ctx context.Context, c *cli.Connection, keys []*listedKey) error {
	byID := make(map[string]*listedKey, len(keys))
	for _, k := range keys {
		byID[k.KeyID] = k
	}
	list := &bound{app: b.app, row: call{op: "ListAliases", pages: 100}}
	all, err := list.collect(ctx, c, new(kmspb.ListAliasesRequest))
	if err != nil {
		return unlessDenied(err)
	}
	for _, x := range all.Interface().(*kmspb.ListAliasesResponse).GetAliases() {
		if k := byID[x.GetTargetKeyId()]; k != nil {
			k.Aliases = append(k.Aliases, x.GetAliasName())
		}
	}
	for _, k := range keys {
		slices.Sort(k.Aliases)
	}
	return nil
}

// inquire queries each key, several concurrently.
func (b *bound) inquire(ctx context.Context, c *cli.Connection, keys []*listedKey) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	turns := make(chan struct{}, together)
	for _, k := range keys {
		turns <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-turns }()
			if err := b.app.Timed(ctx, func(ctx context.Context) error { return k.inquire(ctx, c) }); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (k *listedKey) inquire(ctx context.Context, c *cli.Connection) error {
	d, err := c.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: &k.KeyID})
	if err := unlessDenied(err); err != nil {
		return err
	}
	m := d.GetKeyMetadata()
	k.State, k.Spec, k.Usage, k.Description = m.GetKeyState(), m.GetKeySpec(), m.GetKeyUsage(), m.GetDescription()
	u, err := c.KMS().GetKeyLastUsage(ctx, &kmspb.GetKeyLastUsageRequest{KeyId: &k.KeyID})
	if err := unlessDenied(err); err != nil {
		return err
	}
	if t := u.GetKeyLastUsage().GetTimestamp(); t != nil {
		k.LastUsed, k.LastUsedFor = cli.When(t), u.GetKeyLastUsage().GetOperation()
	}
	return nil
}

// unlessDenied ignores errors for what the caller may not see, and for a key that
// was deleted in the meantime.
func unlessDenied(err error) error {
	if Denied(err) {
		return nil
	}
	return err
}

// Denied reports whether an error is for what the caller may not see, or for a key that was
// deleted in the meantime.
func Denied(err error) bool {
	f, ok := client.FromError(err)
	return ok && (f.Type == "AccessDeniedException" || f.Type == "NotFoundException")
}
