package harness

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/middleware"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// Calls makes requests to one node, as the account's root, and records them. After an error
// the results other than the Op are zero values.
type Calls struct {
	*History
	Node *Node
}

// At returns Calls to a node.
func (h *History) At(n *Node) Calls { return Calls{h, n} }

// grpcCall makes and records a call of the gRPC API.
func grpcCall[In, Out any](ctx context.Context, c Calls, name string, method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) (out *Out, o Op) {
	o = c.GRPC(ctx, c.Node, name, func(ctx context.Context, opts ...grpc.CallOption) (err error) {
		out, err = method(ctx, in, opts...)
		return err
	})
	return out, o
}

// CreateKey creates a key and returns its id.
func (c Calls) CreateKey(ctx context.Context, description string) (string, Op) {
	out, o := grpcCall(ctx, c, "CreateKey", c.Node.KMS().CreateKey, &kmspb.CreateKeyRequest{Description: &description})
	return out.GetKeyMetadata().GetKeyId(), o
}

// DescribeKey returns the key's state.
func (c Calls) DescribeKey(ctx context.Context, key string) (string, Op) {
	out, o := grpcCall(ctx, c, "DescribeKey", c.Node.KMS().DescribeKey, &kmspb.DescribeKeyRequest{KeyId: &key})
	return out.GetKeyMetadata().GetKeyState(), o
}

// EnableKey enables a key.
func (c Calls) EnableKey(ctx context.Context, key string) Op {
	_, o := grpcCall(ctx, c, "EnableKey", c.Node.KMS().EnableKey, &kmspb.EnableKeyRequest{KeyId: &key})
	return o
}

// DisableKey disables a key.
func (c Calls) DisableKey(ctx context.Context, key string) Op {
	_, o := grpcCall(ctx, c, "DisableKey", c.Node.KMS().DisableKey, &kmspb.DisableKeyRequest{KeyId: &key})
	return o
}

// RotateKeyOnDemand rotates a key's material.
func (c Calls) RotateKeyOnDemand(ctx context.Context, key string) Op {
	_, o := grpcCall(ctx, c, "RotateKeyOnDemand", c.Node.KMS().RotateKeyOnDemand, &kmspb.RotateKeyOnDemandRequest{KeyId: &key})
	return o
}

// PutKeyPolicy replaces a key's policy.
func (c Calls) PutKeyPolicy(ctx context.Context, key, policy string) Op {
	_, o := grpcCall(ctx, c, "PutKeyPolicy", c.Node.KMS().PutKeyPolicy, &kmspb.PutKeyPolicyRequest{KeyId: &key, Policy: &policy})
	return o
}

// UpdateKeyDescription replaces a key's description.
func (c Calls) UpdateKeyDescription(ctx context.Context, key, text string) Op {
	_, o := grpcCall(ctx, c, "UpdateKeyDescription", c.Node.KMS().UpdateKeyDescription, &kmspb.UpdateKeyDescriptionRequest{KeyId: &key, Description: &text})
	return o
}

// CreateAlias creates an alias.
func (c Calls) CreateAlias(ctx context.Context, name, key string) Op {
	_, o := grpcCall(ctx, c, "CreateAlias", c.Node.KMS().CreateAlias, &kmspb.CreateAliasRequest{AliasName: &name, TargetKeyId: &key})
	return o
}

// UpdateAlias points an alias to another key.
func (c Calls) UpdateAlias(ctx context.Context, name, key string) Op {
	_, o := grpcCall(ctx, c, "UpdateAlias", c.Node.KMS().UpdateAlias, &kmspb.UpdateAliasRequest{AliasName: &name, TargetKeyId: &key})
	return o
}

// DeleteAlias deletes an alias.
func (c Calls) DeleteAlias(ctx context.Context, name string) Op {
	_, o := grpcCall(ctx, c, "DeleteAlias", c.Node.KMS().DeleteAlias, &kmspb.DeleteAliasRequest{AliasName: &name})
	return o
}

// Tag adds a tag to a key.
func (c Calls) Tag(ctx context.Context, key, name, value string) Op {
	_, o := grpcCall(ctx, c, "TagResource", c.Node.KMS().TagResource, &kmspb.TagResourceRequest{
		KeyId: &key, Tags: []*kmspb.Tag{{TagKey: &name, TagValue: &value}},
	})
	return o
}

// Untag removes a tag from a key.
func (c Calls) Untag(ctx context.Context, key, name string) Op {
	_, o := grpcCall(ctx, c, "UntagResource", c.Node.KMS().UntagResource, &kmspb.UntagResourceRequest{KeyId: &key, TagKeys: []string{name}})
	return o
}

// Tags returns a key's tags.
func (c Calls) Tags(ctx context.Context, key string) (map[string]string, Op) {
	out, o := grpcCall(ctx, c, "ListResourceTags", c.Node.KMS().ListResourceTags, &kmspb.ListResourceTagsRequest{KeyId: &key})
	tags := make(map[string]string)
	for _, t := range out.GetTags() {
		tags[t.GetTagKey()] = t.GetTagValue()
	}
	return tags, o
}

// Encrypt returns the ciphertext and the ARN of the key.
func (c Calls) Encrypt(ctx context.Context, key string, plaintext []byte) (blob []byte, arn string, o Op) {
	out, o := grpcCall(ctx, c, "Encrypt", c.Node.KMS().Encrypt, &kmspb.EncryptRequest{KeyId: &key, Plaintext: plaintext})
	return out.GetCiphertextBlob(), out.GetKeyId(), o
}

// Decrypt returns the plaintext.
func (c Calls) Decrypt(ctx context.Context, blob []byte) ([]byte, Op) {
	out, o := grpcCall(ctx, c, "Decrypt", c.Node.KMS().Decrypt, &kmspb.DecryptRequest{CiphertextBlob: blob})
	return out.GetPlaintext(), o
}

// DataKey returns a data key, encrypted and in plaintext.
func (c Calls) DataKey(ctx context.Context, key string) (blob, plaintext []byte, o Op) {
	out, o := grpcCall(ctx, c, "GenerateDataKey", c.Node.KMS().GenerateDataKey, &kmspb.GenerateDataKeyRequest{KeyId: &key, KeySpec: proto.String("AES_256")})
	return out.GetCiphertextBlob(), out.GetPlaintext(), o
}

// AWSEncrypt is Encrypt through AWS's SDK.
func (c Calls) AWSEncrypt(ctx context.Context, key string, plaintext []byte) (blob []byte, o Op) {
	o = c.SDK(ctx, c.Node, "Encrypt", func(ctx context.Context) (middleware.Metadata, error) {
		out, err := c.Node.SDK().Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: plaintext})
		if err != nil {
			return middleware.Metadata{}, err
		}
		blob = out.CiphertextBlob
		return out.ResultMetadata, nil
	})
	return blob, o
}

// AWSDecrypt is Decrypt through AWS's SDK.
func (c Calls) AWSDecrypt(ctx context.Context, blob []byte) (plaintext []byte, o Op) {
	o = c.SDK(ctx, c.Node, "Decrypt", func(ctx context.Context) (middleware.Metadata, error) {
		out, err := c.Node.SDK().Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
		if err != nil {
			return middleware.Metadata{}, err
		}
		plaintext = out.Plaintext
		return out.ResultMetadata, nil
	})
	return plaintext, o
}

// AWSDescribeKey is DescribeKey through AWS's SDK.
func (c Calls) AWSDescribeKey(ctx context.Context, key string) (state string, o Op) {
	o = c.SDK(ctx, c.Node, "DescribeKey", func(ctx context.Context) (middleware.Metadata, error) {
		out, err := c.Node.SDK().DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String(key)})
		if err != nil {
			return middleware.Metadata{}, err
		}
		state = string(out.KeyMetadata.KeyState)
		return out.ResultMetadata, nil
	})
	return state, o
}
