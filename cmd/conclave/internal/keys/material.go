package keys

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// maxWrapped bounds the size of wrapped key material and of an import token.
const maxWrapped = 64 << 10

// materialCalls are the commands that import key material: in one step, or in
// AWS's two steps for material that is wrapped on another machine.
func materialCalls() []call {
	return []call{
		{
			use: "import KEY [FILE|-]", short: "Import key material from a file or standard input", op: "ImportKeyMaterial",
			also: []string{"DescribeKey", "GetParametersForImport"}, doing: "importing material for key",
			long: `Import imports the material of a key of origin EXTERNAL: it gets a wrapping key,
wraps the material on this machine and imports it. The material is what the key's
spec needs: 32 bytes for SYMMETRIC_DEFAULT, 28 to 128 for HMAC keys, and a private
key in PKCS #8 for others, as DER or PEM. Keep a copy: it cannot be read back.

To wrap the material elsewhere, use "conclave key import-parameters" and "conclave
key import-wrapped".`,
			example: `  conclave key import imported material.bin
  conclave key import imported material.bin --valid-to 8760h
  conclave key import signer private-key.pem`,
			takes: append([]input{
				keyArg(1),
				file("encrypted_key_material", 2, blob{limit: keyengine.MaxImport, what: "the key material"}),
			}, materialFlags()...),
			sets:  []string{"import_token", "expiration_model"},
			shows: importShow(),
			run:   importMaterial,
		},
		{
			use: "import-parameters KEY", short: "Get the public key and the token for an import in two steps", op: "GetParametersForImport", doing: "getting parameters for key",
			example: `  conclave key import-parameters imported --public-key-file wrapping.der --token-file token.bin`,
			takes: []input{
				keyArg(1),
				textFlag("wrapping_algorithm", "wrapping-algorithm", "how the material is wrapped: RSAES_OAEP_SHA_256, or RSA_AES_KEY_WRAP_SHA_256 for private keys").or("RSAES_OAEP_SHA_256"),
				textFlag("wrapping_key_spec", "wrapping-key-spec", "RSA_2048, RSA_3072 or RSA_4096").or("RSA_4096"),
			},
			shows: tableOf(func(w io.Writer, r *kmspb.GetParametersForImportResponse) {
				cli.Line(w, "key", r.GetKeyId())
				cli.Line(w, "valid to", cli.When(r.GetParametersValidTo()))
				if r.PublicKey != nil {
					cli.Line(w, "public key", base64Of(r.GetPublicKey()))
				}
				if r.ImportToken != nil {
					cli.Line(w, "import token", base64Of(r.GetImportToken()))
				}
			}),
			files: []outFile{
				{"public_key", "public-key-file", "write the public key (DER) to this file"},
				{"import_token", "token-file", "write the import token to this file"},
			},
		},
		{
			use: "import-wrapped KEY [FILE|-] --token FILE", short: "Import material that was wrapped elsewhere", op: "ImportKeyMaterial", doing: "importing material for key",
			example: `  conclave key import-wrapped imported wrapped.bin --token token.bin`,
			takes: append([]input{
				keyArg(1),
				file("encrypted_key_material", 2, blob{limit: maxWrapped, what: "the wrapped key material"}),
				fileFlag("import_token", "token", "file with the import token", blob{limit: maxWrapped, what: "the import token"}).needed(),
			}, materialFlags()...),
			sets:  []string{"expiration_model"},
			shows: importShow(),
			run: func(ctx context.Context, c *cli.Connection, b *bound, req proto.Message) error {
				expires(req.(*kmspb.ImportKeyMaterialRequest))
				return oneCall(ctx, c, b, req)
			},
		},
		{
			use: "delete-material KEY", short: "Delete imported material; it can be imported again", op: "DeleteImportedKeyMaterial", doing: "deleting the material of key",
			example: `  conclave key delete-material imported`,
			takes:   []input{keyArg(1), textFlag("key_material_id", "material", "id of the material (default the current one)")},
			shows: tableOf(func(w io.Writer, r *kmspb.DeleteImportedKeyMaterialResponse) {
				cli.Line(w, "key", r.GetKeyId())
				cli.Line(w, "material", cli.OrDash(r.GetKeyMaterialId()))
			}),
		},
	}
}

// materialFlags are the flags of both ways of importing.
func materialFlags() []input {
	return []input{
		dateFlag("valid_to", "valid-to", "when the material expires (default never)"),
		textFlag("import_type", "import-type", "NEW_KEY_MATERIAL for a rotation, or EXISTING_KEY_MATERIAL (default: what the key needs)"),
		textFlag("key_material_description", "material-description", "description of this material"),
		textFlag("key_material_id", "material", "id of the material to import again"),
	}
}

func importShow() show {
	return tableOf(func(w io.Writer, r *kmspb.ImportKeyMaterialResponse) {
		cli.Line(w, "key", r.GetKeyId())
		cli.Line(w, "material", cli.OrDash(r.GetKeyMaterialId()))
	})
}

// expires sets the expiration model, depending on whether there is a date.
func expires(req *kmspb.ImportKeyMaterialRequest) {
	model := "KEY_MATERIAL_DOES_NOT_EXPIRE"
	if req.GetValidTo() != nil {
		model = "KEY_MATERIAL_EXPIRES"
	}
	req.ExpirationModel = &model
}

// importMaterial does all steps of an import. It wraps the material on this
// machine and then wipes it.
func importMaterial(ctx context.Context, c *cli.Connection, b *bound, m proto.Message) error {
	req := m.(*kmspb.ImportKeyMaterialRequest)
	expires(req)
	key, err := c.KMS().DescribeKey(ctx, &kmspb.DescribeKeyRequest{KeyId: req.KeyId})
	if err != nil {
		return err
	}
	spec := key.GetKeyMetadata().GetKeySpec()
	algorithm := "RSAES_OAEP_SHA_256"
	private := !strings.HasPrefix(spec, "SYMMETRIC_") && !strings.HasPrefix(spec, "HMAC_")
	if strings.HasPrefix(spec, "RSA_") || strings.HasPrefix(spec, "ECC_") {
		algorithm = "RSA_AES_KEY_WRAP_SHA_256" // too long for RSA encryption alone
	}
	material := req.EncryptedKeyMaterial // as it was read
	defer clear(material)
	if private {
		der, err := PrivateKey(material)
		if err != nil {
			return err
		}
		defer clear(der)
		material = der
	}
	params, err := c.KMS().GetParametersForImport(ctx, &kmspb.GetParametersForImportRequest{
		KeyId: req.KeyId, WrappingAlgorithm: &algorithm, WrappingKeySpec: proto.String("RSA_4096"),
	})
	if err != nil {
		return fmt.Errorf("getting the wrapping key: %w", err)
	}
	wrapped, err := keyengine.WrapForImport(params.GetPublicKey(), algorithm, material)
	if err != nil {
		return fmt.Errorf("wrapping the material: %w", err)
	}
	req.ImportToken, req.EncryptedKeyMaterial = params.GetImportToken(), wrapped
	return oneCall(ctx, c, b, req)
}

// PrivateKey returns a private key as PKCS #8 in DER. PEM may also contain the
// older structures for EC and RSA keys, which it converts to PKCS #8.
func PrivateKey(raw []byte) ([]byte, error) {
	block, _ := pem.Decode(raw)
	if block == nil {
		return append([]byte(nil), raw...), nil
	}
	switch block.Type {
	case "PRIVATE KEY":
		return block.Bytes, nil
	case "EC PRIVATE KEY":
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the private key: %w; `openssl pkcs8 -topk8 -nocrypt` converts it to PKCS #8", err)
		}
		return x509.MarshalPKCS8PrivateKey(key)
	case "RSA PRIVATE KEY":
		key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the private key: %w", err)
		}
		return x509.MarshalPKCS8PrivateKey(key)
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("the private key is encrypted; `openssl pkcs8 -topk8 -nocrypt` decrypts it")
	default:
		return nil, fmt.Errorf("the PEM file has a %s, not a private key", cli.Printable(block.Type))
	}
}
