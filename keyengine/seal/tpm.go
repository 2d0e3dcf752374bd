//go:build tpm

package seal

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// tpmSeal is a seal by the TPM of one machine, so its name is that of the node. The wrapped key
// is an object that the TPM loads only below its own storage key, and that it releases only
// while the PCRs have the values that they had when it was made.
type tpmSeal struct {
	name, device string
	pcrs         pcrSet
	timeout      time.Duration
	busy         chan struct{} // a TPM that hangs occupies it
}

// tpmTimeout bounds one use. A TPM takes seconds for it at the most.
const tpmTimeout = 20 * time.Second

func openTPM(node, device string, pcrs pcrSet) (Seal, error) {
	if fips140.Enforced() {
		// The encryption of a TPM's parameters is AES-CFB, which the module refuses with a panic.
		return nil, errors.New("seal tpm: it cannot be used where the FIPS 140-3 module is enforced")
	}
	return &tpmSeal{name: "tpm:" + node, device: device, pcrs: pcrs, timeout: tpmTimeout, busy: make(chan struct{}, 1)}, nil
}

// Name implements Seal.
func (s *tpmSeal) Name() string { return s.name }

// Wrap implements Seal. The library has the key in buffers of its own, and encrypts it on the
// way to the TPM.
func (s *tpmSeal) Wrap(ctx context.Context, _ *keymat.Arena, key *keymat.Secret, about Context) (wrapped []byte, err error) {
	err = key.With(func(b []byte) error {
		data := append(tpmBinding(about), b...)
		wrapped, err = s.use(ctx, data, func(t transport.TPM, root *storageKey) ([]byte, error) { return root.seal(t, data, s.pcrs) })
		return err
	})
	return wrapped, err
}

// Unwrap implements Seal.
func (s *tpmSeal) Unwrap(ctx context.Context, arena *keymat.Arena, wrapped []byte, about Context) (*keymat.Secret, error) {
	o, err := decodeObject(wrapped)
	if err != nil {
		return nil, err
	}
	if o.pcrs != s.pcrs {
		return nil, fmt.Errorf("it was sealed to %v, and the configuration says %v: remove the seal, and have the custodians unseal this node, to seal it anew", o.pcrs, s.pcrs)
	}
	data, err := s.use(ctx, nil, func(t transport.TPM, root *storageKey) ([]byte, error) { return root.unseal(t, o) })
	if err != nil {
		return nil, err
	}
	defer clear(data)
	// Whoever can use the TPM can make objects below its storage key, but not for this purpose
	// with the cluster's key.
	if bound := tpmBinding(about); len(data) != len(bound)+keymat.KeySize || subtle.ConstantTimeCompare(data[:len(bound)], bound) != 1 {
		return nil, errors.New("the TPM has sealed something else than this cluster's key")
	}
	return arena.Store(data[sha256.Size:])
}

// tpmBinding stands before the key in what is sealed.
func tpmBinding(about Context) []byte {
	h := sha256.Sum256([]byte("conclave seal tpm v1\x00" + about.Cluster + "\x00" + about.Seal))
	return h[:]
}

// use calls fn with the TPM, one call at a time, and wipes the secret that fn works with when
// fn has ended. If the TPM does not answer in time, use returns, and what fn returns later is
// lost.
func (s *tpmSeal) use(ctx context.Context, secret []byte, fn func(transport.TPM, *storageKey) ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	late := fmt.Errorf("the TPM %s does not answer", s.device)
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		clear(secret)
		return nil, late
	}
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-s.busy }()
		defer clear(secret)
		data, err := s.with(ctx, fn)
		done <- result{data, err}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, late
	}
}

func (s *tpmSeal) with(ctx context.Context, fn func(transport.TPM, *storageKey) ([]byte, error)) ([]byte, error) {
	conn, err := connectTPM(s.device)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // ends what waits for an answer
	t := transport.FromReadWriter(conn)
	root, err := newStorageKey(t)
	if err != nil {
		return nil, err
	}
	defer flush(t, root.handle)
	return fn(t, root)
}

// connectTPM opens a device, or the socket of a TPM in software.
func connectTPM(path string) (io.ReadWriteCloser, error) {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case st.Mode()&os.ModeSocket != 0:
		return net.Dial("unix", path)
	case st.Mode()&os.ModeCharDevice != 0:
		return os.OpenFile(path, os.O_RDWR, 0)
	}
	return nil, fmt.Errorf("%s is no TPM: it is neither a device nor a socket", path)
}

func flush(t transport.TPM, handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(t) // the kernel does it as well, when the device is closed
}

// storageKey is the storage root key of a TPM's owner: the TPM derives it from its seed, the
// same one each time until somebody clears the TPM.
type storageKey struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

func newStorageKey(t transport.TPM) (*storageKey, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("the TPM's storage key: %w", err)
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		flush(t, r.ObjectHandle)
		return nil, fmt.Errorf("the TPM's storage key: %w", err)
	}
	return &storageKey{r.ObjectHandle, r.Name, *public}, nil
}

// encrypted are the options of a session that encrypts the first parameter, with a key that only
// the TPM with this storage key can know: nobody reads it on the wires between processor and TPM.
func (k *storageKey) encrypted(in bool) []tpm2.AuthOption {
	direction := tpm2.EncryptOut
	if in {
		direction = tpm2.EncryptIn
	}
	return []tpm2.AuthOption{tpm2.AESEncryption(128, direction), tpm2.Salted(k.handle, k.public)}
}

const nonceSize = 16 // bytes, of a session

// seal makes an object with the data that this TPM alone can open.
func (k *storageKey) seal(t transport.TPM, data []byte, pcrs pcrSet) ([]byte, error) {
	public := tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true, UserWithAuth: pcrs == 0},
	}
	if pcrs != 0 {
		policy, err := policyNow(t, pcrs)
		if err != nil {
			return nil, err
		}
		public.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	}
	r, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, k.encrypted(true)...)},
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data})}},
		InPublic:     tpm2.New2B(public),
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("the TPM does not seal: %w", err)
	}
	return (&object{pcrs, k.name.Buffer, tpm2.Marshal(r.OutPublic), tpm2.Marshal(r.OutPrivate)}).encode(), nil
}

// unseal returns what is in an object.
func (k *storageKey) unseal(t transport.TPM, o *object) ([]byte, error) {
	if !bytes.Equal(k.name.Buffer, o.parent) {
		return nil, errors.New("it was sealed by another TPM, or this one has been cleared since: remove the seal, and have the custodians unseal this node, to seal it anew")
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](o.public)
	if err != nil {
		return nil, fmt.Errorf("the sealed object: %w", err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](o.private)
	if err != nil {
		return nil, fmt.Errorf("the sealed object: %w", err)
	}
	loaded, err := tpm2.Load{ParentHandle: tpm2.NamedHandle{Handle: k.handle, Name: k.name}, InPrivate: *private, InPublic: *public}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("the TPM does not take the sealed object: %w", err)
	}
	defer flush(t, loaded.ObjectHandle)
	auth := tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, k.encrypted(false)...)
	if o.pcrs != 0 {
		auth = tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, func(t transport.TPM, handle tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyPCR{PolicySession: handle, Pcrs: o.pcrs.selection()}.Execute(t)
			return err
		}, k.encrypted(false)...)
	}
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: auth}}.Execute(t)
	if errors.Is(err, tpm2.TPMRCPolicyFail) {
		return nil, fmt.Errorf("%v have other values than when it was sealed: this machine has started something else", o.pcrs)
	}
	if err != nil {
		return nil, fmt.Errorf("the TPM does not unseal: %w", err)
	}
	return r.OutData.Buffer, nil
}

// selection names the PCRs to the TPM, in their bank of SHA-256.
func (p pcrSet) selection() tpm2.TPMLPCRSelection {
	var list []uint
	for i := range uint(pcrCount) {
		if p&(1<<i) != 0 {
			list = append(list, i)
		}
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(list...)}}}
}

// String lists the PCRs for people.
func (p pcrSet) String() string {
	if p == 0 {
		return "no PCRs"
	}
	var list []string
	for i := range pcrCount {
		if p&(1<<i) != 0 {
			list = append(list, strconv.Itoa(i))
		}
	}
	return "the PCRs " + strings.Join(list, "+")
}

// policyNow returns the policy that the PCRs have their present values. It reads each of them,
// since a TPM passes over PCRs that it does not have, and the policy would be about less.
func policyNow(t transport.TPM, pcrs pcrSet) ([]byte, error) {
	values := sha256.New()
	for i := range pcrCount {
		if pcrs&(1<<i) == 0 {
			continue
		}
		r, err := tpm2.PCRRead{PCRSelectionIn: pcrSet(1 << i).selection()}.Execute(t)
		if err != nil {
			return nil, fmt.Errorf("PCR %d: %w", i, err)
		}
		if d := r.PCRValues.Digests; len(d) != 1 || len(d[0].Buffer) != sha256.Size {
			return nil, fmt.Errorf("the TPM has no PCR %d of SHA-256: enable that bank in the firmware", i)
		}
		_, _ = values.Write(r.PCRValues.Digests[0].Buffer)
	}
	policy, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	if err := (tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: values.Sum(nil)}, Pcrs: pcrs.selection()}).Update(policy); err != nil {
		return nil, err
	}
	return policy.Hash().Digest, nil
}

// object is what a TPM has sealed: the PCRs, the name of the storage key, and the TPM's own
// two parts.
type object struct {
	pcrs                    pcrSet
	parent, public, private []byte
}

// objectVersion is the first byte of an encoded object. Three bytes of PCRs follow, and the
// other members with their lengths.
const objectVersion = 1

func (o *object) encode() []byte {
	b := []byte{objectVersion, byte(o.pcrs >> 16), byte(o.pcrs >> 8), byte(o.pcrs)}
	for _, part := range [][]byte{o.parent, o.public, o.private} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(part))), part...)
	}
	return b
}

func decodeObject(b []byte) (*object, error) {
	bad := errors.New("this is not what a TPM has sealed")
	if len(b) < 4 || b[0] != objectVersion {
		return nil, bad
	}
	o := &object{pcrs: pcrSet(b[1])<<16 | pcrSet(b[2])<<8 | pcrSet(b[3])}
	b = b[4:]
	for _, part := range []*[]byte{&o.parent, &o.public, &o.private} {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, bad
		}
		n := int(binary.BigEndian.Uint16(b))
		*part, b = b[2:2+n], b[2+n:]
	}
	if len(b) != 0 {
		return nil, bad
	}
	return o, nil
}
