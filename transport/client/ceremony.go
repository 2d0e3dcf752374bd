package client

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// Shares and other secrets that operators exchange with a node are encrypted end to
// end, in addition to TLS, so that no network buffer of a node ever has one in the
// clear; see SubmitShareRequest in operator.proto.
const (
	messageExport = "conclave message key v1"
	pointSize     = 65
	nodeURI       = "conclave://node/"
)

// Init initialises the cluster and returns its secrets, which the caller has to
// wipe.
func Init(ctx context.Context, op kmspb.OperatorClient, req *kmspb.InitRequest) (*kmspb.InitResponse, *kmspb.InitSecrets, error) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	req = proto.CloneOf(req)
	req.AnswerKey = key.PublicKey().Bytes()
	res, err := op.Init(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	message, err := open(key, []byte("conclave init v1\x00"+res.GetClusterId()), res.GetSealedSecrets())
	if err != nil {
		return nil, nil, fmt.Errorf("the cluster is initialised, but its secrets cannot be decrypted and are not kept anywhere: %w", err)
	}
	defer clear(message)
	secrets := new(kmspb.InitSecrets)
	if err := proto.Unmarshal(message, secrets); err != nil {
		return nil, nil, errors.New("the cluster is initialised, but its secrets cannot be decrypted and are not kept anywhere")
	}
	return res, secrets, nil
}

// CreateAccessKey creates another access key for the account's root user. The caller
// has to wipe the secret.
func CreateAccessKey(ctx context.Context, c kmspb.CredentialsClient) (id string, secret Secret, err error) {
	return newAccessKey(func(answerKey []byte) (sealedAccessKey, error) {
		return c.CreateAccessKey(ctx, &kmspb.CreateAccessKeyRequest{AnswerKey: answerKey})
	})
}

// CreateAccount creates an account and returns an access key of its root user. The caller
// has to wipe the secret.
func CreateAccount(ctx context.Context, c kmspb.AccountsClient, account, name string) (id string, secret Secret, err error) {
	return newAccessKey(func(answerKey []byte) (sealedAccessKey, error) {
		return c.Create(ctx, &kmspb.CreateAccountRequest{Account: account, Name: name, AnswerKey: answerKey})
	})
}

// sealedAccessKey is an access key whose secret is encrypted to an answer key.
type sealedAccessKey interface {
	GetAccessKeyId() string
	GetSealedSecret() []byte
}

// newAccessKey has an access key created, and decrypts its secret.
func newAccessKey(create func(answerKey []byte) (sealedAccessKey, error)) (id string, secret Secret, err error) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return "", nil, err
	}
	res, err := create(key.PublicKey().Bytes())
	if err != nil {
		return "", nil, err
	}
	id = res.GetAccessKeyId()
	secret, err = open(key, []byte("conclave access key v1\x00"+id), res.GetSealedSecret())
	if err != nil {
		return "", nil, fmt.Errorf("access key %s was created, but its secret cannot be decrypted and cannot be shown again; delete the key: %w", id, err)
	}
	return id, secret, nil
}

// SubmitShare submits a share to the node that op is connected to, after verifying
// that the other end is that node. What the node did with it, or that it is unsealed
// already, is in the status. The caller has to wipe the share.
func SubmitShare(ctx context.Context, op kmspb.OperatorClient, share []byte) (*kmspb.NodeStatus, error) {
	// If the ceremony ended between the two calls, the next one has another
	// key.
	for again := true; ; again = false {
		var at peer.Peer
		c, err := op.Challenge(ctx, &kmspb.ChallengeRequest{}, grpc.Peer(&at))
		if f, ok := FromError(err); ok && f.Type == "AlreadyUnsealedException" {
			st, err := Status(ctx, op)
			if err == nil {
				st.Error = &kmspb.ErrorDetail{Type: f.Type, Message: f.Message, RequestId: f.RequestID}
			}
			return st, err
		}
		if err != nil {
			return nil, err
		}
		if err := checkNode(&at, c.GetNodeId()); err != nil {
			return nil, err
		}
		info := slices.Concat([]byte("conclave share v1\x00"), c.GetClusterId(), c.GetNonce(), []byte(c.GetNodeId()))
		sealed, err := seal(c.GetPublicKey(), info, share)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", c.GetNodeId(), err)
		}
		res, err := op.SubmitShare(ctx, &kmspb.SubmitShareRequest{Nonce: c.GetNonce(), SealedShare: sealed})
		if err != nil {
			return nil, err
		}
		if n := res.GetNode(); n != nil {
			n.CeremonyNonce = c.GetNonce()
		}
		if !again || res.GetNode().GetError().GetType() != "InvalidChallengeException" {
			return res.GetNode(), nil
		}
	}
}

// BreakGlassKey is an access key that a break-glass ceremony has made. The caller has to wipe
// the secret.
type BreakGlassKey struct {
	ID, RootARN string
	Secret      Secret
	Expires     time.Time
}

// SubmitBreakGlassShare submits a share to the break-glass ceremony b, which the node that op is
// connected to has returned, after verifying that the other end is that node. It returns the
// ceremony as it is then, and the access key if the share completed the threshold. The caller
// has to wipe the share.
func SubmitBreakGlassShare(ctx context.Context, op kmspb.OperatorClient, b *kmspb.BreakGlass, share []byte) (*kmspb.BreakGlass, *BreakGlassKey, error) {
	var at peer.Peer
	now, err := op.GetBreakGlass(ctx, &kmspb.GetBreakGlassRequest{}, grpc.Peer(&at))
	if err != nil {
		return nil, nil, err
	}
	node := now.GetCeremony().GetNodeId()
	if err := checkNode(&at, node); err != nil {
		return nil, nil, err
	}
	if node != b.GetNodeId() || !slices.Equal(now.GetCeremony().GetNonce(), b.GetNonce()) {
		return nil, nil, errors.New("the break-glass ceremony has ended, or is on another node")
	}
	info := slices.Concat([]byte("conclave break-glass share v1\x00"), b.GetClusterId(), b.GetNonce(), []byte(node))
	sealed, err := seal(b.GetPublicKey(), info, share)
	if err != nil {
		return nil, nil, fmt.Errorf("node %s: %w", node, err)
	}
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	res, err := op.SubmitBreakGlassShare(ctx, &kmspb.SubmitBreakGlassShareRequest{Nonce: b.GetNonce(), SealedShare: sealed, AnswerKey: key.PublicKey().Bytes()})
	if err != nil || res.GetKey() == nil {
		return res.GetCeremony(), nil, err
	}
	k := res.GetKey()
	secret, err := open(key, []byte("conclave access key v1\x00"+k.GetAccessKeyId()), k.GetSealedSecret())
	if err != nil {
		return nil, nil, fmt.Errorf("access key %s was created, but its secret cannot be decrypted and cannot be shown again: %w", k.GetAccessKeyId(), err)
	}
	return res.GetCeremony(), &BreakGlassKey{k.GetAccessKeyId(), k.GetRootArn(), secret, k.GetExpires().AsTime()}, nil
}

// keyChangePurposes are what the shares for ceremonies that replace keys are encrypted for.
var keyChangePurposes = map[kmspb.KeyChangeKind]string{
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_REKEY:          "conclave rekey share v1\x00",
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_ROOT:    "conclave root rotation share v1\x00",
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_KEYRING: "conclave keyring rotation share v1\x00",
}

// SubmitKeyChangeShare submits a share to the ceremony k, which the node that op is connected
// to has returned, after verifying that the other end is that node. It returns the ceremony as
// it is then, and whether the share has completed it. The caller has to wipe the share.
func SubmitKeyChangeShare(ctx context.Context, op kmspb.OperatorClient, k *kmspb.KeyChange, share []byte) (*kmspb.KeyChange, bool, error) {
	var at peer.Peer
	res, err := op.GetKeyChange(ctx, &kmspb.GetKeyChangeRequest{}, grpc.Peer(&at))
	if err != nil {
		return nil, false, err
	}
	now := res.GetCeremony()
	if err := checkNode(&at, now.GetNodeId()); err != nil {
		return nil, false, err
	}
	// The custodian has seen k, and agrees to nothing else.
	if now.GetNodeId() != k.GetNodeId() || !slices.Equal(now.GetNonce(), k.GetNonce()) || now.GetKind() != k.GetKind() || now.GetProving() != k.GetProving() ||
		!proto.Equal(now.GetNewShareSet(), k.GetNewShareSet()) {
		return nil, false, errors.New("the ceremony has ended or changed, or is on another node")
	}
	purpose, ok := keyChangePurposes[k.GetKind()]
	if !ok {
		return nil, false, errors.New("this release does not know that kind of ceremony")
	}
	info := slices.Concat([]byte(purpose), k.GetClusterId(), k.GetNonce(), []byte(now.GetNodeId()))
	sealed, err := seal(k.GetPublicKey(), info, share)
	if err != nil {
		return nil, false, fmt.Errorf("node %s: %w", now.GetNodeId(), err)
	}
	done, err := op.SubmitKeyChangeShare(ctx, &kmspb.SubmitKeyChangeShareRequest{Nonce: k.GetNonce(), SealedShare: sealed})
	return done.GetCeremony(), done.GetDone(), err
}

// RekeyShares are the new shares of a rekey. If the keys of the new custodians were given, they
// are Encrypted to them. Otherwise they are in Shares, which the caller has to wipe.
type RekeyShares struct {
	Shares    [][]byte
	Encrypted []*kmspb.EncryptedShare
	RequestID string // of the call that has returned them
}

// Wipe wipes the shares.
func (r *RekeyShares) Wipe() {
	for _, s := range r.Shares {
		clear(s)
	}
}

// NewShares returns the new shares of a rekey.
func NewShares(ctx context.Context, op kmspb.OperatorClient, nonce []byte) (*RekeyShares, error) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	res, err := op.GetNewShares(ctx, &kmspb.GetNewSharesRequest{Nonce: nonce, AnswerKey: key.PublicKey().Bytes()})
	if err != nil {
		return nil, err
	}
	if len(res.GetEncryptedShares()) > 0 {
		return &RekeyShares{Encrypted: res.GetEncryptedShares(), RequestID: res.GetRequestId()}, nil
	}
	message, err := open(key, append([]byte("conclave rekey v1\x00"), nonce...), res.GetSealedSecrets())
	if err != nil {
		return nil, fmt.Errorf("the new shares cannot be decrypted: %w", err)
	}
	defer clear(message)
	secrets := new(kmspb.InitSecrets)
	if err := proto.Unmarshal(message, secrets); err != nil {
		return nil, errors.New("the new shares cannot be decrypted")
	}
	return &RekeyShares{Shares: secrets.GetShares(), RequestID: res.GetRequestId()}, nil
}

// Status returns the status of the node that op is connected to.
func Status(ctx context.Context, op kmspb.OperatorClient) (*kmspb.NodeStatus, error) {
	st, err := op.Status(ctx, &kmspb.StatusRequest{})
	if err != nil {
		return nil, err
	}
	id := st.GetNodeId() // which is not told to strangers
	return &kmspb.NodeStatus{
		NodeId: id, Seal: st.GetSeal(), Leader: id != "" && id == st.GetLeaderId(), Version: st.GetVersion(), AppliedIndex: st.GetRaft().GetAppliedIndex(), Crls: st.GetCrls(),
	}, nil
}

// checkNode checks that the certificate that TLS has verified belongs to that node.
// Without TLS, which is possible only on loopback, there is none.
func checkNode(at *peer.Peer, node string) error {
	info, ok := at.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil
	}
	if len(info.State.PeerCertificates) > 0 {
		uris := info.State.PeerCertificates[0].URIs
		if len(uris) == 1 && uris[0].String() == nodeURI+node {
			return nil
		}
	}
	return fmt.Errorf("the server says that it is node %q, but its certificate does not", node)
}

// seal encrypts a message to a point on P-256.
func seal(public, info, plaintext []byte) ([]byte, error) {
	point, err := ecdh.P256().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("the key to encrypt to: %w", err)
	}
	to, err := hpke.NewDHKEMPublicKey(point)
	if err != nil {
		return nil, err
	}
	encap, sender, err := hpke.NewSender(to, hpke.HKDFSHA256(), hpke.ExportOnly(), info)
	if err != nil {
		return nil, err
	}
	key, err := sender.Export(messageExport, 32)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return aead.Seal(encap, nil, plaintext, nil), nil
}

// open decrypts a message of seal.
func open(key *ecdh.PrivateKey, info, message []byte) ([]byte, error) {
	if len(message) < pointSize {
		return nil, errors.New("it is too short")
	}
	private, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return nil, err
	}
	recipient, err := hpke.NewRecipient(message[:pointSize], private, hpke.HKDFSHA256(), hpke.ExportOnly(), info)
	if err != nil {
		return nil, err
	}
	exported, err := recipient.Export(messageExport, 32)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(exported)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, message[pointSize:], nil)
}

// newAEAD returns AES-256-GCM with random nonces, which precede the ciphertext.
// It wipes the key.
func newAEAD(key []byte) (cipher.AEAD, error) {
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
