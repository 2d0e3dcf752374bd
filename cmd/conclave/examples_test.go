package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/integration/xksproxy"
)

// elsewhere are the commands whose examples are run by other tests.
var elsewhere = map[string]string{
	"conclave demo":   "TestDemo",
	"conclave bench":  "TestBench",
	"conclave dev":    "TestDevExamples",
	"conclave server": "TestServerExample",
	"conclave env":    "TestDevExamples",

	"conclave diagnose":     "TestScripts", // the servers of the other examples are in the way
	"conclave debug bundle": "TestScripts", // journalctl has no log of a server here

	"conclave credential rotate": "TestScripts", // the others would be without

	"conclave usage":      "TestUsagePage", // with the table of prices
	"conclave usage bill": "TestUsagePage",

	"conclave report": "TestReportPage", // with the keys of the others, a check fails

	"conclave audit sinks forget":   "TestRunbooks", // there is none to forget
	"conclave audit verify":         "TestRunbooks", // there is no archive
	"conclave audit verify-receipt": "TestRunbooks", // there is no witness
	"conclave audit witness":        "TestRunbooks", // it has no certificate
	"conclave audit witness init":   "TestRunbooks", // the directory belongs to root

	"conclave iam":      "TestScripts", // its commands have the same ones
	"conclave iam user": "TestScripts",
	"conclave iam role": "TestScripts",

	"conclave recover":          "TestScripts", // a backup belongs to a cluster with shares
	"conclave snapshot":         "TestScripts",
	"conclave snapshot save":    "TestScripts",
	"conclave snapshot inspect": "TestScripts",
	"conclave snapshot verify":  "TestScripts",
	"conclave snapshot restore": "TestScripts",

	"conclave cluster recover-quorum report": "TestRunbooks", // nodes must be stopped
	"conclave cluster recover-quorum build":  "TestRunbooks",

	"conclave sts assume-role-with-token": "the tests of web identities", // there is no issuer
}

// exampleOf returns a command's example.
func exampleOf(t *testing.T, path ...string) string {
	t.Helper()
	cmd, _, err := rootCommand(new(cli.App)).Find(path)
	if err != nil || cmd.Example == "" {
		t.Fatalf("conclave %s has no example: %v", strings.Join(path, " "), err)
	}
	return cmd.Example
}

// exampleArgs returns the arguments of a one-line example.
func exampleArgs(t *testing.T, replace *strings.Replacer, path ...string) []string {
	t.Helper()
	args := strings.Fields(replace.Replace(exampleOf(t, path...)))
	if len(args) == 0 || args[0] != "conclave" || strings.Contains(exampleOf(t, path...), "\n") {
		t.Fatalf("%q is not one command", args)
	}
	return args[1:]
}

// kitchen is the directory and the environment in which examples run.
type kitchen struct {
	t   *testing.T
	dir string
	env []string
}

func newKitchen(t *testing.T) *kitchen {
	t.Helper()
	path, err := exec.LookPath("conclave")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, sub := range []string{"home", "run", "work", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &kitchen{t, filepath.Join(dir, "work"), []string{
		"PATH=" + filepath.Dir(path) + ":" + os.Getenv("PATH"), "HOME=" + filepath.Join(dir, "home"), "TMPDIR=" + filepath.Join(dir, "tmp"),
		"XDG_RUNTIME_DIR=" + filepath.Join(dir, "run"),
		"CONCLAVE_AWS_LISTEN=127.0.0.1:0", "CONCLAVE_GRPC_LISTEN=127.0.0.1:0", "CONCLAVE_PEER_LISTEN=127.0.0.1:0", "CONCLAVE_OPS_LISTEN=127.0.0.1:0",
	}}
}

// sh runs lines as a user's shell does, and stops at the first one that fails.
func (k *kitchen) sh(lines string) (string, error) {
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", lines)
	cmd.Dir, cmd.Env = k.dir, k.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (k *kitchen) must(lines string) string {
	k.t.Helper()
	out, err := k.sh(lines)
	if err != nil {
		k.t.Fatalf("%s\n%v\n%s", lines, err, out)
	}
	return out
}

// runs runs the commands of a page, which are in its blocks of shell.
func (k *kitchen) runs(page string, addresses *strings.Replacer) {
	k.t.Helper()
	for _, line := range commandsOf(k.t, page) {
		if strings.Contains(line, "$NONCE") {
			line = "export CONCLAVE_ADDRESS=node-1:7601\n" + changeNonce + line
		}
		k.must(addresses.Replace(line))
	}
}

// commandsOf returns the commands of a page, one a line.
func commandsOf(t *testing.T, page string) (commands []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range strings.Split(string(text), "```sh\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", " ")) {
			if line = strings.TrimSpace(line); line != "" {
				commands = append(commands, line)
			}
		}
	}
	if len(commands) == 0 {
		t.Fatalf("%s has no commands", page)
	}
	return commands
}

// background runs a program until the test ends, or until stop.
func (k *kitchen) background(line string) (stop func()) {
	k.t.Helper()
	cmd := exec.Command("sh", "-eu", "-c", "exec "+line)
	cmd.Dir, cmd.Env = k.dir, k.env
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			k.t.Errorf("%s: %v\n%s", line, err, &out)
		}
	}
	k.t.Cleanup(stop)
	return stop
}

// setup makes what the examples in the help refer to, besides what those of
// `key create` make.
const setup = `
conclave key create --alias payments
conclave key create --alias old-payments
conclave key create --alias tokens --spec HMAC_256 --usage GENERATE_VERIFY_MAC
conclave key create --alias meeting --spec ECC_NIST_P256 --usage KEY_AGREEMENT
conclave key create --alias peer --spec ECC_NIST_P256 --usage KEY_AGREEMENT
conclave key create --alias signer --origin EXTERNAL --spec ECC_NIST_P256 --usage SIGN_VERIFY
conclave key create --alias worldwide --multi-region
conclave key create --alias transport --spec ML_KEM_768 --usage ENCAPSULATE_DECAPSULATE
conclave key public-key peer --pem > peer.pem
conclave random > material.bin
conclave key policy get payments > policy.json
echo secret > secret.txt
echo document > document.txt
conclave encrypt --key payments --context app=shop secret.txt > secret.enc
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out private-key.pem
mkdir -p tls
conclave cert bootstrap --dir tls --nodes node-1
for u in alice eve; do conclave iam user create $u; done
conclave iam user attach eve AdministratorAccess
for g in developers testers old; do conclave iam group create $g; done
conclave iam role create app --trust-user alice
conclave iam role create old --trust-user alice
echo '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:DescribeKey", "Resource": "*"}]}' > reads.json
echo '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:user/alice"}, "Action": "sts:AssumeRole"}]}' > trust.json
conclave iam policy create own reads.json
conclave iam policy create unused reads.json
conclave iam oidc-provider create https://old.example.com --audience shop
echo '{"keys": [{"kty": "EC", "crv": "P-256", "kid": "1", "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY", "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"}]}' > jwks.json
`

// early orders examples before those that need their results.
var early = []string{
	"conclave key create", "conclave alias list", "conclave sign", "conclave mac", "conclave alias create", "conclave alias update", "conclave key policy", "conclave key import",
	"conclave keystore connect", "conclave keystore disconnect", "conclave keystore update", "conclave encapsulate",
	"conclave iam user create", "conclave iam role create", "conclave iam user put-policy", "conclave iam group put-policy", "conclave iam role put-policy",
	"conclave iam user get-policy", "conclave iam group get-policy", "conclave iam role get-policy",
	"conclave iam policy create", "conclave iam policy new-version", "conclave iam policy set-default", "conclave iam key", "conclave iam key create",
	"conclave iam certificate map",
}

// prepare makes what an example needs anew.
var prepare = map[string]string{
	"conclave key cancel-deletion":      `conclave key schedule-deletion old-payments --days 7`,
	"conclave key schedule-deletion":    `conclave key cancel-deletion old-payments 2>&1 || true`,
	"conclave key import-wrapped":       `conclave key import-parameters imported --public-key-file w.der --token-file token.bin; openssl pkeyutl -encrypt -pubin -inkey w.der -keyform DER -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256 -in material.bin -out wrapped.bin`,
	"conclave key set-primary-region":   `conclave key replicate worldwide --to us-east-2 2>&1 || true`,
	"conclave grant retire":             `export GRANT=$(conclave grant create payments --grantee arn:aws:iam::000000000000:root --retiring arn:aws:iam::000000000000:root --operations Decrypt -o json | sed -n 's/.*"grant_id": "\(.*\)".*/\1/p')`,
	"conclave grant revoke":             `export REVOKED=$(conclave grant create payments --grantee arn:aws:iam::000000000000:root --operations Encrypt -o json | sed -n 's/.*"grant_id": "\(.*\)".*/\1/p')`,
	"conclave alias delete":             `conclave alias create shop payments 2>&1 || true`,
	"conclave alias update":             `conclave alias create shop payments 2>&1 || true`,
	"conclave alias create":             `conclave alias delete shop 2>&1 || true`,
	"conclave alias":                    `conclave alias delete shop 2>&1 || true`,
	"conclave keystore disconnect":      `conclave keystore connect $STORE`,
	"conclave credential delete":        `OLD=$(conclave credential list -o json | sed -n 's/.*"id": "\(AKIA[^"]*\)".*/\1/p' | grep -v "$AWS_ACCESS_KEY_ID")`,
	"conclave cert crl":                 `conclave cert revoke --dir tls --serial 0a0b`,
	"conclave cert revoke":              `conclave cert bootstrap --dir tls --nodes node-3`,
	"conclave iam key activate":         `SPARE=$(sed -n 's/AWS_ACCESS_KEY_ID=//p' new.env)`,
	"conclave iam key deactivate":       `SPARE=$(sed -n 's/AWS_ACCESS_KEY_ID=//p' new.env)`,
	"conclave iam key delete":           `SPARE=$(sed -n 's/AWS_ACCESS_KEY_ID=//p' new.env)`,
	"conclave iam key last-used":        `SPARE=$(sed -n 's/AWS_ACCESS_KEY_ID=//p' alice-2.env)`,
	"conclave policy generate":          `conclave iam user put-policy alice reads reads.json; (set -a; . ./alice-2.env; conclave key describe payments)`,
	"conclave policy why":               `DENIED=$(set -a; . ./alice-2.env; conclave key create 2>&1 | sed -n 's/.*(request \(.*\))/\1/p')`,
	"conclave sts assume-role":          `set -a; . ./alice-2.env`,
	"conclave audit verify-consistency": `conclave audit public-key > audit.pub; cp "$DATA/node/groups/0/audit/checkpoint" monday; cp monday tuesday`,
	"conclave audit verify-export":      `conclave audit public-key > audit.pub; conclave audit export cloudtrail --signing-key export-key.pem`,
}

// TestExamples: each command's help has an example, and each example works.
func TestExamples(t *testing.T) {
	if testing.Short() {
		t.Skip("runs some hundred programs")
	}
	t.Parallel()
	optional.Program(t, "openssl")
	k := newKitchen(t)
	first, second, third := xksproxy.Start(t), xksproxy.Start(t), xksproxy.Start(t)
	roots := filepath.Join(k.dir, "xks-ca.pem")
	if err := os.WriteFile(roots, slices.Concat(first.CA(), second.CA(), third.CA()), 0o600); err != nil {
		t.Fatal(err)
	}
	k.env = append(k.env, "CONCLAVE_XKS_CA="+roots, "CONCLAVE_XKS_ALLOW_PRIVATE_ENDPOINTS=true")
	k.background("conclave dev --data " + filepath.Join(k.dir, "data"))
	for line := range strings.SplitSeq(k.must("conclave env --wait 60s 2>/dev/null"), "\n") {
		if kv, ok := strings.CutPrefix(line, "export "); ok {
			k.env = append(k.env, strings.Trim(kv, "'"))
		}
	}
	info, err := readDevInfo(filepath.Join(k.dir, "data", devInfoFile))
	if err != nil {
		t.Fatal(err)
	}
	k.env = append(k.env, "DATA="+filepath.Join(k.dir, "data"), "CONCLAVE_OPS_LISTEN="+info.Ops)
	k.must(setup)
	// Variables that name places of the example itself.
	local := func(p *xksproxy.Proxy) *strings.Replacer {
		return strings.NewReplacer(
			"https://xks.example.com", p.Endpoint, "/kms/xks/v1", xksproxy.Path,
			"/var/lib/conclave", filepath.Join(k.dir, "data"), "copy/audit", "audit",
		)
	}
	credential := fmt.Sprintf(`{"AccessKeyId": %q, "RawSecretAccessKey": %q}`, xksproxy.AccessKeyID, xksproxy.Secret)
	if err := os.WriteFile(filepath.Join(k.dir, "credential.json"), []byte(credential), 0o600); err != nil {
		t.Fatal(err)
	}
	made := k.must(local(first).Replace(`conclave keystore create vault-0 --type EXTERNAL_KEY_STORE --endpoint https://xks.example.com --path /kms/xks/v1 \
		--connectivity PUBLIC_ENDPOINT --credential-file credential.json`))
	k.env = append(k.env, "STORE="+strings.TrimSpace(strings.TrimPrefix(made, "key store")))

	examples := make(map[string]string)
	var order []string
	eachCommand(rootCommand(new(cli.App)), func(c *cobra.Command) {
		path := c.CommandPath()
		switch {
		case strings.HasPrefix(path, "conclave operator") || strings.HasPrefix(path, "conclave cluster"):
			// TestOperatorExamples gives them a cluster of their own.
		case c.Example == "" && !c.HasSubCommands():
			t.Errorf("%s has no example", path)
		case c.Example == "" || elsewhere[path] != "":
		default:
			examples[path] = c.Example
			order = append(order, path)
		}
	})
	rank := func(path string) int {
		if i := slices.Index(early, path); i >= 0 {
			return i
		}
		return len(early)
	}
	slices.SortStableFunc(order, func(a, b string) int { return rank(a) - rank(b) })
	for _, path := range order {
		proxy := second
		if path == "conclave keystore create" {
			proxy = third
		}
		lines := prepare[path] + "\n" + local(proxy).Replace(examples[path])
		if out, err := k.sh(lines); err != nil {
			t.Errorf("the example of %s fails: %v\n%s\n%s", path, err, lines, out)
		}
	}
}

// TestDevExamples: the examples of dev start servers that env finds.
func TestDevExamples(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	t.Parallel()
	k := newKitchen(t)
	seeds := "keys:\n  - {id: 1234abcd-12ab-34cd-56ef-1234567890ab, aliases: [seeded]}\n"
	if err := os.WriteFile(filepath.Join(k.dir, "seeds.yaml"), []byte(seeds), 0o600); err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(exampleOf(t, "dev"), "\n") {
		stop := k.background(strings.TrimSpace(line))
		k.must("conclave env --wait 60s")
		k.must(exampleOf(t, "env") + "\neval \"$(conclave env)\"\nconclave key create --alias first\nconclave key list")
		stop()
	}
}

// TestServerExample: the example of server starts a node, which waits for the
// others.
func TestServerExample(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server")
	}
	t.Parallel()
	k := newKitchen(t)
	k.must("conclave cert bootstrap --dir . --nodes node-1,node-2,node-3 --ip 127.0.0.1")
	peers, err := localcluster.FreePorts(6)
	if err != nil {
		t.Fatal(err)
	}
	k.env = append(k.env, "CONCLAVE_PEER_LISTEN="+peers[0], "CONCLAVE_GOSSIP_LISTEN="+peers[3], "CONCLAVE_OPS_LISTEN="+peers[4], "CONCLAVE_ALLOW_UNLOCKED_MEMORY=true")
	k.background(strings.NewReplacer(
		"/var/lib/conclave", "data", "10.0.0.1:7602", peers[0], "10.0.0.2:7602", peers[1], "10.0.0.3:7602", peers[2], "10.0.0.1", "127.0.0.1",
	).Replace(strings.TrimSpace(exampleOf(t, "server"))))
	deadline := time.Now().Add(60 * time.Second)
	for {
		out, err := k.sh("conclave health")
		if err == nil && strings.Contains(out, "uninitialised") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("health says %q, %v", out, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// nonce sets NONCE to that of the break-glass ceremony.
const nonce = `NONCE=$(conclave operator break-glass status -o json | sed -n 's/.*"nonce": "\([^"]*\)".*/\1/p')` + "\n"

// changeNonce sets NONCE to that of the ceremony that replaces keys.
const changeNonce = `NONCE=$(conclave operator rekey status -o json | sed -n 's/.*"nonce": "\([^"]*\)".*/\1/p')` + "\n"

// seal sets SEAL to the name of the cluster's seal, once there is one.
const seal = `SEAL=; for i in $(seq 600); do [ -n "$SEAL" ] || { sleep 0.1; SEAL=$(conclave cluster seals list -o json | sed -n 's/.*"name": "\([^"]*\)".*/\1/p'); }; done` + "\n"

// operatorSteps are the commands for operators in the order of a ceremony. A command
// occurs once for each line of its example. before makes the line possible, and with is
// its standard input.
var operatorSteps = []struct{ command, before, with string }{
	{"operator init", "", ""},
	{"operator unseal", "cp ceremony/share-1.txt .", "ceremony/share-2.txt"},
	{"operator unseal", "conclave operator reset", ""},
	{"operator reset", "", ""},
	{"operator reset", "conclave operator unseal --share-file share-1.txt", ""},
	{"operator status", "for n in 1 2 3; do conclave operator unseal --share-file ceremony/share-$n.txt; done", ""},
	{"operator status", "", ""},
	{"operator confirm-time", "", ""},
	{"cluster members", "", ""},
	{"cluster status", "", ""},
	{"cluster upgrade status", "", ""},
	{"cluster upgrade finalize", "", ""},
	{"cluster peer-unseal enable", "", ""},
	{"cluster peer-unseal status", "", ""},
	{"cluster peer-unseal disable", "", ""},
	// node-1 has a seal, which the custodians add now that the cluster has level 2.
	{"cluster seals list", "conclave operator seal\nfor n in 1 2 3; do conclave operator unseal --share-file ceremony/share-$n.txt; done", ""},
	{"cluster seals remove", seal, ""},
	{"operator break-glass begin", "", ""},
	{"operator break-glass status", "", ""},
	{"operator break-glass cancel", nonce, ""},
	{"operator break-glass begin", "", ""},
	{"operator break-glass submit", nonce, "ceremony/share-2.txt"},
	{"operator break-glass submit", nonce + "conclave operator break-glass submit $NONCE --share-file ceremony/share-3.txt", ""},
	{"operator crl", "conclave cert issue operator mallory --dir . && conclave cert revoke mallory.pem --dir . && mkdir tls && cp crl.pem tls/", ""},
	{"operator name-custodians", "", ""},
	{"operator verify-share", "", "ceremony/share-2.txt"},
	{"operator verify-share", "", ""},
	{"operator rotate root", "", ""},
	{"operator rotate status", "", ""},
	{"operator rotate submit", changeNonce, "ceremony/share-2.txt"},
	{"operator rotate submit", changeNonce, ""},
	{"operator rotate cancel", changeNonce, ""},
	{"operator rotate keyring", "", ""},
	{"operator rekey begin", changeNonce + "conclave operator rotate cancel $NONCE", ""},
	{"operator rekey begin", changeNonce + "conclave operator rekey cancel $NONCE; mkdir keys; for p in alice.pub bob.asc carol.pub; do conclave operator custodian-key keys/$p > $p; done", ""},
	{"operator rekey status", "", ""},
	{"operator rekey submit", changeNonce, "ceremony/share-2.txt"},
	{"operator rekey submit", changeNonce + "conclave operator rekey submit $NONCE --share-file ceremony/share-3.txt", ""},
	{"operator rekey shares", changeNonce, ""},
	{"operator rekey cancel", changeNonce, ""},
	{"operator seal", "", ""},
	// A cluster cannot be initialised twice, so each of the last steps has a cluster of
	// its own.
	{"operator init", "", ""},
	{"operator custodian-key", "", ""},
	{"operator init", "[ -e carol.pub ] || { conclave operator custodian-key bob.key > bob.asc; conclave operator custodian-key carol.key > carol.pub; }", ""},
	{"operator decrypt-share", "cp shares/share-1-alice.pem .", ""},
	{"operator init", "rm -rf ceremony; printf 'account: \"111122223333\"\nregions: [eu-west-1]\nshares: 3\nthreshold: 2\n' > cluster.yaml", ""},
}

// TestOperatorExamples performs a ceremony on three nodes with the examples in the
// help of the commands for operators, and initialises another cluster with the rest.
func TestOperatorExamples(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	t.Parallel()
	lines := make(map[string][]string)
	eachCommand(rootCommand(new(cli.App)), func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), "conclave ")
		if c.HasSubCommands() || !strings.HasPrefix(path, "operator ") && !strings.HasPrefix(path, "cluster ") || slices.Contains(changesMembers, path) {
			return
		}
		if c.Example == "" {
			t.Errorf("%s has no example", path)
		}
		if elsewhere["conclave "+path] != "" {
			return
		}
		for line := range strings.Lines(c.Example) {
			lines[path] = append(lines[path], strings.TrimSpace(line))
		}
	})
	k := newKitchen(t)
	k.env = append(k.env, "CONCLAVE_ALLOW_UNLOCKED_MEMORY=true", "CONCLAVE_GOSSIP_LISTEN=none")
	k.must("conclave cert bootstrap --dir . --nodes node-1,node-2,node-3,alone-1,alone-2,alone-3 --ip 127.0.0.1")
	ports, err := localcluster.FreePorts(18)
	if err != nil {
		t.Fatal(err)
	}
	// The ports of each node for gRPC, peers and health. The last three nodes are
	// clusters of their own.
	grpc, peer, ops := ports[:6], ports[6:12], ports[12:]
	k.must("umask 077 && head -c 32 /dev/urandom | base64 > seal.key")
	start := func(i int, name, peers string) {
		k.background(fmt.Sprintf("conclave server --node-id %[1]s --data data-%[1]s --grpc-listen %s --peer-listen %s --ops-listen %s %s "+
			"--tls-ca ca.pem --tls-cert %[1]s.pem --tls-key %[1]s-key.pem", name, grpc[i], peer[i], ops[i], peers))
	}
	for i := range 3 {
		options := fmt.Sprintf("--peers node-1=%s,node-2=%s,node-3=%s", peer[0], peer[1], peer[2])
		if i == 0 {
			options += " --seals file:seal.key"
		}
		start(i, fmt.Sprint("node-", i+1), options)
	}
	for i := 3; i < 6; i++ {
		start(i, fmt.Sprint("alone-", i-2), "")
	}
	k.env = append(k.env, "CONCLAVE_CA=ca.pem", "CONCLAVE_CERT=operator.pem", "CONCLAVE_KEY=operator-key.pem")
	addresses := strings.NewReplacer("node-1:7601", grpc[0], "node-2:7601", grpc[1], "node-3:7601", grpc[2], "127.0.0.1:7604", ops[0])
	clusters := 0
	for _, step := range operatorSteps {
		if len(lines[step.command]) == 0 {
			t.Fatalf("the help of %s has fewer examples than are run", step.command)
		}
		line := addresses.Replace(lines[step.command][0])
		lines[step.command] = lines[step.command][1:]
		at := strings.Join(grpc[:3], ",")
		if step.command == "operator init" {
			if at = grpc[0]; clusters > 0 {
				at = grpc[2+clusters]
			}
			clusters++
		}
		if step.command == "operator decrypt-share" {
			at = grpc[clusters+1] // the cluster that was initialised last
		}
		if slices.ContainsFunc([]string{"break-glass", "rekey", "rotate"}, func(s string) bool { return strings.HasPrefix(step.command, "operator "+s) }) {
			at = grpc[0] // a ceremony is one node's
		}
		script := "export CONCLAVE_ADDRESS=" + at + "\n" + step.before + "\n" + line
		if strings.Contains(line, "--file cluster.yaml") {
			script += " || [ $? = 3 ]" // custodians have to unseal the nodes next
		}
		if step.with != "" {
			script += " < " + step.with
		}
		out, err := k.sh(script)
		// A new node may not have opened its ports yet, and a new cluster may have
		// no leader yet.
		for end := time.Now().Add(2 * time.Minute); err != nil && step.command == "operator init" && time.Now().Before(end); out, err = k.sh(script) {
			time.Sleep(200 * time.Millisecond)
		}
		if err != nil {
			t.Fatalf("the example of %s fails: %v\n%s\n%s", step.command, err, script, out)
		}
		if want := map[string]string{"cluster members": "node-3", "cluster status": "1 may fail", "cluster upgrade status": "raise it to 2", "cluster upgrade finalize": "feature level 2", "cluster peer-unseal enable": "nodes that have to agree", "cluster peer-unseal disable": "disabled", "cluster seals list": "ON THIS NODE", "cluster seals remove": "removed", "operator status": "unsealed", "operator seal": "sealed"}[step.command]; !strings.Contains(out, want) {
			t.Errorf("%s does not show %q:\n%s", line, want, out)
		}
		if step.command == "cluster upgrade finalize" {
			k.env = append(k.env, "DATA=data-node-1")
			for _, page := range []string{"upgrade", "monitoring", "disk-full", "clock-skew"} {
				k.runs("../../docs/operate/"+page+".md", addresses)
			}
		}
		if step.command == "cluster peer-unseal disable" {
			k.runs("../../docs/operate/unseal.md", addresses)
		}
		if step.command == "operator rekey cancel" {
			k.runs("../../docs/operate/rekey.md", addresses)
		}
	}
	for path, left := range lines {
		if len(left) > 0 {
			t.Errorf("the example of %s is run by nobody: %q", path, left)
		}
	}
}
