package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// ImportNodeCA gives the cluster the CA of its nodes' certificates: its certificate in DER, and
// its key as PKCS #8 in DER. The key is encrypted to the node that c is connected to, after
// verifying that the other end is that node. The caller has to wipe it.
func ImportNodeCA(ctx context.Context, c kmspb.ClusterClient, certificate, key []byte) error {
	var at peer.Peer
	in, err := c.GetNodeCA(ctx, &kmspb.GetNodeCARequest{}, grpc.Peer(&at))
	if err != nil {
		return err
	}
	if err := checkNode(&at, in.GetNodeId()); err != nil {
		return err
	}
	sum := sha256.Sum256(certificate)
	sealed, err := seal(in.GetReceiver(), slices.Concat([]byte("conclave CA key v1\x00"), in.GetClusterId(), sum[:], []byte(in.GetNodeId())), key)
	if err != nil {
		return fmt.Errorf("node %s: %w", in.GetNodeId(), err)
	}
	_, err = c.ImportNodeCA(ctx, &kmspb.ImportNodeCARequest{Certificate: certificate, SealedKey: sealed})
	return err
}

// JoinAuthority returns the certificate of the CA that the cluster of a node says it has, in
// DER, for a machine that has no way yet to tell the cluster's nodes from others. Nothing is
// sent to the node, and nothing about the answer is certain: the caller compares it with a
// fingerprint.
func JoinAuthority(ctx context.Context, cfg Config) ([]byte, error) {
	cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	c, err := Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	res, err := c.Joining().GetJoinAuthority(ctx, &kmspb.GetJoinAuthorityRequest{})
	return res.GetCertificate(), err
}

// Joining returns a client for a machine that joins the cluster. It needs no certificate.
func (c *Client) Joining() kmspb.JoiningClient { return kmspb.NewJoiningClient(c.conn) }
