package cli

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// ReadAudit calls each with the records of the audit log from an index on, until the log ends
// or, if follow is set, for ever.
func (c *Connection) ReadAudit(ctx context.Context, from uint64, follow bool, each func(*kmspb.ReadAuditResponse) error) error {
	stream, err := c.Audit().Read(ctx, &kmspb.ReadAuditRequest{From: from, Follow: follow})
	if err != nil {
		return err
	}
	r, err := stream.Recv()
	if f, ok := client.FromError(err); ok && f.Code == codes.Unauthenticated {
		// The session that an earlier command kept is no longer valid, and was
		// dropped.
		if stream, err = c.Audit().Read(ctx, &kmspb.ReadAuditRequest{From: from, Follow: follow}); err != nil {
			return err
		}
		r, err = stream.Recv()
	}
	for ; ; r, err = stream.Recv() {
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(r); err != nil {
			return err
		}
	}
}
