package main

import (
	"context"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/conclavekms/conclave/transport/client"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// drillLimit is how long it may take from a backup to a cluster that serves.
const drillLimit = 5 * time.Minute

// TestBackupDrill loses a cluster and restores it, by the commands of the runbook. With
// CONCLAVE_SCALE it has that many keys.
func TestBackupDrill(t *testing.T) {
	book := openRunbook(t, "backup")
	keys, err := 200, error(nil)
	if v := os.Getenv("CONCLAVE_SCALE"); v != "" {
		if keys, err = strconv.Atoi(v); err != nil || keys < 1 || keys > 100_000 {
			t.Fatalf("CONCLAVE_SCALE=%s: want 1 to 100000", v)
		}
	}
	var began time.Time
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/drill",
		Deadline:            time.Now().Add(15 * time.Minute),
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"evalenv": cmdEvalEnv,
			"exits":   cmdExits,
			"ports":   cmdPorts,
			"waitfor": func(ts *testscript.TestScript, neg bool, args []string) { waitFor(ts, neg, args, drillLimit) },
			"fill":    func(ts *testscript.TestScript, _ bool, _ []string) { fillKeys(ts, keys) },
			"runbook": book.run,
			"clock": func(ts *testscript.TestScript, _ bool, args []string) {
				if args[0] == "start" {
					began = time.Now()
					return
				}
				took := time.Since(began).Round(time.Millisecond)
				ts.Logf("%d keys: from the backup to serving in %v", keys, took)
				t.Logf("%d keys: from the backup to serving in %v", keys, took)
				if took > drillLimit {
					ts.Fatalf("that is longer than %v", drillLimit)
				}
			},
		},
	})
}

// fillKeys creates keys, as the caller whom the script's environment names.
func fillKeys(ts *testscript.TestScript, keys int) {
	const workers = 64
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, client.Config{
		Address: ts.Getenv("CONCLAVE_ADDRESS"), CAFile: ts.MkAbs(ts.Getenv("CONCLAVE_CA")),
		AccessKeyID: ts.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: client.Secret(ts.Getenv("AWS_SECRET_ACCESS_KEY")),
	})
	ts.Check(err)
	defer c.Close()
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for next.Add(1) <= int64(keys) && failed.Load() == nil {
				if _, err := c.KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{}); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		ts.Fatalf("creating keys: %v", *err)
	}
}
