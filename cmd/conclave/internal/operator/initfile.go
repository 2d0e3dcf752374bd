package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/clusterfile"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// fileOutput is what a run of init with a file did.
type fileOutput struct {
	Init  *initOutput        `json:"init,omitempty"`
	Items []clusterfile.Item `json:"items"`
	// Next is what people have to do before the next run; "" if there is nothing.
	Next string `json:"next,omitempty"`
}

func (f *fileOutput) table(w io.Writer) {
	if f.Init != nil {
		f.Init.table(w)
		fmt.Fprintln(w)
	}
	if len(f.Items) > 0 {
		cli.Line(w, "KIND", "NAME", "STATE", "DETAIL")
		for _, it := range f.Items {
			cli.Line(w, it.Kind, it.Name, it.State, cli.OrDash(it.Detail))
		}
	}
	if f.Next != "" {
		fmt.Fprintf(w, "\nnext: %s\n", cli.Printable(f.Next))
	}
}

// initFromFile does as much of what a file describes as can be done now, and says what comes
// next. It ends with exit code 3 if that is to unseal the nodes.
func initFromFile(ctx context.Context, a *cli.App, name, dir, transcriptFile string) error {
	f, err := clusterfile.Read(name)
	if err != nil {
		return err
	}
	var st *kmspb.StatusResponse
	err = a.With(ctx, "getting the status", func(ctx context.Context, c *cli.Connection) (err error) {
		st, err = c.Operator().Status(ctx, &kmspb.StatusRequest{})
		return err
	})
	if err != nil {
		return err
	}
	if st.GetNodeId() == "" {
		return errors.New("the node tells the rest only to operators: give the certificate of one with --cert and --key-file, or CONCLAVE_CERT and CONCLAVE_KEY")
	}
	seal := st.GetSeal()
	out := new(fileOutput)
	if !seal.GetInitialised() {
		paper, err := newTranscript(a, transcriptFile, "initialisation")
		if err != nil {
			return err
		}
		defer paper.discard()
		if out.Init, err = initialise(ctx, a, f.Init(), dir, paper); err != nil {
			return err
		}
		out.Items = []clusterfile.Item{{Kind: "cluster", Name: out.Init.ClusterID, State: clusterfile.Created}}
		out.Next = unsealNext(f, nil)
		return sealedNext(a, out)
	}
	cluster := f.Compare(seal)
	out.Items = []clusterfile.Item{cluster}
	if cluster.State == clusterfile.Differs {
		// It may be another cluster altogether, which must not get these users and keys.
		return errors.Join(a.Print(out, out.table), fmt.Errorf("the cluster is not the one that %s describes: nothing was done", name))
	}
	if seal.GetSealed() {
		out.Next = unsealNext(f, seal.GetCustodians())
		return sealedNext(a, out)
	}
	err = a.WithEach(ctx, "making what the file describes", func(ctx context.Context, c *cli.Connection) error {
		if err := nameFromFile(ctx, a, c, f, seal, out); err != nil {
			return err
		}
		items, err := f.Apply(ctx, a, c, dir)
		out.Items = append(out.Items, items...)
		return err
	})
	return errors.Join(a.Print(out, out.table), err, differences(out.Items))
}

// sealedNext shows what was done, and ends with the exit code for sealed nodes.
func sealedNext(a *cli.App, out *fileOutput) error {
	if err := a.Print(out, out.table); err != nil {
		return err
	}
	return &cli.CodedError{Code: cli.ExitSealed}
}

// unsealNext says who must come to unseal the nodes. have are the indexes of the shares that
// the node has.
func unsealNext(f *clusterfile.File, have []uint32) string {
	var names []string
	for i, c := range f.Custodians {
		if !slices.Contains(have, uint32(i+1)) {
			names = append(names, c.Name)
		}
	}
	who := "custodians"
	if names != nil {
		who = "of " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("%d %s submit their shares to all nodes with `conclave operator unseal`; then run this command again, with the root user's access key", f.Threshold-len(have), who)
}

// nameFromFile names the custodians, unless the cluster has their names already, which were
// compared.
func nameFromFile(ctx context.Context, a *cli.App, c *cli.Connection, f *clusterfile.File, seal *kmspb.SealState, out *fileOutput) error {
	names := f.Names()
	if len(names) == 0 {
		return nil
	}
	it := clusterfile.Item{Kind: "custodians", Name: fmt.Sprint(len(names)), State: clusterfile.Unchanged}
	if len(seal.GetShareSet().GetCustodians()) == 0 {
		err := a.Timed(ctx, func(ctx context.Context) error {
			_, err := c.Operator().NameCustodians(ctx, &kmspb.NameCustodiansRequest{Custodians: names})
			return err
		})
		switch e, _ := client.FromError(err); {
		case e.Type == "UnsupportedOperationException":
			it.State, it.Detail = clusterfile.Later, "their names are stored from feature level 2 on"
			out.Next = "when all nodes run this release for good, `conclave cluster upgrade finalize`; then run this command again"
		case err != nil:
			return cli.Explain("naming the custodians", c.Address, err)
		default:
			it.State = clusterfile.Created
		}
	}
	out.Items = append(out.Items, it)
	return nil
}

// differences returns an error if objects are not as the file says.
func differences(items []clusterfile.Item) error {
	n := 0
	for _, it := range items {
		if it.State == clusterfile.Differs {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("what exists and is not as the file says: %d; it was not changed", n)
}
