package audit

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog/receipt"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func auditReceiptCommand(a *cli.App) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "receipt INDEX|REQUEST-ID",
		Short: "Write a file that proves that a record is in the log",
		Long: `Receipt writes a file that proves that a record is in the audit log, and when the log had
it. The file is in the form of C2SP tlog-proof: whoever has it and the log's public
key can verify it without a server and without the log. It does not show the record.

Every answer names its record: in the header X-Conclave-Audit-Index, over gRPC in the
trailer x-conclave-audit-index. A record can also be named by the id of its request.
Callers need the permission conclave:ReadAudit.`,
		Example: `  conclave audit receipt 5
  conclave audit receipt 5 --out - > copy.tlog-proof`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := new(kmspb.GetRecordReceiptRequest)
			if index, err := strconv.ParseUint(args[0], 10, 63); err == nil {
				in.Record = &kmspb.GetRecordReceiptRequest_Index{Index: index}
			} else if id, err := hex.DecodeString(strings.ReplaceAll(args[0], "-", "")); err == nil && len(id) == 16 {
				in.Record = &kmspb.GetRecordReceiptRequest_RequestId{RequestId: id}
			} else {
				return cli.Usagef("%q is neither the index of a record nor the id of a request", args[0])
			}
			return a.With(cmd.Context(), "getting the receipt", func(ctx context.Context, c *cli.Connection) error {
				res, err := c.Audit().GetReceipt(ctx, in)
				if err != nil {
					return err
				}
				// What a server sends is written only if it is a receipt.
				r, err := receipt.Parse(res.GetReceipt())
				if err != nil {
					return fmt.Errorf("the server's answer: %w", err)
				}
				if out == "-" {
					_, err := a.Stdout.Write(res.GetReceipt())
					return err
				}
				name := out
				if name == "" {
					name = fmt.Sprintf("record-%d.tlog-proof", r.Index)
				}
				if err := files.Write(name, res.GetReceipt()); err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.Stdout, filepath.Clean(name))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", `file to write, or "-" for standard output (default record-INDEX.tlog-proof)`)
	return a.ClientFlags(cmd)
}

// verifiedReceipt is what a receipt proves.
type verifiedReceipt struct {
	OK         bool   `json:"ok"`
	Log        string `json:"log"`
	Record     uint64 `json:"record"`
	RequestID  string `json:"request_id"`
	Time       string `json:"time"`
	Commitment string `json:"commitment"`
	Signed     uint64 `json:"signed"`
	Root       string `json:"root"`
	// CosignedBy are those of the witnesses that were named.
	CosignedBy []string `json:"cosigned_by,omitempty"`
}

func auditVerifyReceiptCommand(a *cli.App) *cobra.Command {
	var key string
	var by quorumFlags
	cmd := &cobra.Command{
		Use:   "verify-receipt FILE --key KEY",
		Short: "Verify a receipt, with only the log's public key",
		Long: `Verify-receipt verifies a file of "conclave audit receipt" without a server: that the
log's checkpoint has valid signatures by KEY, and that its tree has the record. KEY is
as for "conclave audit verify". The exit code is 1 if it does not verify.

With --witness, witnesses have to have cosigned the checkpoint too, all that are named or
as many as --quorum says. That proves that the log did not show another history to others.`,
		Example: `  conclave audit verify-receipt record-5.tlog-proof --key audit.pub
  conclave audit verify-receipt record-5.tlog-proof --key audit.pub --witness one.pub --witness two.pub --quorum 1`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if key == "" {
				return cli.Usagef("--key is required: the audit log's public key, or a file with it")
			}
			if _, err := a.Format(); err != nil {
				return err
			}
			quorum, err := by.quorum()
			if err != nil {
				return err
			}
			keys, err := KeyText(key)
			if err != nil {
				return err
			}
			raw, err := a.ReadInput(args[0], receipt.MaxSize)
			if err != nil {
				return err
			}
			r, err := receipt.Parse(raw)
			if err != nil {
				return err
			}
			e, c, err := r.Verify(keys)
			if err != nil {
				return err
			}
			names, err := quorum.Check(r.Checkpoint)
			if err != nil {
				return err
			}
			id := hex.EncodeToString(e.RequestID[:])
			v := verifiedReceipt{
				OK: true, Log: c.Origin, Record: e.Index, Time: time.Unix(0, e.Time).UTC().Format(time.RFC3339Nano),
				RequestID:  strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-"),
				Commitment: hex.EncodeToString(e.Commitment[:]), Signed: c.Size, Root: hex.EncodeToString(c.Root[:]),
				CosignedBy: names,
			}
			return a.Print(v, func(w io.Writer) {
				cli.Line(w, "verdict", "good")
				cli.Line(w, "log", v.Log)
				cli.Line(w, "record", v.Record)
				cli.Line(w, "request", v.RequestID)
				cli.Line(w, "time", v.Time)
				cli.Line(w, "commitment", v.Commitment)
				cli.Line(w, "signed", fmt.Sprintf("%d records", v.Signed))
				cli.Line(w, "root", v.Root)
				cosignedLine(w, v.CosignedBy)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "public key, or a file with it")
	by.add(cmd.Flags())
	return a.OutputFlag(cmd)
}
