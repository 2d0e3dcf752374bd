package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// aliasName is the full name of an alias.
func aliasName(name string) string {
	if strings.HasPrefix(name, "alias/") {
		return name
	}
	return "alias/" + name
}

func (a *app) aliasCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "alias", Short: "Give keys names", Long: "Alias gives keys names: alias/NAME, or NAME for short."}
	a.clientFlags(cmd)
	list := &cobra.Command{Use: "list", Short: "List all aliases, or those of a key"}
	key := list.Flags().String("key", "", "only the aliases of this key")
	list.RunE = func(cmd *cobra.Command, _ []string) error { return a.listAliases(cmd.Context(), *key) }
	cmd.AddCommand(&cobra.Command{
		Use: "create NAME KEY", Short: "Give a key a name", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := aliasName(args[0])
			return a.with(cmd.Context(), "creating "+name, func(ctx context.Context, c *connection) error {
				res, err := c.KMS().CreateAlias(ctx, &kmspb.CreateAliasRequest{AliasName: &name, TargetKeyId: &args[1]})
				if err != nil {
					return err
				}
				return a.print(res, func(io.Writer) {})
			})
		},
	}, &cobra.Command{
		Use: "update NAME KEY", Short: "Point a name at another key", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := aliasName(args[0])
			return a.with(cmd.Context(), "updating "+name, func(ctx context.Context, c *connection) error {
				res, err := c.KMS().UpdateAlias(ctx, &kmspb.UpdateAliasRequest{AliasName: &name, TargetKeyId: &args[1]})
				if err != nil {
					return err
				}
				return a.print(res, func(io.Writer) {})
			})
		},
	}, &cobra.Command{
		Use: "delete NAME", Short: "Delete a name; the key stays", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := aliasName(args[0])
			return a.with(cmd.Context(), "deleting "+name, func(ctx context.Context, c *connection) error {
				res, err := c.KMS().DeleteAlias(ctx, &kmspb.DeleteAliasRequest{AliasName: &name})
				if err != nil {
					return err
				}
				return a.print(res, func(io.Writer) {})
			})
		},
	}, list)
	return cmd
}

func (a *app) listAliases(ctx context.Context, key string) error {
	return a.with(ctx, "listing aliases", func(ctx context.Context, c *connection) error {
		all := new(kmspb.ListAliasesResponse)
		err := pages(func(marker *string) (string, error) {
			req := &kmspb.ListAliasesRequest{Limit: proto.Int32(100), Marker: marker}
			if key != "" {
				req.KeyId = &key
			}
			res, err := c.KMS().ListAliases(ctx, req)
			all.Aliases = append(all.Aliases, res.GetAliases()...)
			return nextOf(res, err)
		})
		if err != nil {
			return err
		}
		return a.print(all, func(w io.Writer) {
			line(w, "ALIAS", "KEY ID", "UPDATED")
			for _, x := range all.Aliases {
				line(w, x.GetAliasName(), orDash(x.GetTargetKeyId()), when(x.GetLastUpdatedDate()))
			}
		})
	})
}
