package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/attesttest"
)

// made is when the documents of the tests are made: at a whole second, as that is
// what certificates can say.
var made = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func enclave(t testing.TB) *attesttest.Enclave {
	t.Helper()
	e, err := attesttest.NewEnclave(made)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func rootsOf(t testing.TB, authorities ...*attesttest.Authority) *x509.CertPool {
	t.Helper()
	var pem []byte
	for _, a := range authorities {
		pem = append(pem, a.PEM()...)
	}
	pool, err := ParseRoots(pem)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// TestVerify shows what is taken, in each form that hypervisors write.
func TestVerify(t *testing.T) {
	e := enclave(t)
	roots := rootsOf(t, e.Root())
	payload := e.Payload(made)
	tests := []struct {
		name string
		doc  []byte
	}{
		{"as enclaves have it", e.Document(made)},
		{"tagged", append([]byte{0xd2}, e.Document(made)...)},
		{"map without a length", e.Chain.Sign(attesttest.Encode(attesttest.OpenMap(payload)))},
		{"without user data and nonce", e.Chain.Sign(attesttest.Encode(payload.Without("user_data").Without("nonce")))},
		{"with user data and nonce", e.Chain.Sign(attesttest.Encode(payload.Set("user_data", make([]byte, 1024)).Set("nonce", []byte{})))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Verify(tt.doc, roots, made)
			if err != nil {
				t.Fatal(err)
			}
			if got.ModuleID != e.ModuleID || !got.PublicKey.Equal(&e.Key.PublicKey) || !bytes.Equal(got.SPKI, e.SPKI()) {
				t.Errorf("attested %+v", got)
			}
			if !maps.EqualFunc(got.PCRs, e.PCRs, bytes.Equal) {
				t.Errorf("got PCRs %x, want %x", got.PCRs, e.PCRs)
			}
			if want := made.Add(MaxAge); !got.Until.Equal(want) {
				t.Errorf("good until %v, want %v", got.Until, want)
			}
		})
	}
}

// A document of a NitroTPM has measurements of its own kind.
func TestTPM(t *testing.T) {
	e := enclave(t)
	got, err := Verify(e.Chain.Sign(attesttest.Encode(e.Payload(made).OfTPM())), rootsOf(t, e.Root()), made)
	if err != nil {
		t.Fatal(err)
	}
	if got.PCRs != nil || !maps.EqualFunc(got.TPM, e.PCRs, bytes.Equal) {
		t.Errorf("got PCRs %x and those of a TPM %x, want none and %x", got.PCRs, got.TPM, e.PCRs)
	}
}

// TestTimes: a document is good from a minute before its time to five minutes
// after it, if its certificates are.
func TestTimes(t *testing.T) {
	e := enclave(t)
	roots := rootsOf(t, e.Root())
	short, err := e.Chain.With(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = made, made.Add(time.Minute) }, elliptic.P384(), made)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		chain attesttest.Chain
		now   time.Time
		want  error
	}{
		{"clock far behind", e.Chain, made.Add(-MaxAhead - time.Millisecond), ErrFuture},
		{"clock behind", e.Chain, made.Add(-MaxAhead), nil},
		{"at once", e.Chain, made, nil},
		{"late", e.Chain, made.Add(MaxAge - 1), nil},
		{"too late", e.Chain, made.Add(MaxAge), ErrTooOld},
		{"years later", e.Chain, made.AddDate(10, 0, 0), ErrTooOld},
		{"long ago", e.Chain, time.Time{}, ErrFuture},
		{"certificate begins now, clock behind", short, made.Add(-30 * time.Second), nil},
		{"certificate's last moment", short, made.Add(time.Minute), nil},
		{"certificate expired", short, made.Add(time.Minute + 1), ErrUntrusted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := *e
			e.Chain = tt.chain
			got, err := Verify(e.Document(made), roots, tt.now)
			if !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && !tt.now.Before(got.Until) {
				t.Errorf("good at %v, but only until %v", tt.now, got.Until)
			}
		})
	}
}

// TestMalformed: each rule of the payload and of the message around it.
func TestMalformed(t *testing.T) {
	e := enclave(t)
	roots := rootsOf(t, e.Root())
	payload := e.Payload(made)
	bytesOf := func(n int) []byte { return make([]byte, n) }
	pcrs := func(pairs ...attesttest.Pair) attesttest.Map { return pairs }
	pair := func(k, v any) attesttest.Pair { return attesttest.Pair{Key: k, Value: v} }

	payloads := map[string]any{
		"no map":                   []any{},
		"empty":                    attesttest.Map{},
		"empty without a length":   attesttest.OpenMap{},
		"one member more":          payload.Set("more", 1),
		"one member more, open":    attesttest.OpenMap(payload.Set("more", 1)),
		"name of no text":          append(attesttest.Map{pair([]byte("module_id"), e.ModuleID)}, payload[1:]...),
		"number as a name":         append(attesttest.Map{pair(1, 1)}, payload[1:]...),
		"no end":                   attesttest.Raw(attesttest.Encode(attesttest.OpenMap(payload))[:len(attesttest.Encode(attesttest.OpenMap(payload)))-1]),
		"bytes behind":             attesttest.Raw(append(attesttest.Encode(payload), 0)),
		"bytes behind, open":       attesttest.Raw(append(attesttest.Encode(attesttest.OpenMap(payload)), 0xff)),
		"length that is too small": attesttest.Raw(append([]byte{0xa8}, attesttest.Encode(payload)[1:]...)),
		"length that is too large": attesttest.Raw(append([]byte{0xaa}, attesttest.Encode(payload)[1:]...)),
		"length of 2^64-1":         attesttest.Raw(append([]byte{0xbb, 255, 255, 255, 255, 255, 255, 255, 255}, attesttest.Encode(payload)[1:]...)),
		"length in two bytes":      attesttest.Raw(append([]byte{0xb8, 9}, attesttest.Encode(payload)[1:]...)),

		"module_id empty":      payload.Set("module_id", ""),
		"module_id too long":   payload.Set("module_id", string(bytes.Repeat([]byte("x"), maxModuleID+1))),
		"module_id bytes":      payload.Set("module_id", []byte("i-0")),
		"module_id no Unicode": payload.Set("module_id", "i-\xff"),
		"module_id null":       payload.Set("module_id", nil),
		"module_id in parts":   payload.Set("module_id", attesttest.Raw("\x7f\x61i\xff")),
		"digest other":         payload.Set("digest", "SHA256"),
		"digest lower case":    payload.Set("digest", "sha384"),
		"digest bytes":         payload.Set("digest", []byte("SHA384")),
		"digest null":          payload.Set("digest", nil),
		"timestamp 0":          payload.Set("timestamp", 0),
		"timestamp negative":   payload.Set("timestamp", attesttest.Raw{0x20}),
		"timestamp text":       payload.Set("timestamp", "1"),
		"timestamp real":       payload.Set("timestamp", attesttest.Raw{0xfb, 0x40, 0, 0, 0, 0, 0, 0, 0}),
		"timestamp huge":       payload.Set("timestamp", attesttest.Raw{0x1b, 255, 255, 255, 255, 255, 255, 255, 255}),
		"timestamp null":       payload.Set("timestamp", nil),
		"timestamp in 9 bytes": payload.Set("timestamp", attesttest.Raw{0x1b, 0, 0, 0, 0, 0, 0, 0, 1}),
		"timestamp tagged":     payload.Set("timestamp", attesttest.Raw(append([]byte{0xc1}, attesttest.Encode(made.UnixMilli())...))),

		"pcrs empty":         payload.Set("pcrs", attesttest.Map{}),
		"pcrs without end":   payload.Set("pcrs", attesttest.OpenMap(pcrs(pair(0, bytesOf(48))))),
		"pcrs array":         payload.Set("pcrs", []any{bytesOf(48)}),
		"pcrs null":          payload.Set("pcrs", nil),
		"pcr 32":             payload.Set("pcrs", pcrs(pair(32, bytesOf(48)))),
		"pcr 2^32":           payload.Set("pcrs", pcrs(pair(int64(1)<<32, bytesOf(48)))),
		"pcr twice":          payload.Set("pcrs", pcrs(pair(0, bytesOf(48)), pair(0, bytesOf(48)))),
		"pcr negative":       payload.Set("pcrs", pcrs(pair(attesttest.Raw{0x20}, bytesOf(48)))),
		"pcr by name":        payload.Set("pcrs", pcrs(pair("0", bytesOf(48)))),
		"pcr empty":          payload.Set("pcrs", pcrs(pair(0, bytesOf(0)))),
		"pcr of 31":          payload.Set("pcrs", pcrs(pair(0, bytesOf(31)))),
		"pcr of 47":          payload.Set("pcrs", pcrs(pair(0, bytesOf(47)))),
		"pcr of 65":          payload.Set("pcrs", pcrs(pair(0, bytesOf(65)))),
		"pcr text":           payload.Set("pcrs", pcrs(pair(0, string(bytesOf(48))))),
		"pcr null":           payload.Set("pcrs", pcrs(pair(0, nil))),
		"pcrs of 33":         payload.Set("pcrs", attesttest.Raw(append([]byte{0xb8, 33}, attesttest.Encode(payload[3].Value)[1:]...))),
		"pcrs said too many": payload.Set("pcrs", attesttest.Raw(append([]byte{0xb1}, attesttest.Encode(payload[3].Value)[1:]...))),

		"certificate empty":    payload.Set("certificate", []byte{}),
		"certificate too long": payload.Set("certificate", bytesOf(maxCertificate+1)),
		"certificate text":     payload.Set("certificate", "x"),
		"certificate null":     payload.Set("certificate", nil),
		"cabundle empty":       payload.Set("cabundle", []any{}),
		"cabundle too many":    payload.Set("cabundle", append(append(e.Chain.Bundle(), e.Chain.Bundle()...), e.Root().Certificate.Raw)),
		"cabundle open":        payload.Set("cabundle", attesttest.Raw(append(append([]byte{0x9f}, attesttest.Encode(e.Chain.Bundle())[1:]...), 0xff))),
		"cabundle 2^62":        payload.Set("cabundle", attesttest.Raw{0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0}),
		"cabundle null":        payload.Set("cabundle", nil),
		"cabundle of bytes":    payload.Set("cabundle", e.Root().Certificate.Raw),
		"cabundle with empty":  payload.Set("cabundle", append(e.Chain.Bundle(), []byte{})),
		"cabundle with long":   payload.Set("cabundle", append(e.Chain.Bundle(), bytesOf(maxCertificate+1))),
		"cabundle nested":      payload.Set("cabundle", []any{[]any{e.Root().Certificate.Raw}}),

		"public_key empty":    payload.Set("public_key", []byte{}),
		"public_key too long": payload.Set("public_key", bytesOf(maxExtra+1)),
		"public_key text":     payload.Set("public_key", "x"),
		"user_data too long":  payload.Set("user_data", bytesOf(maxExtra+1)),
		"user_data text":      payload.Set("user_data", "x"),
		"nonce too long":      payload.Set("nonce", bytesOf(maxExtra+1)),
		"nonce number":        payload.Set("nonce", 1),
		"nonce false":         payload.Set("nonce", attesttest.Raw{0xf4}),
		"nonce undefined":     payload.Set("nonce", attesttest.Raw{0xf7}),
		"payload too long":    attesttest.Raw(bytesOf(maxPayload + 1)),
		"payload empty":       attesttest.Raw{},
	}
	for _, p := range payload {
		payloads[p.Key.(string)+" twice"] = append(append(attesttest.Map{}, payload...), p)
		payloads[p.Key.(string)+" twice, open"] = append(append(attesttest.OpenMap{}, payload...), p)
	}
	payloads["two kinds of measurements"] = payload.Set("nitrotpm_pcrs", payload[3].Value)
	payloads["two kinds of measurements, open"] = attesttest.OpenMap(payload.Set("nitrotpm_pcrs", payload[3].Value))
	payloads["nitrotpm_pcrs twice"] = append(payload.OfTPM(), payload.OfTPM()[3])
	payloads["nitrotpm_pcrs empty"] = payload.Without("pcrs").Set("nitrotpm_pcrs", attesttest.Map{})
	payloads["nitrotpm_pcrs of 47"] = payload.Without("pcrs").Set("nitrotpm_pcrs", pcrs(pair(0, bytesOf(47))))
	for _, m := range append(members[:5:5], "pcrs") {
		payloads["no "+m] = payload.Without(m)
		payloads["no "+m+", open"] = attesttest.OpenMap(payload.Without(m))
	}

	leaf := e.Chain.Leaf()
	right := attesttest.Encode(payload)
	items := func(change func([]any) []any) []byte {
		return attesttest.Assemble(change(attesttest.Sign1(leaf.Key, attesttest.Protected, right)))
	}
	set := func(i int, v any) []byte {
		return items(func(l []any) []any { l[i] = v; return l })
	}
	signature := attesttest.Sign1(leaf.Key, attesttest.Protected, right)[3].([]byte)
	documents := map[string][]byte{
		"nothing":              {},
		"null":                 {0xf6},
		"tag alone":            {0xd2},
		"tagged twice":         append([]byte{0xd2, 0xd2}, e.Document(made)...),
		"other tag":            append([]byte{0xd8, 98}, e.Document(made)...),
		"tag in two bytes":     append([]byte{0xd8, 18}, e.Document(made)...),
		"three items":          items(func(l []any) []any { return l[:3] }),
		"five items":           items(func(l []any) []any { return append(l, nil) }),
		"array without length": append(append([]byte{0x9f}, e.Document(made)[1:]...), 0xff),
		"map":                  append([]byte{0xa2}, e.Document(made)[1:]...),
		"bytes behind":         append(e.Document(made), 0),
		"no protected header":  set(0, []byte{}),
		"other algorithm":      attesttest.Assemble(attesttest.Sign1(leaf.Key, []byte{0xa1, 0x01, 0x38, 0x23}, right)),
		"more in the header":   attesttest.Assemble(attesttest.Sign1(leaf.Key, []byte{0xa2, 0x01, 0x38, 0x22, 0x02, 0x80}, right)),
		"header as a map":      set(0, attesttest.Raw(attesttest.Protected)),
		"unprotected header":   set(1, attesttest.Map{{Key: 4, Value: []byte("key")}}),
		"unprotected null":     set(1, nil),
		"payload null":         set(2, nil),
		"payload in parts":     set(2, attesttest.Raw(append(append([]byte{0x5f}, attesttest.Encode(right)...), 0xff))),
		"payload of 2^63":      set(2, attesttest.Raw{0x5b, 0x80, 0, 0, 0, 0, 0, 0, 0}),
		"payload text":         set(2, string(right)),
		"signature short":      set(3, signature[:95]),
		"signature long":       set(3, append(bytes.Clone(signature), 0)),
		"signature empty":      set(3, []byte{}),
		"signature null":       set(3, nil),
	}
	for name, p := range payloads {
		documents["payload: "+name] = e.Chain.Sign(attesttest.Encode(p))
	}
	for name, doc := range documents {
		t.Run(name, func(t *testing.T) {
			if got, err := Verify(doc, roots, made); got != nil || !errors.Is(err, ErrMalformed) {
				t.Errorf("got %+v, %v, want %v", got, err, ErrMalformed)
			}
		})
	}
}

// TestEveryBit: no bit of a document can be changed, and no byte be missing.
func TestEveryBit(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	e := enclave(t)
	roots := rootsOf(t, e.Root())
	doc := e.Document(made)
	for i := range doc {
		if got, err := Verify(doc[:i], roots, made); got != nil || err == nil {
			t.Fatalf("the first %d bytes are taken", i)
		}
	}
	// A changed bit in the payload is found by the signature at the latest, which
	// takes a moment; one bit of each byte is changed there, all bits elsewhere.
	payload := len(doc) - signatureSize - 2
	for i := range doc {
		for bit := range 8 {
			if i > 16 && i < payload && bit != i%8 {
				continue
			}
			bad := bytes.Clone(doc)
			bad[i] ^= 1 << bit
			if got, err := Verify(bad, roots, made); got != nil || err == nil {
				t.Errorf("the document with bit %d of byte %d changed is taken", bit, i)
			}
		}
	}
}

// TestKeys: only RSA keys that can be relied on.
func TestKeys(t *testing.T) {
	e := enclave(t)
	roots := rootsOf(t, e.Root())
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := rsa.GenerateKey(rand.Reader, 2056)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	low := e.Key.PublicKey
	low.E = 3
	even := e.Key.PublicKey
	even.E = 65538
	for name, tt := range map[string]struct {
		key  any
		want error
	}{
		"none":                {nil, ErrNoKey},
		"garbage":             {[]byte("dummy"), ErrKey},
		"RSA 1024":            {attesttest.SPKI(&small.PublicKey), ErrKey},
		"RSA 2056":            {attesttest.SPKI(&odd.PublicKey), ErrKey},
		"exponent 3":          {attesttest.SPKI(&low), ErrKey},
		"even exponent":       {attesttest.SPKI(&even), ErrKey},
		"elliptic curve":      {attesttest.SPKI(&curve.PublicKey), ErrKey},
		"PKCS #1":             {x509.MarshalPKCS1PublicKey(&e.Key.PublicKey), ErrKey},
		"with bytes behind":   {append(e.SPKI(), 0), ErrKey},
		"a certificate of it": {e.Root().Certificate.Raw, ErrKey},
	} {
		t.Run(name, func(t *testing.T) {
			doc := e.Chain.Sign(attesttest.Encode(e.Payload(made).Set("public_key", tt.key)))
			if got, err := Verify(doc, roots, made); got != nil || !errors.Is(err, tt.want) {
				t.Errorf("got %+v, %v, want %v", got, err, tt.want)
			}
		})
	}
	if _, err := Verify(e.Chain.Sign(attesttest.Encode(e.Payload(made).Without("public_key"))), roots, made); !errors.Is(err, ErrNoKey) {
		t.Errorf("without the member: %v", err)
	}
}

// FuzzVerify: whatever comes, there is an answer, and never a right one.
func FuzzVerify(f *testing.F) {
	e := enclave(f)
	roots := rootsOf(f, e.Root())
	right := e.Document(made)
	f.Add(right)
	f.Add(e.Chain.Sign(attesttest.Encode(attesttest.OpenMap(e.Payload(made)))))
	f.Add([]byte{0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	other := enclave(f)
	f.Add(other.Document(made))
	f.Fuzz(func(t *testing.T, doc []byte) {
		got, err := Verify(doc, roots, made)
		if (got == nil) == (err == nil) {
			t.Fatalf("got %v and %v", got, err)
		}
		if e, ok := errors.AsType[*Error](err); err != nil && (!ok || e.reason == "") {
			t.Fatalf("error %v", err)
		}
	})
}

// FuzzPayload skips the signature, which keeps most inputs from the parser.
func FuzzPayload(f *testing.F) {
	e := enclave(f)
	f.Add(attesttest.Encode(e.Payload(made)))
	f.Add(attesttest.Encode(attesttest.OpenMap(e.Payload(made))))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePayload(b)
		if err != nil {
			return
		}
		if p.moduleID == "" || p.timestamp.IsZero() || len(p.pcrs) == 0 || len(p.pcrs) > maxPCRs || p.certificate == nil || len(p.bundle) == 0 || len(p.bundle) > maxBundle {
			t.Errorf("%x gives %+v", b, p)
		}
		roots := x509.NewCertPool()
		_, _, _ = p.chain(roots, made)
	})
}
