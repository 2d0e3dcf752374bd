package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/cmd/conclave/internal/localcluster"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func demoCommand(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "demo",
		Example: `  conclave demo`,
		Short:   "Demonstrate three nodes, a ceremony, a crash and the audit log",
		Long: `Demo starts three nodes as processes on this machine, performs the ceremony, uses a
key on all of them, disables it, kills the leader, continues without it, and
verifies the audit log, reporting each step. It takes some seconds and leaves
nothing behind. The exit code is 1 if any step fails.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
			defer cancel()
			return runDemo(ctx, a)
		},
	}
}

// demo is one run: a cluster, and a client for each of its nodes.
type demo struct {
	app     *cli.App
	cluster *localcluster.Cluster
	clients []*client.Client
	key     string
	began   time.Time
}

func runDemo(ctx context.Context, a *cli.App) (err error) {
	c, err := localcluster.New(3)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			for _, log := range c.LastLogs() {
				a.Note("%s", log)
			}
		}
		err = errors.Join(err, c.Close())
	}()
	d := &demo{app: a, cluster: c, began: time.Now()}
	defer d.disconnect()
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"starting three nodes", d.start},
		{"the ceremony", d.ceremony},
		{"one key on three nodes", d.use},
		{"disabling the key", d.disable},
		{"killing the leader", d.kill},
		{"bringing it back", d.restart},
		{"verifying the audit log", d.verify},
	} {
		if err := step.run(ctx); err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
			}
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	d.say("All steps done. The nodes are stopped and their files removed.")
	return nil
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.app.Stdout, "%6.2fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) disconnect() {
	for _, c := range d.clients {
		c.Close()
	}
	d.clients = nil
}

func (d *demo) start(ctx context.Context) error {
	if err := d.cluster.StartAll(ctx); err != nil {
		return err
	}
	for _, n := range d.cluster.Nodes {
		d.say("%s runs as process %d: AWS API https://%s, gRPC %s", n.ID, n.Process.PID(), n.AWS, n.GRPC)
	}
	return nil
}

func (d *demo) ceremony(ctx context.Context) error {
	if err := d.cluster.Init(ctx, 5, 3); err != nil {
		return err
	}
	d.say("Initialised: five shares of the unseal key, any three of which open the cluster. It is sealed.")
	if err := d.unseal(ctx, d.cluster.Nodes, 0, 2, 4); err != nil {
		return err
	}
	for _, n := range d.cluster.Nodes {
		if err := n.Ready(ctx); err != nil {
			return err
		}
		c, err := d.cluster.Connect(ctx, n)
		if err != nil {
			return err
		}
		d.clients = append(d.clients, c)
	}
	d.say("Every node is open: each custodian gave a share once, encrypted for each node.")
	return nil
}

// unseal submits the shares of custodians to these nodes.
func (d *demo) unseal(ctx context.Context, nodes []*localcluster.Node, custodians ...int) error {
	for _, custodian := range custodians {
		st, err := d.cluster.Submit(ctx, d.cluster.Shares[custodian], nodes...)
		if err != nil {
			return err
		}
		progress := "the last that was needed"
		if st.GetSeal().GetSealed() {
			progress = fmt.Sprintf("%d of %d", st.GetSeal().GetProgress(), st.GetSeal().GetThreshold())
		}
		to := "every node"
		if len(nodes) == 1 {
			to = nodes[0].ID
		}
		d.say("Custodian %d gives %s a share: %s.", custodian+1, to, progress)
	}
	return nil
}

var demoText = []byte("a secret of the demo")

func (d *demo) encrypt(ctx context.Context, at int) ([]byte, error) {
	r, err := d.clients[at].KMS().Encrypt(ctx, &kmspb.EncryptRequest{KeyId: &d.key, Plaintext: demoText})
	return r.GetCiphertextBlob(), err
}

func (d *demo) decrypt(ctx context.Context, at int, blob []byte) error {
	r, err := d.clients[at].KMS().Decrypt(ctx, &kmspb.DecryptRequest{CiphertextBlob: blob})
	if err != nil {
		return err
	}
	if !bytes.Equal(r.GetPlaintext(), demoText) {
		return errors.New("decrypted to another text")
	}
	return nil
}

func (d *demo) use(ctx context.Context) error {
	description := "demo"
	r, err := d.clients[0].KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{Description: &description})
	if err != nil {
		return err
	}
	d.key = r.GetKeyMetadata().GetKeyId()
	d.say("node-1 created key %s.", r.GetKeyMetadata().GetArn())
	blob, err := d.encrypt(ctx, 1)
	if err != nil {
		return err
	}
	d.say("node-2 encrypted %d bytes into %d.", len(demoText), len(blob))
	if err := d.decrypt(ctx, 2, blob); err != nil {
		return err
	}
	d.say("node-3 decrypted them.")
	return nil
}

func (d *demo) disable(ctx context.Context) error {
	if _, err := d.clients[0].KMS().DisableKey(ctx, &kmspb.DisableKeyRequest{KeyId: &d.key}); err != nil {
		return err
	}
	// Immediately, on all nodes concurrently, several times.
	const tries = 20
	errs := make([]error, len(d.clients))
	var wg sync.WaitGroup
	for i := range d.clients {
		wg.Go(func() {
			for range tries {
				_, err := d.encrypt(ctx, i)
				if f, _ := client.FromError(err); f.Type != "DisabledException" {
					errs[i] = fmt.Errorf("%s did not refuse the disabled key: %v", d.cluster.Nodes[i].ID, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.say("node-1 disabled the key, and from that moment every node refused it: %d tries of %d.", tries*len(d.clients), tries*len(d.clients))
	if _, err := d.clients[2].KMS().EnableKey(ctx, &kmspb.EnableKeyRequest{KeyId: &d.key}); err != nil {
		return err
	}
	for i, n := range d.cluster.Nodes {
		if _, err := d.encrypt(ctx, i); err != nil {
			return fmt.Errorf("%s refused the key that was enabled again: %w", n.ID, err)
		}
	}
	d.say("node-3 enabled it again, and from that moment every node took it.")
	return nil
}

func (d *demo) kill(ctx context.Context) error {
	before, err := d.encrypt(ctx, 0)
	if err != nil {
		return err
	}
	leader, err := d.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	leader.Process.Kill()
	killed := time.Now()
	d.say("Killed %s, the leader, with SIGKILL.", leader.ID)
	for i, n := range d.cluster.Nodes {
		if n == leader {
			continue
		}
		err := localcluster.Poll(ctx, func() (bool, error) {
			// A missing answer is requested again; a wrong one is a failure.
			once, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			err := d.decrypt(once, i, before)
			if f, ok := client.FromError(err); ok && (f.Type == "ServiceUnavailable" || f.Type == "") {
				return false, nil
			}
			return err == nil, err
		})
		if err != nil {
			return fmt.Errorf("%s does not carry on: %w", n.ID, err)
		}
		d.say("%s answers, %.1f s after the crash.", n.ID, time.Since(killed).Seconds())
	}
	return nil
}

func (d *demo) restart(ctx context.Context) error {
	for i, n := range d.cluster.Nodes {
		if !n.Process.Ended() {
			continue
		}
		if err := n.Start(); err != nil {
			return err
		}
		if err := n.Alive(ctx); err != nil {
			return err
		}
		d.say("Started %s again. It is a member at once, and sealed until custodians come.", n.ID)
		if err := d.unseal(ctx, []*localcluster.Node{n}, 1, 3, 4); err != nil {
			return err
		}
		if err := n.Ready(ctx); err != nil {
			return err
		}
		blob, err := d.encrypt(ctx, (i+1)%len(d.clients))
		if err != nil {
			return err
		}
		if err := d.decrypt(ctx, i, blob); err != nil {
			return fmt.Errorf("%s: %w", n.ID, err)
		}
		d.say("%s decrypts again.", n.ID)
	}
	return nil
}

func (d *demo) verify(ctx context.Context) error {
	for i, n := range d.cluster.Nodes {
		st, err := d.clients[i].Operator().Status(ctx, &kmspb.StatusRequest{})
		if err != nil {
			return err
		}
		want := st.GetAudit().GetSize()
		var rep *verify.Report
		// Checkpoints are signed every second, and a node that has just started
		// has none yet.
		soon, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = localcluster.Poll(soon, func() (bool, error) {
			var err error
			rep, err = verify.Dir(node.AuditDir(n.Data), d.cluster.VerifierKey, verify.Options{})
			return err == nil && rep.OK() && rep.CheckpointSize >= want, err
		})
		cancel()
		if err != nil && rep != nil && !rep.OK() {
			err = fmt.Errorf("%s: %s", n.ID, rep.Problems[0])
		}
		if err != nil {
			return err
		}
		d.say("The audit log of %s is whole: %d records, %d of them under a signed checkpoint.", n.ID, rep.Size, rep.CheckpointSize)
	}
	return d.tamper()
}

// tamper shows that verification detects a change.
func (d *demo) tamper() error {
	dir := filepath.Join(d.cluster.Dir, "tampered")
	if err := os.CopyFS(dir, os.DirFS(node.AuditDir(d.cluster.Nodes[0].Data))); err != nil {
		return err
	}
	name := filepath.Join(dir, "segments", "00000000.seg")
	raw, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		return err
	}
	rep, err := verify.Dir(dir, d.cluster.VerifierKey, verify.Options{})
	if err != nil {
		return err
	}
	if rep.OK() {
		return errors.New("a flipped bit was not found")
	}
	d.say("One bit flipped in a copy of it is found: %s.", rep.Problems[0])
	return nil
}
