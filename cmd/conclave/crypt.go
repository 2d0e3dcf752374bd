package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	maxPlaintext  = 4096
	maxCiphertext = 6144
)

// encryptionContext reads NAME=VALUE pairs.
func encryptionContext(flag string, pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, usagef("--%s %q is not NAME=VALUE", flag, p)
		}
		if _, ok := m[k]; ok {
			return nil, usagef("--%s: %q is there twice", flag, k)
		}
		m[k] = v
	}
	return m, nil
}

// emit writes raw bytes, or their base64 on a line.
func (a *app) emit(b []byte, asBase64, isText bool) error {
	if asBase64 {
		_, err := fmt.Fprintln(a.stdout, base64.StdEncoding.EncodeToString(b))
		return err
	}
	if out, ok := a.stdout.(*os.File); ok && !isText && term.IsTerminal(int(out.Fd())) {
		return errors.New("not writing bytes to a terminal; redirect standard output, or use --base64")
	}
	_, err := a.stdout.Write(b)
	return err
}

func (a *app) readBlob(name string, isBase64 bool) ([]byte, error) {
	raw, err := a.readInput(name, 2*maxCiphertext)
	if err != nil {
		return nil, err
	}
	if isBase64 {
		if raw, err = base64.StdEncoding.DecodeString(string(bytes.TrimSpace(raw))); err != nil {
			return nil, fmt.Errorf("the ciphertext is not base64: %w", err)
		}
	}
	if len(raw) == 0 {
		return nil, errors.New("the ciphertext is empty")
	}
	return raw, nil
}

func (a *app) encryptCommand() *cobra.Command {
	var key string
	var pairs []string
	var b64 bool
	cmd := &cobra.Command{
		Use:   "encrypt --key KEY [FILE|-]",
		Short: "Encrypt up to 4096 bytes",
		Long: `Encrypt reads a file or standard input and writes the ciphertext, which names its
key, to standard output: raw bytes both. More than 4096 bytes are encrypted with
a data key; see "conclave datakey".

` + keyHelp,
		Args:    cobra.MaximumNArgs(1),
		Example: `  conclave encrypt --key alias/payments --context app=shop secret.txt > secret.enc`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return usagef("--key is needed: the key to encrypt with")
			}
			ec, err := encryptionContext("context", pairs)
			if err != nil {
				return err
			}
			plaintext, err := a.readInput(at(args, 0), maxPlaintext)
			if err != nil {
				return fmt.Errorf("%w; encrypt it with a data key, see `conclave datakey --help`", err)
			}
			defer clear(plaintext)
			return a.with(cmd.Context(), "encrypting with key "+key, func(ctx context.Context, c *connection) error {
				res, err := c.KMS().Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &key, Plaintext: plaintext, EncryptionContext: ec})
				if err != nil {
					return err
				}
				return a.emit(res.GetCiphertextBlob(), b64, false)
			})
		},
	}
	a.clientFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "the key")
	f.StringArrayVar(&pairs, "context", nil, "encryption context NAME=VALUE; may be repeated; decrypting needs the same")
	f.BoolVar(&b64, "base64", false, "write base64")
	return cmd
}

func (a *app) decryptCommand() *cobra.Command {
	var key string
	var pairs []string
	var b64 bool
	cmd := &cobra.Command{
		Use:   "decrypt [FILE|-]",
		Short: "Decrypt what encrypt wrote",
		Long: `Decrypt reads a ciphertext from a file or standard input and writes the plaintext
to standard output: raw bytes both. The ciphertext names its key.`,
		Args:    cobra.MaximumNArgs(1),
		Example: `  conclave decrypt --context app=shop secret.enc`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ec, err := encryptionContext("context", pairs)
			if err != nil {
				return err
			}
			blob, err := a.readBlob(at(args, 0), b64)
			if err != nil {
				return err
			}
			req := &kmspb.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec}
			if key != "" {
				req.KeyId = &key
			}
			return a.with(cmd.Context(), "decrypting", func(ctx context.Context, c *connection) error {
				res, err := c.KMS().Decrypt(ctx, req)
				if err != nil {
					return err
				}
				defer clear(res.GetPlaintext())
				return a.emit(res.GetPlaintext(), false, true)
			})
		},
	}
	a.clientFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "refuse a ciphertext of another key")
	f.StringArrayVar(&pairs, "context", nil, "encryption context NAME=VALUE that it was encrypted with")
	f.BoolVar(&b64, "base64", false, "read base64")
	return cmd
}

func (a *app) reencryptCommand() *cobra.Command {
	var key, from string
	var pairs, fromPairs []string
	var b64 bool
	cmd := &cobra.Command{
		Use:   "reencrypt --key KEY [FILE|-]",
		Short: "Encrypt a ciphertext with another key, without showing the plaintext",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return usagef("--key is needed: the key to encrypt with")
			}
			to, err := encryptionContext("context", pairs)
			if err != nil {
				return err
			}
			source, err := encryptionContext("source-context", fromPairs)
			if err != nil {
				return err
			}
			blob, err := a.readBlob(at(args, 0), b64)
			if err != nil {
				return err
			}
			req := &kmspb.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: &key, DestinationEncryptionContext: to, SourceEncryptionContext: source}
			if from != "" {
				req.SourceKeyId = &from
			}
			return a.with(cmd.Context(), "encrypting again with key "+key, func(ctx context.Context, c *connection) error {
				res, err := c.KMS().ReEncrypt(ctx, req)
				if err != nil {
					return err
				}
				return a.emit(res.GetCiphertextBlob(), b64, false)
			})
		},
	}
	a.clientFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "the new key")
	f.StringVar(&from, "source-key", "", "refuse a ciphertext of another key than this")
	f.StringArrayVar(&pairs, "context", nil, "new encryption context NAME=VALUE")
	f.StringArrayVar(&fromPairs, "source-context", nil, "encryption context NAME=VALUE that it was encrypted with")
	f.BoolVar(&b64, "base64", false, "read and write base64")
	return cmd
}

func (a *app) datakeyCommand() *cobra.Command {
	var key, spec, plainFile, cipherFile string
	var pairs []string
	var bytes int32
	var without bool
	cmd := &cobra.Command{
		Use:   "datakey --key KEY",
		Short: "Make a data key: to encrypt with, and itself encrypted",
		Long: `Datakey makes a key for encrypting data yourself, and that key encrypted with
KEY. Keep the encrypted one beside the data, and "conclave decrypt" it when the
data is to be read. It shows both in base64, or writes them raw to files of mode
0600.`,
		Example: `  conclave datakey --key alias/payments --plaintext-file key --ciphertext-file key.enc`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if key == "" {
				return usagef("--key is needed: the key that encrypts the data key")
			}
			ec, err := encryptionContext("context", pairs)
			if err != nil {
				return err
			}
			if without && plainFile != "" {
				return usagef("--without-plaintext and --plaintext-file contradict each other")
			}
			var size *int32
			var keySpec *string
			switch {
			case cmd.Flags().Changed("bytes") && cmd.Flags().Changed("spec"):
				return usagef("give --bytes or --spec")
			case cmd.Flags().Changed("bytes"):
				size = &bytes
			default:
				keySpec = &spec
			}
			return a.with(cmd.Context(), "making a data key with key "+key, func(ctx context.Context, c *connection) error {
				res := new(kmspb.GenerateDataKeyResponse)
				if without {
					r, err := c.KMS().GenerateDataKeyWithoutPlaintext(ctx, &kmspb.GenerateDataKeyWithoutPlaintextRequest{
						KeyId: &key, EncryptionContext: ec, NumberOfBytes: size, KeySpec: keySpec,
					})
					if err != nil {
						return err
					}
					res.CiphertextBlob, res.KeyId, res.KeyMaterialId = r.GetCiphertextBlob(), r.KeyId, r.KeyMaterialId
				} else {
					res, err = c.KMS().GenerateDataKey(ctx, &kmspb.GenerateDataKeyRequest{KeyId: &key, EncryptionContext: ec, NumberOfBytes: size, KeySpec: keySpec})
					if err != nil {
						return err
					}
				}
				defer clear(res.GetPlaintext())
				return a.emitDataKey(res, plainFile, cipherFile)
			})
		},
	}
	a.clientFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "the key that encrypts it")
	f.StringVar(&spec, "spec", "AES_256", "AES_256 or AES_128")
	f.Int32Var(&bytes, "bytes", 32, "length, 1 to 1024, instead of --spec")
	f.StringArrayVar(&pairs, "context", nil, "encryption context NAME=VALUE")
	f.BoolVar(&without, "without-plaintext", false, "only the encrypted one")
	f.StringVar(&plainFile, "plaintext-file", "", "write the data key to this file")
	f.StringVar(&cipherFile, "ciphertext-file", "", "write the encrypted one to this file")
	return cmd
}

func (a *app) emitDataKey(res *kmspb.GenerateDataKeyResponse, plainFile, cipherFile string) error {
	if cipherFile != "" {
		// First: a data key that cannot be had again is of no use.
		if err := writeFile(cipherFile, res.GetCiphertextBlob()); err != nil {
			return err
		}
		res.CiphertextBlob = nil
	}
	if plainFile != "" {
		if err := writeFile(plainFile, res.GetPlaintext()); err != nil {
			return err
		}
		clear(res.GetPlaintext())
		res.Plaintext = nil
	}
	return a.print(res, func(w io.Writer) {
		line(w, "key", res.GetKeyId())
		if res.Plaintext != nil {
			line(w, "plaintext", base64.StdEncoding.EncodeToString(res.GetPlaintext()))
		}
		if res.CiphertextBlob != nil {
			line(w, "ciphertext", base64.StdEncoding.EncodeToString(res.GetCiphertextBlob()))
		}
	})
}

func (a *app) randomCommand() *cobra.Command {
	var b64 bool
	var n int32
	cmd := &cobra.Command{
		Use:   "random",
		Short: "Write random bytes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), "getting random bytes", func(ctx context.Context, c *connection) error {
				res, err := c.KMS().GenerateRandom(ctx, &kmspb.GenerateRandomRequest{NumberOfBytes: &n})
				if err != nil {
					return err
				}
				defer clear(res.GetPlaintext())
				return a.emit(res.GetPlaintext(), b64, false)
			})
		},
	}
	a.clientFlags(cmd)
	cmd.Flags().Int32Var(&n, "bytes", 32, "how many, 1 to 1024")
	cmd.Flags().BoolVar(&b64, "base64", false, "write base64")
	return cmd
}
