package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// A program that has an access key encrypts with a key that it knows by its alias.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Config{
		Address:         "kms-1.example.com:7601,kms-2.example.com:7601", // the first that answers
		CAFile:          "ca.pem",
		AccessKeyID:     os.Getenv("AWS_ACCESS_KEY_ID"),
		SecretAccessKey: client.Secret(os.Getenv("AWS_SECRET_ACCESS_KEY")),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	out, err := c.KMS().Encrypt(ctx, &kmspb.EncryptRequest{
		KeyId:             proto.String("alias/orders"),
		Plaintext:         []byte("attack at dawn"),
		EncryptionContext: map[string]string{"order": "4711"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("encrypted with %s: %d bytes\n", out.GetKeyId(), len(out.GetCiphertextBlob()))
}

// An error of a server has AWS's name, and the id of the request in the audit log.
func ExampleFromError() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Address: "localhost:7601", CAFile: "ca.pem", CertFile: "app.pem", KeyFile: "app-key.pem"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, err = c.KMS().DisableKey(ctx, &kmspb.DisableKeyRequest{KeyId: proto.String("1234abcd-12ab-34cd-56ef-1234567890ab")})
	if e, ok := client.FromError(err); ok && e.Type == "NotFoundException" {
		fmt.Printf("there is no such key (request %s)\n", e.RequestID)
	}
}

// An operator submits a share. The certificate identifies the operator; the caller has
// to wipe the share.
func ExampleSubmitShare() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Address: "kms-1.example.com:7601", CAFile: "ca.pem", CertFile: "operator.pem", KeyFile: "operator-key.pem"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	share, err := os.ReadFile("share.txt")
	if err != nil {
		log.Fatal(err)
	}
	defer clear(share)
	status, err := client.SubmitShare(ctx, c.Operator(), share)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("sealed: %v\n", status.GetSeal().GetSealed())
}
