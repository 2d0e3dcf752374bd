package custodian

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// maxPackets bounds the packets of a key. Each user id, subkey and signature is one.
const maxPackets = 256

// RSA keys have from minRSA to maxRSA bits. The larger a key, the longer it takes to verify
// each of the signatures that somebody put on it.
const (
	minRSA = 2048
	maxRSA = 8192
)

// parseOpenPGP reads one public key of OpenPGP.
func parseOpenPGP(text []byte, now time.Time) (*Key, error) {
	if err := refusedByFIPS(OpenPGP); err != nil {
		return nil, err
	}
	raw, err := unarmour(text)
	if err != nil {
		return nil, err
	}
	if err := checkPackets(raw); err != nil {
		return nil, err
	}
	entities, err := openpgp.ReadKeyRing(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: it is no OpenPGP public key: %v", ErrKey, err)
	}
	if len(entities) != 1 {
		return nil, fmt.Errorf("%w: there are %d OpenPGP keys, and a custodian has one", ErrKey, len(entities))
	}
	e := entities[0]
	use, ok := e.EncryptionKey(now)
	if !ok {
		return nil, fmt.Errorf("%w: the OpenPGP key %X cannot be encrypted to: it is revoked or expired, or is for signatures only", ErrKey, e.PrimaryKey.Fingerprint)
	}
	if err := checkAlgorithm(use.PublicKey); err != nil {
		return nil, err
	}
	return &Key{kind: OpenPGP, fingerprint: fmt.Sprintf("%X", e.PrimaryKey.Fingerprint), encrypt: func(plaintext []byte) (string, error) {
		var out strings.Builder
		armoured, err := armor.Encode(&out, "PGP MESSAGE", nil)
		if err != nil {
			return "", err
		}
		// At the same time as above, the library chooses the same key, which was checked.
		w, err := openpgp.Encrypt(armoured, []*openpgp.Entity{e}, nil, &openpgp.FileHints{IsBinary: true}, &packet.Config{DefaultCipher: packet.CipherAES256, Time: func() time.Time { return now }})
		if err != nil {
			return "", err
		}
		if _, err := w.Write(plaintext); err != nil {
			return "", err
		}
		if err := w.Close(); err != nil {
			return "", err
		}
		if err := armoured.Close(); err != nil {
			return "", err
		}
		return oneNewline(out.String()), nil
	}}, nil
}

// unarmour returns the packets of a key.
func unarmour(text []byte) ([]byte, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(text), []byte("-----BEGIN PGP")) {
		return text, nil
	}
	block, err := armor.Decode(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%w: the armour of the OpenPGP key: %v", ErrKey, err)
	}
	if block.Type != openpgp.PublicKeyType {
		return nil, fmt.Errorf("%w: it is a %q and not an OpenPGP public key", ErrKey, block.Type)
	}
	raw, err := io.ReadAll(io.LimitReader(block.Body, MaxKey))
	if err != nil {
		return nil, fmt.Errorf("%w: the armour of the OpenPGP key: %v", ErrKey, err)
	}
	return raw, nil
}

// checkPackets refuses what is no public key before the library reads it as one: private
// keys, and packets that hold others, such as compressed ones, which could be large.
func checkPackets(raw []byte) error {
	packets := packet.NewOpaqueReader(bytes.NewReader(raw))
	for n := 0; ; n++ {
		p, err := packets.Next()
		if err == io.EOF && n > 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: it is no OpenPGP public key", ErrKey)
		}
		if n == maxPackets {
			return fmt.Errorf("%w: the OpenPGP key has more than %d parts: export it with --export-options export-minimal", ErrKey, maxPackets)
		}
		switch p.Tag {
		case 2, 12, 13, 17, 21: // signature, trust, user id, user attribute, padding
		case 6, 14: // public key, public subkey
			if err := checkCost(p); err != nil {
				return err
			}
		case 5, 7:
			return fmt.Errorf("%w: it has a private key, which must not leave its owner: give the public one", ErrKey)
		default:
			return fmt.Errorf("%w: it is no OpenPGP public key", ErrKey)
		}
	}
}

// checkCost refuses public keys by which it could take long to verify signatures.
func checkCost(p *packet.OpaquePacket) error {
	parsed, err := p.Parse()
	k, ok := parsed.(*packet.PublicKey)
	if err != nil || !ok {
		return nil // the library verifies nothing by it either
	}
	switch k.PubKeyAlgo {
	case packet.PubKeyAlgoDSA:
		return fmt.Errorf("%w: OpenPGP keys with DSA are not supported", ErrKey)
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSAEncryptOnly, packet.PubKeyAlgoRSASignOnly:
		if bits, err := k.BitLength(); err != nil || bits > maxRSA {
			return fmt.Errorf("%w: its RSA key has %d bits, and %d are the most", ErrKey, bits, maxRSA)
		}
	}
	return nil
}

// checkAlgorithm returns an error unless shares may be encrypted by the algorithm of a key.
func checkAlgorithm(k *packet.PublicKey) error {
	switch k.PubKeyAlgo {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSAEncryptOnly:
		if bits, err := k.BitLength(); err != nil || bits < minRSA {
			return fmt.Errorf("%w: its RSA key has %d bits, and needs %d", ErrKey, bits, minRSA)
		}
		return nil
	case packet.PubKeyAlgoECDH, packet.PubKeyAlgoX25519, packet.PubKeyAlgoX448:
		return nil
	}
	return fmt.Errorf("%w: the algorithm of its OpenPGP key for encryption, number %d, is not supported; RSA, ECDH, X25519 and X448 are", ErrKey, k.PubKeyAlgo)
}
