package operator

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func transcriptFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "transcript", "", "new file for a transcript of the ceremony, without secrets, to be printed")
}

// transcript is a text, without secrets, about a ceremony or a step of it, for people to print,
// sign and keep. The audit log has the same, but those who were there cannot read it. A nil
// transcript is none.
type transcript struct {
	file    *os.File
	text    strings.Builder
	written bool
}

// newTranscript creates the file, which must not exist yet, before anything is done: it is too
// late to fail afterwards. It returns nil for "". The caller has to call discard in the end.
func newTranscript(a *cli.App, name, ceremony string) (*transcript, error) {
	if name == "" {
		return nil, nil
	}
	who, err := operatorOf(a)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	t := &transcript{file: f}
	title := "Transcript of a ceremony: " + ceremony
	fmt.Fprintf(&t.text, "%s\n%s\n\n", title, strings.Repeat("=", len(title)))
	t.line("program", "conclave "+cli.Version)
	t.line("began", time.Now().UTC().Format(time.RFC3339)+" by the clock of the operator's machine")
	t.line("operator", who)
	return t, nil
}

// operatorOf returns who the operator is by the certificate that is used, and its fingerprint.
func operatorOf(a *cli.App) (string, error) {
	cfg, err := a.Remote.Config()
	if err != nil {
		return "", err
	}
	clear(cfg.SecretAccessKey)
	if cfg.CertFile == "" {
		return "without a certificate", nil
	}
	raw, err := files.Read(cfg.CertFile, certs.MaxFile)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return "", fmt.Errorf("%s has no certificate", cfg.CertFile)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("%s: %w", cfg.CertFile, err)
	}
	var names []string
	for _, u := range cert.URIs {
		names = append(names, u.String())
	}
	return fmt.Sprintf("%s, certificate sha256:%x", strings.Join(names, " "), sha256.Sum256(cert.Raw)), nil
}

func (t *transcript) line(name, value string) {
	fmt.Fprintf(&t.text, "%-22s %s\n", name+":", cli.Printable(cli.OrDash(value)))
}

func (t *transcript) heading(text string) { fmt.Fprintf(&t.text, "\n%s\n\n", text) }

// shareSet adds what is public about the shares: the fingerprints of their commitments, which
// say years later whether a share is of this set, and who keeps them.
func (t *transcript) shareSet(heading string, set *kmspb.ShareSet, have []uint32) {
	t.heading(heading)
	t.line("set", hex.EncodeToString(set.GetId()))
	t.line("epoch", fmt.Sprint(set.GetEpoch()))
	t.line("needed", fmt.Sprintf("%d of %d", set.GetThreshold(), set.GetCount()))
	for i, commitment := range set.GetCommitments() {
		who := ""
		if i < len(set.GetCustodians()) {
			c := set.GetCustodians()[i]
			who = fmt.Sprintf(" %s", c.GetName())
			if c.GetKeyFingerprint() != "" {
				who += ", key " + c.GetKeyFingerprint()
			}
		}
		given := ""
		for _, x := range have {
			if int(x) == i+1 {
				given = ", submitted"
			}
		}
		t.line(fmt.Sprintf("share %d", i+1), fmt.Sprintf("commitment sha256:%x%s%s", sha256.Sum256(commitment), who, given))
	}
}

// initialised adds what an initialisation did.
func (t *transcript) initialised(req *kmspb.InitRequest, r *kmspb.InitResponse) {
	if t == nil {
		return
	}
	t.heading("Cluster")
	t.line("cluster", r.GetClusterId())
	t.line("account", req.GetAccount())
	regions := req.GetRegions()
	if len(regions) == 0 {
		regions = []string{req.GetRegion()}
	}
	t.line("regions", strings.Join(regions, ", "))
	t.line("root user", r.GetRootArn())
	t.line("root access key id", r.GetAccessKeyId())
	t.line("root certificate", req.GetRootCertificate())
	t.line("audit public key", r.GetVerifierKey())
	t.line("audit record", "Init, request "+cli.OrDash(r.GetRequestId()))
	t.shareSet("Shares", r.GetShareSet(), nil)
}

// nodes adds what became of a share on each node.
func (t *transcript) nodes(nodes []*kmspb.NodeStatus) {
	if t == nil {
		return
	}
	var seal *kmspb.SealState
	for _, n := range nodes {
		t.heading("Node " + cli.Printable(n.GetNodeId()))
		if n.GetSeal() == nil {
			t.line("outcome", "not reached: "+cli.ErrorText(n.GetError()))
			continue
		}
		seal = n.GetSeal()
		t.line("cluster", seal.GetClusterId())
		t.line("ceremony nonce", hex.EncodeToString(n.GetCeremonyNonce()))
		t.line("ceremony begun by", seal.GetCeremony().GetOwner())
		t.line("state", sealText(seal))
		if n.GetError() != nil {
			t.line("outcome", "share not accepted: "+cli.ErrorText(n.GetError()))
		} else {
			t.line("outcome", "share accepted")
		}
		if n.GetRequestId() != "" {
			t.line("audit record", "SubmitShare, request "+n.GetRequestId()+", recorded once the node is unsealed")
		}
	}
	if seal != nil {
		t.shareSet("Shares", seal.GetShareSet(), seal.GetCustodians())
	}
}

// glass adds a step of a break-glass ceremony, of which begun is the state before, and now the
// one after. key is set if there is an access key.
func (t *transcript) glass(begun, now *kmspb.BreakGlass, key *client.BreakGlassKey) {
	if t == nil {
		return
	}
	t.heading("Node " + cli.Printable(begun.GetNodeId()))
	t.line("cluster", hex.EncodeToString(begun.GetClusterId()))
	t.line("ceremony nonce", hex.EncodeToString(begun.GetNonce()))
	t.line("ceremony begun by", begun.GetOwner())
	t.line("reason", begun.GetReason())
	t.line("account", begun.GetAccount())
	t.line("outcome", fmt.Sprintf("share accepted, %d were there before", len(begun.GetCustodians())))
	t.line("audit record", "SubmitBreakGlassShare, request "+cli.OrDash(now.GetRequestId()))
	have := now.GetCustodians()
	if key != nil {
		have = begun.GetCustodians() // the ceremony is over, and forgot them
		t.line("access key id", key.ID+", of "+key.RootARN)
		t.line("access key ends", key.Expires.UTC().Format(time.RFC3339))
	}
	t.shareSet("Shares", begun.GetShareSet(), have)
}

// changeBegun adds which ceremony that replaces keys a step belongs to.
func (t *transcript) changeBegun(k *kmspb.KeyChange) {
	t.heading("Node " + cli.Printable(k.GetNodeId()))
	t.line("cluster", hex.EncodeToString(k.GetClusterId()))
	t.line("ceremony", keyChangeText[k.GetKind()])
	t.line("ceremony nonce", hex.EncodeToString(k.GetNonce()))
	t.line("ceremony begun by", k.GetOwner())
}

// change adds a step of a ceremony that replaces keys, of which begun is the state before, and
// now the one after.
func (t *transcript) change(begun, now *kmspb.KeyChange, done bool) {
	if t == nil {
		return
	}
	t.changeBegun(begun)
	t.line("outcome", fmt.Sprintf("share accepted, %d were there before", len(begun.GetCustodians())))
	t.line("audit record", "Submit"+keyChangeEvents[begun.GetKind()]+"Share, request "+cli.OrDash(now.GetRequestId()))
	have := now.GetCustodians()
	if done || now.GetProving() != begun.GetProving() {
		have = begun.GetCustodians() // the node has wiped them
	}
	if begun.GetProving() {
		t.shareSet("New shares", begun.GetNewShareSet(), have)
	} else {
		t.shareSet("Shares", begun.GetShareSet(), have)
		if now.GetProving() {
			t.shareSet("New shares", now.GetNewShareSet(), nil)
		}
	}
	t.heading("In force")
	t.line("share set", fmt.Sprintf("%x, epoch %d", now.GetShareSet().GetId(), now.GetShareSet().GetEpoch()))
	t.line("keyring", fmt.Sprintf("generation %d", now.GetGeneration()))
}

// newShares adds which new shares of a rekey were handed out.
func (t *transcript) newShares(k *kmspb.KeyChange, requestID string) {
	if t == nil {
		return
	}
	t.changeBegun(k)
	t.line("outcome", "new shares handed out; not in force yet")
	t.line("audit record", "IssueRekeyShares, request "+cli.OrDash(requestID))
	t.shareSet("New shares", k.GetNewShareSet(), nil)
}

// write ends the transcript and stores it.
func (t *transcript) write() error {
	if t == nil {
		return nil
	}
	t.written = true // or a part of it
	t.heading("Witnesses")
	t.text.WriteString("name                              signature\n\n")
	t.text.WriteString(strings.Repeat("________________________________  ________________________________\n\n", 3))
	t.line("ended", time.Now().UTC().Format(time.RFC3339))
	_, err := t.file.WriteString(t.text.String())
	return errors.Join(err, t.file.Sync(), t.file.Close(), files.SyncDir(filepath.Dir(t.file.Name())))
}

// discard removes the file, unless the transcript is in it.
func (t *transcript) discard() {
	if t != nil && !t.written {
		_ = t.file.Close()
		_ = os.Remove(t.file.Name()) // an empty file that stays is no harm
	}
}
