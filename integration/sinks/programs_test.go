package sinks

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/cmd/conclave/process"
	"github.com/conclavekms/conclave/integration/harness/ports"
	"github.com/conclavekms/conclave/integration/optional"
)

// program is a receiver that runs as a process of its own.
type program struct {
	t       *testing.T
	args    []string
	address string // where it listens
	output  string // the file with what it has received
	log     string
	// records finds the records in the output: submatches are the line, its index and its event
	// id, or these in another order.
	records *regexp.Regexp
	run     *process.Process
}

// delivered is what a receiver has got of a record.
type delivered struct {
	eventID, line string
	times         int
}

// block returns the first block of code of a kind below a heading of the page on sinks.
func block(t *testing.T, heading, kind string, replace ...string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/operate/audit-sinks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "\n## "+heading+"\n")
	_, text, _ = strings.Cut(text, "\n```"+kind+"\n")
	text, _, ok := strings.Cut(text, "\n```\n")
	if !ok {
		t.Fatalf("the page has no %s in %q", kind, heading)
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("the page has no %q in %q", replace[i], heading)
		}
	}
	return strings.NewReplacer(replace...).Replace(text) + "\n"
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// free returns an address that nobody listens on.
func free(t *testing.T) (address, port string) {
	t.Helper()
	address, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(address)
	return address, port
}

// certificate writes the certificate of a server on loopback, its key and its CA: cert.pem,
// key.pem and ca.pem.
func certificate(t *testing.T, dir string) {
	t.Helper()
	ca, err := pki.NewCA("receivers", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.IssueRequest{Kind: pki.KindNode, Name: "receiver", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ca.pem"), string(ca.CertPEM()))
	write(t, filepath.Join(dir, "cert.pem"), string(cert))
	write(t, filepath.Join(dir, "key.pem"), string(key))
}

// rsyslog is Debian's rsyslogd with the configuration of the page, and a sink for it.
func rsyslog(t *testing.T) (p *program, sink string) {
	path := optional.Program(t, "rsyslogd")
	if found, _ := filepath.Glob("/usr/lib/*/rsyslog/lmnsd_ossl.so"); len(found) == 0 {
		optional.Skip(t, "rsyslog has no TLS: the package rsyslog-openssl is not installed")
	}
	dir := t.TempDir()
	certificate(t, dir)
	address, port := free(t)
	p = &program{t: t, address: address, output: filepath.Join(dir, "audit.log"), log: filepath.Join(dir, "rsyslogd.log"),
		records: regexp.MustCompile(`(?m)^\[conclave@32473 index="(?P<index>\d+)" eventID="(?P<id>[^"]+)"\] ?(?P<line>\{.*\})$`)}
	config := write(t, filepath.Join(dir, "rsyslog.conf"), block(t, "rsyslog", "",
		"/etc/rsyslog", dir, "/var/log/conclave", dir, `port="6514"`, fmt.Sprintf(`address="127.0.0.1" port="%s"`, port)))
	p.args = []string{path, "-n", "-f", config, "-i", filepath.Join(dir, "rsyslogd.pid")}
	return p, fmt.Sprintf(`{"name": "program", "syslog": {"address": %q, "tls": {"ca": %q}}}`, address, filepath.Join(dir, "ca.pem"))
}

// collector is OpenTelemetry's collector with the configuration of the page, and a sink for it.
func collector(t *testing.T) (p *program, sink string) {
	path := os.Getenv("CONCLAVE_COLLECTOR")
	if path == "" {
		t.Skip("CONCLAVE_COLLECTOR does not name a collector: make test-sinks builds one")
	}
	dir := t.TempDir()
	address, _ := free(t)
	output := filepath.Join(dir, "collector.log")
	p = &program{t: t, address: address, output: output, log: output,
		records: regexp.MustCompile(`(?m)^Body: Str\((?P<line>\{.*\})\)\nAttributes:\n +-> conclave\.audit\.index: Int\((?P<index>\d+)\)\n +-> conclave\.audit\.event_id: Str\((?P<id>[^)]+)\)$`)}
	p.args = []string{path, write(t, filepath.Join(dir, "collector.yaml"), block(t, "OpenTelemetry's collector", "yaml", "127.0.0.1:4318", address))}
	return p, fmt.Sprintf(`{"name": "program", "otlp": {"url": "http://%s/v1/logs"}}`, address)
}

// start starts the program and waits until it listens.
func (p *program) start() {
	p.t.Helper()
	var err error
	if p.run, err = process.Start(process.Command{Path: p.args[0], Args: p.args[1:], Log: p.log}); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(p.run.Kill)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", p.address, time.Second)
		if err == nil {
			conn.Close()
			return
		}
		if p.run.Ended() || time.Now().After(end) {
			p.t.Fatalf("%s does not listen: %v, %v", p.args[0], err, p.run.Err())
		}
	}
}

// stop ends the program as its service manager does.
func (p *program) stop() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	if err := p.run.Stop(ctx); err != nil {
		p.t.Fatal(err)
	}
}

// slow lets the program run for a tenth of the time only, until quick is called.
func (p *program) slow() (quick func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			_ = p.run.Signal(syscall.SIGSTOP) // it has ended if this fails, which start or stop reports
			select {
			case <-time.After(450 * time.Millisecond):
			case <-stop:
				_ = p.run.Signal(syscall.SIGCONT)
				return
			}
			_ = p.run.Signal(syscall.SIGCONT)
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return func() { close(stop); <-done }
}

// received returns what the program has got, by the records' indexes.
func (p *program) received() map[uint64]delivered {
	p.t.Helper()
	text, err := os.ReadFile(p.output)
	if err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
	all := make(map[uint64]delivered)
	for _, m := range p.records.FindAllSubmatch(text, -1) {
		field := func(name string) string { return string(m[p.records.SubexpIndex(name)]) }
		index, err := strconv.ParseUint(field("index"), 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		was, again := all[index]
		now := delivered{field("id"), field("line"), was.times + 1}
		if again && (was.eventID != now.eventID || was.line != now.line) {
			p.t.Fatalf("record %d was delivered as %+v and as %+v", index, was, now)
		}
		all[index] = now
	}
	return all
}

// repeated returns how many records were delivered more often than once.
func repeated(all map[uint64]delivered) (n int) {
	for _, d := range all {
		if d.times > 1 {
			n++
		}
	}
	return n
}
