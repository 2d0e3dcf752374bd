package integration

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/conclavekms/conclave"

// imports says which packages of ours a package may import. A trailing /... covers the tree below.
var imports = []struct {
	pkg     string
	allowed []string
}{
	{"cmd/conclave/node", []string{"cluster/...", "transport/...", "keyengine", "keyengine/backup", "keyengine/backup/scheduled", "keyengine/auditarchive", "keyengine/auditsink", "keyengine/auditwitness", "keyengine/ceremony", "keyengine/joining", "keyengine/kmsapi", "keyengine/peerunseal", "keyengine/seal", "keyengine/trace", "keyengine/traceexport", "fsm/...", "auditlog", "auditlog/archive", "cmd/conclave/internal/depot"}},
	{"cmd/conclave/internal/files", nil},
	{"cmd/conclave/internal/depot", []string{"cmd/conclave/internal/files"}},
	{"cmd/conclave/internal/certs", []string{"cmd/conclave/internal/files", "cluster/pki"}},
	{"cmd/conclave/internal/cli", []string{
		"cmd/conclave/internal/files", "cmd/conclave/internal/certs", "cluster/pki", "transport/client", "transport/kmspb",
	}},
	{"cmd/conclave/internal/health", nil},
	{"cmd/conclave/internal/systemd", nil},
	{"cmd/conclave/internal/bundle", []string{"transport/kmspb"}},
	// It looks at what a server would use, with what the server would use.
	{"cmd/conclave/internal/diagnose", []string{
		"cmd/conclave/internal/files", "cmd/conclave/node", "cluster", "cluster/diskspace", "cluster/gossip", "cluster/pki", "keyengine", "transport/admission",
	}},
	{"cmd/conclave/process", nil},
	{"cmd/conclave/internal/localcluster", []string{
		"cmd/conclave/process",
		"cmd/conclave/internal/files", "cmd/conclave/internal/certs", "cmd/conclave/internal/cli", "cmd/conclave/internal/health",
		"cmd/conclave/node", "cluster/pki", "keyengine", "keyengine/ceremony", "keyengine/kmsapi", "transport/client", "transport/kmspb",
	}},
	{"cmd/conclave/internal/bench", []string{
		"cmd/conclave/process", "cmd/conclave/internal/certs", "cmd/conclave/internal/cli", "cmd/conclave/internal/localcluster",
		"cluster/pki", "transport/client", "transport/iampb", "transport/kmspb", "transport/sigv4",
	}},
	{"cmd/conclave/internal/keys", []string{
		"cmd/conclave/internal/files", "cmd/conclave/internal/cli", "keyengine", "transport/client", "transport/kmspb",
	}},
	// It decides by package policy who may use a key, as the engine does.
	{"cmd/conclave/internal/permissions", []string{"policy", "transport/iampb", "transport/kmspb"}},
	{"cmd/conclave/internal/access", []string{
		"cmd/conclave/internal/files", "cmd/conclave/internal/cli", "cmd/conclave/internal/keys", "cmd/conclave/internal/permissions", "policy", "policy/lint", "transport/client", "transport/iampb", "transport/kmspb", "transport/trailpb",
	}},
	// CloudTrail's files: neither a server nor the parts of a node.
	{"cmd/conclave/internal/trailfiles", []string{"cmd/conclave/internal/files", "auditlog/checkpoint"}},
	// It reads logs through servers, and verifies their files without one.
	{"cmd/conclave/internal/audit", []string{
		"cmd/conclave/internal/files", "cmd/conclave/internal/cli", "cmd/conclave/internal/depot", "cmd/conclave/internal/trailfiles", "cmd/conclave/node", "auditlog", "auditlog/archive", "auditlog/checkpoint", "auditlog/receipt", "auditlog/verify", "auditlog/witness",
		"transport", "transport/admission", "transport/client", "transport/kmspb",
	}},
	{"cmd/conclave/internal/usage", []string{"cmd/conclave/internal/cli", "transport/iampb", "transport/kmspb"}},
	// It checks policies by package policy, and files of the audit log as an auditor does.
	{"cmd/conclave/internal/report", []string{
		"cmd/conclave/internal/audit", "cmd/conclave/internal/files", "cmd/conclave/internal/cli", "cmd/conclave/internal/keys", "auditlog/verify", "policy", "policy/lint", "transport/client", "transport/iampb", "transport/kmspb",
	}},
	// It checks files by the rules that the server has.
	{"cmd/conclave/internal/clusterfile", []string{
		"cmd/conclave/internal/files", "cmd/conclave/internal/cli", "keyengine/custodian", "keyengine/iamapi", "keyengine/kmsapi", "policy", "transport/client", "transport/iampb", "transport/kmspb",
	}},
	{"cmd/conclave/internal/operator", []string{
		"cmd/conclave/internal/clusterfile", "cmd/conclave/internal/files", "cmd/conclave/internal/certs", "cmd/conclave/internal/cli", "cluster/pki", "keyengine/ceremony", "keyengine/custodian", "keyengine/jointoken", "transport/client", "transport/kmspb",
	}},
	// It opens files and writes data directories, without a server.
	{"cmd/conclave/internal/backups", []string{
		"cmd/conclave/internal/depot", "cmd/conclave/internal/files", "cmd/conclave/internal/cli", "cmd/conclave/node", "cluster", "fsm", "fsm/fsmpb", "keyengine/backup", "auditlog", "transport/kmspb",
	}},
	{"cmd/conclave", []string{
		"cmd/conclave/node", "cluster", "cluster/diskspace", "cluster/pki", "transport/client", "transport/iampb", "transport/kmspb", "keyengine", "keyengine/alert", "keyengine/ceremony", "keyengine/kmsapi", "keyengine/traceexport", "auditlog/verify",
	}},
	{"transport/tlogapi", []string{"transport", "transport/admission", "keyengine/iam", "keyengine/kmsapi", "auditlog", "auditlog/checkpoint"}},
	{"transport/sigv4", nil},
	{"transport/client", []string{"transport/iampb", "transport/kmspb"}},
	{"transport/kmspb", nil},
	{"transport/iampb", nil},
	{"transport/trailpb", nil},
	// One budget for all listeners: those for clients and those for nodes take from it.
	{"transport/admission", nil},
	{"transport", []string{"transport/...", "keyengine", "keyengine/ceremony", "keyengine/iam", "keyengine/iamapi", "keyengine/joining", "keyengine/kmsapi", "keyengine/trace", "keyengine/trailapi", "fsm"}},
	{"keyengine/kmsapi", nil},
	// What is measured of requests, and its way to a collector.
	{"keyengine/trace", nil},
	{"keyengine/traceexport", []string{"keyengine/internal/auditsend", "keyengine/internal/outbound", "keyengine/internal/record", "keyengine/trace"}},
	{"keyengine/iamapi", []string{"keyengine/kmsapi"}},
	{"keyengine/trailapi", []string{"keyengine/kmsapi"}},
	{"keyengine/internal/egress", nil},
	{"keyengine/internal/webidentity", []string{"keyengine/internal/egress"}},
	{"keyengine/internal/xks", []string{"keyengine/internal/egress", "transport/sigv4"}},
	{"keyengine/internal/forward", []string{"keyengine/internal/forwardpb", "keyengine/kmsapi"}},
	{"keyengine/internal/auditfield", []string{"keyengine/kmsapi", "auditlog/auditpb"}},
	// What the keys are of, and what seals and opens: no request, and nobody's authority.
	{"keyengine/accesskey", []string{"fsm"}},
	{"keyengine/internal/bounded", nil},
	{"keyengine/internal/vault", []string{"keyengine/internal/bounded", "keyengine/internal/keymat", "keyengine/kmsapi", "fsm", "fsm/fsmpb", "fsm/origin", "auditlog", "auditlog/checkpoint", "policy"}},
	{"keyengine/internal/auditfeed", []string{"keyengine/internal/auditfield", "keyengine/internal/vault", "auditlog", "auditlog/auditpb"}},
	{"keyengine/internal/auditfile", []string{"keyengine/internal/auditfeed", "keyengine/internal/localfile", "keyengine/internal/vault", "auditlog"}},
	{"keyengine/internal/metering", []string{"keyengine/internal/auditfeed", "keyengine/internal/auditfield", "keyengine/internal/auditfile", "keyengine/internal/localfile", "auditlog/auditpb"}},
	{"keyengine/internal/localfile", []string{"keyengine/internal/keymat", "keyengine/internal/vault"}},
	// What records there are, for tests and documentation.
	{"keyengine/auditevents", []string{"keyengine/internal/record", "auditlog/auditpb"}},
	// The audit log for receivers outside of the cluster.
	{"keyengine/internal/outbound", nil},
	{"keyengine/internal/auditsend", []string{"keyengine/internal/outbound"}},
	{"keyengine/auditsink", []string{
		"keyengine/alert", "keyengine/kmsapi", "keyengine/internal/auditfeed", "keyengine/internal/auditfield", "keyengine/internal/auditsend", "keyengine/internal/outbound", "keyengine/internal/record", "keyengine/internal/vault",
		"fsm", "fsm/fsmpb", "auditlog", "auditlog/auditpb",
	}},
	{"keyengine/auditwitness", []string{"keyengine/internal/outbound", "auditlog", "auditlog/checkpoint", "auditlog/witness"}},
	// Full segments of the audit log outside of the cluster.
	{"keyengine/auditarchive", []string{
		"keyengine/internal/auditfield", "keyengine/internal/record", "keyengine/internal/vault", "fsm", "fsm/fsmpb", "fsm/level", "auditlog", "auditlog/archive",
	}},
	{"keyengine/internal/auditindex", []string{"keyengine/internal/auditfeed", "keyengine/internal/auditfile", "keyengine/internal/localfile", "keyengine/internal/record", "keyengine/internal/vault", "auditlog"}},
	// From below: records, callers, one evaluation, the operations. None knows the engine.
	{"keyengine/internal/record", []string{"keyengine/accesskey", "keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/vault", "fsm", "fsm/fsmpb", "fsm/wire", "auditlog", "auditlog/auditpb", "auditlog/checkpoint", "policy"}},
	{"keyengine/iam", []string{
		"keyengine/accesskey", "keyengine/kmsapi", "keyengine/trace", "keyengine/internal/auditfield", "keyengine/internal/keymat", "keyengine/internal/record", "keyengine/internal/vault",
		"fsm", "fsm/form", "fsm/fsmpb", "auditlog/auditpb", "policy", "transport/sigv4",
	}},
	// Public keys of people, and what is encrypted to them.
	{"keyengine/custodian", nil},
	{"keyengine/ceremony", []string{
		"keyengine/custodian", "keyengine/iam", "keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/iamops", "keyengine/internal/keymat", "keyengine/internal/record", "keyengine/internal/request",
		"keyengine/internal/shamir", "keyengine/internal/vault", "fsm", "fsm/fsmpb", "fsm/level", "auditlog/auditpb", "policy",
	}},
	{"keyengine/backup/scheduled", []string{"keyengine/backup", "fsm"}},
	// Keys outside of the cluster that unseal nodes.
	{"keyengine/seal", []string{
		"keyengine/ceremony", "keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/hsm", "keyengine/internal/keymat", "keyengine/internal/record", "keyengine/internal/vault",
		"fsm", "fsm/fsmpb", "fsm/level", "auditlog/auditpb",
	}},
	// How a machine joins the cluster without files that somebody made for it.
	{"keyengine/jointoken", nil},
	{"keyengine/joining", []string{
		"keyengine/ceremony", "keyengine/jointoken", "keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/keymat", "keyengine/internal/record", "keyengine/internal/vault",
		"fsm", "fsm/form", "fsm/fsmpb", "fsm/level", "auditlog/auditpb",
	}},
	// How the unsealed nodes of a cluster unseal one that restarts.
	{"keyengine/peerunseal", []string{
		"keyengine/ceremony", "keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/keymat", "keyengine/internal/record", "keyengine/internal/shamir", "keyengine/internal/vault",
		"keyengine/peerunseal/peerunsealpb", "fsm", "fsm/fsmpb", "fsm/level", "fsm/origin", "auditlog/auditpb",
	}},
	// A file that shares open without the cluster; beside it, how one becomes a cluster again.
	{"keyengine/backup", []string{
		"keyengine/backup/backuppb", "keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/keymat", "keyengine/internal/primitive", "keyengine/internal/record", "keyengine/internal/shamir", "keyengine/internal/vault",
		"fsm", "fsm/fsmpb", "fsm/origin", "fsm/snapfile", "fsm/wire", "auditlog", "auditlog/auditpb",
	}},
	// What an operator should look at.
	{"keyengine/alert", []string{
		"keyengine/kmsapi", "keyengine/internal/auditfeed", "keyengine/internal/auditfield", "keyengine/internal/auditfile", "keyengine/internal/localfile", "keyengine/internal/record", "keyengine/internal/request", "keyengine/internal/vault",
		"fsm", "fsm/fsmpb", "auditlog/auditpb", "policy",
	}},
	{"keyengine/internal/keystore", []string{"keyengine/kmsapi", "keyengine/internal/hsm", "keyengine/internal/keymat", "keyengine/internal/xks", "fsm/fsmpb", "transport/sigv4"}},
	{"keyengine/internal/binding", []string{"keyengine/iam", "fsm", "fsm/fsmpb", "policy"}},
	{"keyengine/internal/request", []string{
		"keyengine/internal/bounded", "keyengine/accesskey", "keyengine/iam", "keyengine/iam/iampb", "keyengine/iamapi", "keyengine/kmsapi", "keyengine/trace", "keyengine/internal/attest", "keyengine/internal/auditfield", "keyengine/internal/auditindex", "keyengine/internal/binding", "keyengine/internal/keystore", "keyengine/internal/record", "keyengine/internal/vault", "keyengine/internal/webidentity",
		"fsm", "fsm/fsmpb", "auditlog", "auditlog/auditpb", "policy",
	}},
	{"keyengine/internal/cryptops", []string{
		"keyengine/kmsapi", "keyengine/internal/attest", "keyengine/internal/auditfield", "keyengine/internal/cms", "keyengine/internal/keymat",
		"keyengine/internal/keystore", "keyengine/internal/primitive", "keyengine/internal/record", "keyengine/internal/request", "fsm", "fsm/fsmpb", "auditlog/auditpb",
	}},
	{"keyengine/internal/ops", []string{
		"keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/binding", "keyengine/internal/cryptops", "keyengine/internal/keymat", "keyengine/internal/keystore", "keyengine/internal/keywrap",
		"keyengine/internal/primitive", "keyengine/internal/record", "keyengine/internal/request", "keyengine/internal/vault", "fsm", "fsm/fsmpb", "auditlog/auditpb", "policy",
	}},
	{"keyengine/internal/iamops", []string{
		"keyengine/iam", "keyengine/iamapi", "keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/binding", "keyengine/internal/keymat", "keyengine/internal/request", "keyengine/internal/vault", "keyengine/internal/webidentity",
		"fsm", "fsm/form", "fsm/fsmpb", "auditlog/auditpb", "policy",
	}},
	{"keyengine/internal/simulateops", []string{
		"keyengine/iam", "keyengine/iamapi", "keyengine/kmsapi", "keyengine/internal/record", "keyengine/internal/request", "fsm", "fsm/fsmpb", "policy",
	}},
	{"keyengine/internal/stsops", []string{
		"keyengine/accesskey", "keyengine/iam", "keyengine/iam/iampb", "keyengine/iamapi", "keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/record", "keyengine/internal/request",
		"keyengine/internal/vault", "keyengine/internal/webidentity", "fsm", "fsm/fsmpb", "auditlog/auditpb", "policy",
	}},
	{"keyengine/internal/trailops", []string{
		"keyengine/kmsapi", "keyengine/trailapi", "keyengine/internal/auditfeed", "keyengine/internal/auditindex", "keyengine/internal/request", "keyengine/internal/vault", "fsm", "auditlog",
	}},
	{"keyengine/internal/rewrap", []string{
		"keyengine/internal/auditfield", "keyengine/internal/record", "keyengine/internal/vault", "fsm", "fsm/fsmpb", "auditlog/auditpb",
	}},
	{"keyengine/internal/schedule", []string{
		"keyengine/kmsapi", "keyengine/internal/auditfield", "keyengine/internal/ops", "keyengine/internal/record", "keyengine/internal/request",
		"fsm", "fsm/fsmpb", "auditlog/auditpb",
	}},
	{"keyengine/internal/enginetest", []string{
		"keyengine/ceremony", "keyengine/iam", "keyengine/kmsapi", "keyengine/internal/keymat", "keyengine/internal/record", "keyengine/internal/request", "keyengine/internal/shamir", "keyengine/internal/vault",
		"fsm", "fsm/fsmpb", "fsm/level", "fsm/origin", "fsm/wire", "auditlog", "auditlog/auditpb", "transport/sigv4",
	}},
	{"keyengine/internal", nil},
	{"keyengine", []string{"policy", "auditlog", "auditlog/auditpb", "auditlog/checkpoint", "auditlog/receipt", "fsm/...", "keyengine/auditarchive", "keyengine/alert", "keyengine/backup", "keyengine/ceremony", "keyengine/iam", "keyengine/iamapi", "keyengine/kmsapi", "keyengine/accesskey", "keyengine/joining", "keyengine/peerunseal", "keyengine/seal", "keyengine/trace", "keyengine/internal/..."}},
	{"cluster/diskspace", nil},
	{"cluster/pki", []string{"cluster/internal/durable", "transport/admission"}},
	{"cluster/gossip", []string{"transport/admission"}},
	{"cluster/internal/commit", []string{"cluster/internal/signal", "cluster/clusterpb", "fsm/..."}},
	{"cluster/internal/raftlog", []string{"cluster/internal/signal", "cluster/internal/durable", "auditlog"}},
	{"cluster/internal/peerport", []string{"cluster/pki", "transport/admission"}},
	{"cluster/internal/membership", []string{"cluster/internal/peerport", "cluster/pki"}},
	{"cluster/internal/peerunseal", []string{"cluster/internal/durable", "cluster/internal/peerproof", "cluster/clusterpb", "fsm", "fsm/fsmpb", "fsm/wire"}},
	{"cluster/internal/authority", []string{"cluster/internal/commit", "cluster/internal/peers", "fsm/..."}},
	{"cluster/internal/lifecycle", []string{"cluster/internal/commit", "fsm"}},
	{"cluster/internal/room", []string{"cluster/diskspace", "cluster/internal/raftlog", "cluster/clusterpb", "fsm", "auditlog"}},
	{"cluster/internal/clockguard", []string{"fsm", "fsm/fsmpb"}},
	{"cluster/internal/changes", []string{"cluster/clusterpb", "cluster/internal/commit", "cluster/internal/raftend", "cluster/pki", "fsm", "fsm/level"}},
	{"cluster/internal/voters", []string{
		"cluster/internal/clockguard", "cluster/internal/lifecycle", "cluster/internal/peerproof", "cluster/internal/peers", "cluster/internal/standing",
		"cluster/clusterpb", "fsm", "fsm/wire",
	}},
	{"cluster/internal/handover", []string{"cluster/diskspace", "cluster/internal/commit", "cluster/internal/lifecycle", "cluster/internal/raftend", "cluster/internal/raftlog", "cluster/clusterpb"}},
	{"cluster/internal/raftend", nil},
	{"cluster/internal/leadership", []string{"cluster/internal/commit", "cluster/internal/lifecycle", "cluster/internal/raftend", "cluster/clusterpb"}},
	{"cluster/internal/barrier", []string{"cluster/internal/commit", "cluster/internal/lifecycle", "fsm"}},
	{"cluster/internal/backfill", []string{"cluster/internal/signal", "auditlog"}},
	{"cluster/internal/scrub", []string{"auditlog"}},
	{"cluster/internal/clustertest", []string{"cluster/internal/peerport", "cluster/pki", "fsm/...", "auditlog"}},
	{"cluster/internal/peerproof", []string{"cluster/internal/peerport", "fsm/..."}},
	{"cluster/internal/raftlogger", nil},
	{"cluster/internal/raftscan", []string{"cluster/internal/standing", "fsm/wire"}},
	{"cluster/internal/peers", []string{
		"cluster/internal/commit", "cluster/internal/peerport", "cluster/internal/peerproof", "cluster/internal/standing",
		"cluster/clusterpb", "cluster/pki", "fsm/...", "auditlog",
	}},
	{"cluster/internal/rafttransport", []string{
		"cluster/internal/membership", "cluster/internal/peerport", "cluster/internal/peerproof", "cluster/internal/raftlogger", "cluster/internal/raftscan",
		"cluster/internal/standing", "fsm/fsmpb", "fsm/origin", "fsm/wire",
	}},
	{"cluster/internal/standing", []string{"cluster/clusterpb"}},
	{"cluster/internal/bootstrap", []string{"cluster/internal/membership", "cluster/internal/peerproof", "cluster/internal/commit", "cluster/internal/raftlog", "cluster/clusterpb", "fsm/..."}},
	{"cluster/internal/upgrade", []string{"cluster/clusterpb", "fsm", "fsm/level"}},
	{"cluster/internal/durable", nil},
	{"cluster/internal/signal", nil},
	{"cluster", []string{"transport/admission", "cluster/clusterpb", "fsm/...", "auditlog"}},
	{"fsm/level", []string{"fsm/fsmpb", "fsm/form"}},
	{"fsm/recent", nil},
	{"fsm/wire", []string{"fsm/fsmpb", "fsm/level"}},
	{"fsm/clustertime", []string{"fsm/fsmpb"}},
	{"fsm/form", []string{"fsm/fsmpb"}},
	{"fsm/keymaterial", []string{"fsm/fsmpb"}},
	{"fsm/intern", nil},
	{"fsm/trees", nil},
	{"fsm/regionid", nil},
	{"fsm/origin", []string{"fsm/fsmpb", "fsm/wire"}},
	{"fsm/session", []string{"fsm/fsmpb", "fsm/wire"}},
	{"fsm/snapfile", []string{"fsm/fsmpb", "fsm/level", "fsm/wire"}},
	{"fsm/statehash", []string{"fsm/fsmpb", "fsm/wire"}},
	{"fsm", []string{"fsm/fsmpb", "auditlog"}},
	{"policy/lint", []string{"policy"}},
	{"policy", nil},
	// What third parties run takes the formats and the tree from auditlog. The compiler
	// keeps auditlog from importing it in turn.
	{"auditlog/verify", []string{"auditlog", "auditlog/checkpoint", "auditlog/internal/layout"}},
	{"auditlog/witness", []string{"auditlog", "auditlog/checkpoint"}},
	{"auditlog/receipt", []string{"auditlog", "auditlog/checkpoint"}},
	{"auditlog/internal/layout", nil},
	{"auditlog/internal/disk", nil},
	// What is kept outside of the cluster is shown to auditlog/verify as a log directory.
	{"auditlog/archive", []string{"auditlog", "auditlog/checkpoint", "auditlog/internal/layout"}},
	{"auditlog/checkpoint", []string{"auditlog/internal/layout"}},
	{"auditlog", []string{"auditlog/auditpb", "auditlog/checkpoint", "auditlog/internal/disk", "auditlog/internal/layout"}},
}

// importers are all that import a package, where a rule above would permit more.
var importers = map[string][]string{
	// The AWS face reads signatures, the engine has the secrets that check them, the client
	// of external key stores and the benchmark sign, and transport has the answers to errors.
	"transport/sigv4": {"cmd/conclave/internal/bench", "integration/xksproxy", "keyengine/iam", "keyengine/internal/enginetest", "keyengine/internal/keystore", "keyengine/internal/xks", "transport", "transport/awsapi", "transport/queryapi"},
	// Only tests import these.
	"keyengine/internal/enginetest": {},
	"keyengine/issuertest":          {"integration/harness"},
}

// generatedMayImport adds what one .proto needs of another's.
var generatedMayImport = map[string][]string{"cluster/clusterpb": {"fsm/fsmpb"}, "keyengine/backup/backuppb": {"fsm/fsmpb"}}

// pure are the packages that apply consists of.
var pure = []string{"fsm", "fsm/clustertime", "fsm/form", "fsm/intern", "fsm/keymaterial", "fsm/level", "fsm/origin", "fsm/recent", "fsm/regionid", "fsm/session", "fsm/snapfile", "fsm/statehash", "fsm/trees", "fsm/wire"}

// impure are the standard packages that would let apply depend on something
// other than the state and the entry.
var impure = []string{"time", "math/rand", "math/rand/v2", "crypto/rand", "os", "net", "net/http", "context"}

func TestImports(t *testing.T) {
	root := ".."
	seen := 0
	found := make(map[string][]string) // who imports those of importers
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, _ := filepath.Rel(root, filepath.Dir(path))
		pkg := filepath.ToSlash(dir)
		test := strings.HasSuffix(path, "_test.go")
		for _, spec := range f.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value)
			if slices.Contains(pure, pkg) && !test && slices.Contains(impure, imp) {
				t.Errorf("%s imports %s: apply must be a pure function", path, imp)
			}
			ours, ok := strings.CutPrefix(imp, module+"/")
			if !ok || test && pkg != "policy" && pkg != "auditlog" {
				continue // tests may reach further, but for the packages that import nothing
			}
			seen++
			if importers[ours] != nil && !slices.Contains(found[ours], pkg) {
				found[ours] = append(found[ours], pkg)
			}
			if !mayImport(pkg, ours) {
				t.Errorf("%s: %s may not import %s", path, pkg, ours)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg, want := range importers {
		if got := slices.Sorted(slices.Values(found[pkg])); !slices.Equal(got, want) {
			t.Errorf("%s is imported by %v, want %v", pkg, got, want)
		}
	}
	for _, pkg := range pure {
		if _, err := os.Stat(filepath.Join(root, pkg)); err != nil {
			t.Errorf("a package that must be pure is gone: %v", err)
		}
	}
	if seen == 0 {
		t.Fatal("no import of ours was seen: the test looks in the wrong place")
	}
}

func mayImport(pkg, imp string) bool {
	if under(imp, pkg) || strings.HasPrefix(pkg, "integration") || slices.Contains(generatedMayImport[pkg], imp) {
		return true
	}
	for _, rule := range imports {
		if !under(pkg, rule.pkg) {
			continue
		}
		for _, a := range rule.allowed {
			if tree, ok := strings.CutSuffix(a, "/..."); ok && under(imp, tree) || a == imp {
				return true
			}
		}
		return false // the first rule that fits decides
	}
	return false
}

// under reports whether pkg is tree or below it.
func under(pkg, tree string) bool {
	return pkg == tree || strings.HasPrefix(pkg, tree+"/")
}

func TestNoVaguePackageNames(t *testing.T) {
	for _, name := range []string{"util", "utils", "common", "types", "pkg", "helpers", "misc"} {
		for _, pattern := range []string{"../" + name, "../*/" + name, "../*/*/" + name, "../*/*/*/" + name} {
			if found, _ := filepath.Glob(pattern); len(found) > 0 {
				t.Errorf("%v: name the package for what it provides", found)
			}
		}
	}
}
