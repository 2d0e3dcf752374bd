package bundle

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

// secrets are texts of the kinds that Conclave has: shares, secret access keys, session
// tokens, gossip keys, TLS keys.
func secrets(t *testing.T) []string {
	t.Helper()
	random := func(n int) []byte {
		b := make([]byte, n)
		rand.Read(b)
		return b
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"conclave-share-1-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random(76))),
		base64.RawStdEncoding.EncodeToString(random(30)), // a secret access key has 40 characters
		"AKIA" + base32.StdEncoding.EncodeToString(random(10)),
		base64.StdEncoding.EncodeToString(random(300)),
		base64.RawURLEncoding.EncodeToString(random(32)),
		base64.StdEncoding.EncodeToString(random(32)),
		hex.EncodeToString(random(32)),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
}

// reveals fails the test if twelve characters of a secret are in a text.
func reveals(t *testing.T, where, text string, secrets []string) {
	t.Helper()
	for _, s := range secrets {
		for line := range strings.SplitSeq(strings.TrimPrefix(s, "conclave-share-1-"), "\n") {
			if strings.Contains(line, "PRIVATE KEY") {
				continue
			}
			for i := 0; i+12 <= len(line); i++ {
				if strings.Contains(text, line[i:i+12]) {
					t.Errorf("%s reveals %q of %q:\n%s", where, line[i:i+12], s, text)
					return
				}
			}
		}
	}
}

func TestFilterRemovesSecrets(t *testing.T) {
	for range 10 {
		all := secrets(t)
		f := NewFilter("node-1", "Decrypt")
		for _, s := range all {
			one := strings.ReplaceAll(s, "\n", `\n`)
			for _, line := range []string{
				s, one,
				"time=2026-11-29T12:00:00.000Z level=INFO msg=" + one,
				fmt.Sprintf("time=2026-11-29T12:00:00.000Z level=ERROR msg=%q err=%q", "reading "+s, s+" "+s),
				"level=INFO " + strings.Repeat("x ", 4090) + one, "level=INFO " + one + "=1", "key=" + one, "addr=::1%" + one, "[fe80::1%" + one + "]:80", "/var/lib/" + one, "http://x/?q=" + one,
				`{"time":"2026-11-29T12:00:00Z","level":"INFO","msg":"` + one + `","` + one + `":"x","a":{"b":"` + one + `"},"list":["` + one + `"]}`,
			} {
				var log strings.Builder
				if err := f.Log(&log, strings.NewReader(line), 100); err != nil {
					t.Fatal(err)
				}
				reveals(t, "log", log.String(), all)
				var metrics strings.Builder
				if err := f.Metrics(&metrics, strings.NewReader("# HELP conclave_x "+line+"\nconclave_x{node=\""+line+"\"} 1\nconclave_"+line+" 1\nconclave_x "+line+"\n")); err != nil {
					t.Fatal(err)
				}
				reveals(t, "metrics", metrics.String(), all)
				var goroutines strings.Builder
				if err := f.Goroutines(&goroutines, strings.NewReader("# labels: {\"x\":\""+line+"\"}\n"+line+"\n1 @ "+line+"\n#\t0x1\tmain.main("+line+")\n")); err != nil {
					t.Fatal(err)
				}
				reveals(t, "goroutines", goroutines.String(), all)
				reveals(t, "words", f.Words(line), all)
			}
		}
	}
}

// TestStatusRemovesSecrets puts secrets into every text of the answers.
func TestStatusRemovesSecrets(t *testing.T) {
	all := secrets(t)
	for _, s := range all {
		st, members, upgrade := new(kmspb.StatusResponse), new(kmspb.Member), new(kmspb.MemberRelease)
		for _, m := range []proto.Message{st, members, upgrade} {
			fill(m.ProtoReflect(), s, 5)
		}
		f := NewFilter()
		reveals(t, "status", fmt.Sprintf("%+v", f.NodeStatus(st)), all)
		reveals(t, "members", fmt.Sprintf("%+v", f.Members([]*kmspb.Member{members}, &kmspb.UpgradeStatusResponse{Members: []*kmspb.MemberRelease{upgrade}})), all)
	}
}

// fill puts a text into every field of a message that can hold it.
func fill(m protoreflect.Message, text string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		var v protoreflect.Value
		switch {
		case f.IsMap():
			continue
		case f.Kind() == protoreflect.StringKind:
			v = protoreflect.ValueOfString(text)
		case f.Kind() == protoreflect.BytesKind:
			v = protoreflect.ValueOfBytes([]byte(text))
		case f.Kind() == protoreflect.MessageKind && depth > 0 && !f.IsList():
			fill(m.Mutable(f).Message(), text, depth-1)
			continue
		default:
			continue
		}
		if f.IsList() {
			m.Mutable(f).List().Append(v)
		} else {
			m.Set(f, v)
		}
	}
}

func TestFilterKeepsWhatHelps(t *testing.T) {
	f := NewFilter("node-1", "node-2", "Decrypt")
	for _, c := range [][2]string{
		{`time=2026-11-29T12:16:44.659Z level=INFO msg="node started" node=node-1 aws=127.0.0.1:7600 term=2`, `time=2026-11-29T12:16:44.659Z level=INFO msg="node started" node=node-1 aws=127.0.0.1:7600 term=2`},
		{`level=WARN msg="the disk doesn't answer" since=1m3.5s err="a write has taken 530ms so far"`, `level=WARN msg="the disk doesn't answer" since=1m3.5s err="a write has taken 530ms so far"`},
		{`{"level":"INFO","msg":"leading","node":"node-2","term":7}`, `level=INFO msg=leading node=node-2 term=7`},
		{`level=INFO msg="node unsealed" operator=conclave://operator/alice`, `level=INFO msg="node unsealed" operator=[-]`},
		{`err="dial tcp [::1]:7602: connection refused" path=/etc/conclave/x`, `err="dial tcp [::1]:7602: connection refused" path=[-]`},
		{`op=Decrypt outcome=AccessDeniedException`, `op=Decrypt outcome=AccessDeniedException`},
	} {
		if got := f.Line(c[0]); got != c[1] {
			t.Errorf("%s\n got %s\nwant %s", c[0], got, c[1])
		}
	}
	var b strings.Builder
	in := `# HELP go_goroutines Number of goroutines.
# TYPE go_goroutines gauge
go_goroutines 63
conclave_requests_total{operation="Decrypt",outcome="ok",transport="aws"} 12
conclave_request_duration_seconds_bucket{operation="Decrypt",le="0.005"} 1.2e+06
conclave_connections_open{class="client",face="aws"} NaN
somebody_elses{x="y"} 1
`
	want := `go_goroutines 63
conclave_requests_total{operation="Decrypt",outcome="ok",transport="aws"} 12
conclave_request_duration_seconds_bucket{operation="Decrypt",le="0.005"} 1.2e+06
conclave_connections_open{class="client",face="aws"} NaN
`
	if err := f.Metrics(&b, strings.NewReader(in)); err != nil || b.String() != want {
		t.Errorf("metrics: %v\n%s", err, b.String())
	}
	b.Reset()
	profile := "goroutine profile: total 9\n2 @ 0x47b36e 0x4118b7\n#\t0x47b36d\tgithub.com/conclavekms/conclave/cluster.(*Node).run.func1+0x4d\t/src/cluster/node.go:112\n\n"
	if err := f.Goroutines(&b, strings.NewReader(profile)); err != nil || b.String() != profile {
		t.Errorf("goroutines: %v\n%s", err, b.String())
	}
	st := f.NodeStatus(&kmspb.StatusResponse{NodeId: "node-1", Version: "0.2.0+1234abcd", ClusterTime: timestamppb.New(time.Unix(1, 0)), Faults: []string{"free disk space is low"}})
	if st.Node != "node-1" || st.Version != "0.2.0+1234abcd" || st.Faults[0] != "free disk space is low" {
		t.Errorf("status: %+v", st)
	}
}
