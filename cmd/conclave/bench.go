package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/conclavekms/conclave/cmd/conclave/internal/bench"
	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

func benchCommand(a *cli.App) *cobra.Command {
	b := bench.Plan{Note: a.Note}
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "bench",
		Example: `  conclave bench --duration 10s --concurrency 64`,
		Short:   "Measure Encrypt on three nodes, compared with bare echo servers",
		Long: `Bench starts three nodes on this machine, with TLS and fsync, and measures Encrypt
of 1 KiB over gRPC and over HTTPS with signed requests, spread over the nodes. In
the same run it measures a bare mTLS gRPC echo and a bare HTTPS echo of the same
bytes, alternating with Encrypt, so that the ratio shows the cost of Conclave on
this machine. Each figure is the median of three rounds, or of more if a round would
take longer than three seconds.

With --user, it also measures Encrypt of a user with two managed policies, between two
halves of that of the account's root user or around both, in turn, so that the ratios
show what it costs to evaluate the policies. Each ratio has its standard error: it
takes --duration 1m or more to tell a difference of a few percent.

With --check, the exit code is 1 if, at concurrency 64, Encrypt has less than 0.19
of an echo's throughput or a Raft entry has fewer than 16 records on average, or if
the median latency at concurrency 1 is more than 3 ms.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.Validate(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			points, err := b.Measure(ctx)
			if err != nil {
				return err
			}
			if err := printPoints(a, points, asJSON); err != nil {
				return err
			}
			if b.Check {
				return bench.Verdict(points)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.DurationVar(&b.Duration, "duration", 5*time.Second, "time for each figure, for all rounds together")
	f.IntSliceVar(&b.Concurrency, "concurrency", []int{1, 16, 64, 256}, "numbers of concurrent requests")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&b.User, "user", false, "measure a user with two managed policies too")
	f.BoolVar(&b.Check, "check", false, "exit with 1 if results are too low")
	return cmd
}

func printPoints(a *cli.App, points []bench.Point, asJSON bool) error {
	a.Output = "table"
	if asJSON {
		a.Output = "json"
	}
	return a.Print(points, func(w io.Writer) {
		cli.Line(w, "ENCRYPT 1 KiB", "CLIENTS", "OPS/S", "P50 MS", "P99 MS", "CPU S/1000", "RECORDS/ENTRY", "ECHO OPS/S", "ECHO P50", "ECHO P99", "ECHO CPU", "RATIO")
		for _, p := range points {
			cli.Line(w, p.Face, p.Concurrency, fmt.Sprintf("%.0f", p.Rate), fmt.Sprintf("%.2f", p.P50), fmt.Sprintf("%.2f", p.P99),
				fmt.Sprintf("%.3f", p.CPU), fmt.Sprintf("%.1f", p.RecordsPerEntry),
				fmt.Sprintf("%.0f", p.EchoRate), fmt.Sprintf("%.2f", p.EchoP50), fmt.Sprintf("%.2f", p.EchoP99), fmt.Sprintf("%.3f", p.EchoCPU),
				fmt.Sprintf("%.2f", p.Ratio))
		}
		if len(points) == 0 || points[0].User == nil {
			return
		}
		fmt.Fprintln(w)
		cli.Line(w, "AS A USER", "CLIENTS", "OPS/S", "P50 MS", "P99 MS", "CPU S/1000", "OPS OF ROOT'S", "CPU OF ROOT'S")
		for _, p := range points {
			u := p.User
			cli.Line(w, p.Face, p.Concurrency, fmt.Sprintf("%.0f", u.Rate), fmt.Sprintf("%.2f", u.P50), fmt.Sprintf("%.2f", u.P99),
				fmt.Sprintf("%.3f", u.CPU), fmt.Sprintf("%.3f ± %.3f", u.RateRatio, u.RateError), fmt.Sprintf("%.3f ± %.3f", u.CPURatio, u.CPUError))
		}
	})
}

// benchEchoCommand serves what Conclave is compared with: the least that a gRPC
// and an HTTPS server can do with the same bytes.
func benchEchoCommand() *cobra.Command {
	var grpcAddr, httpAddr, dir string
	cmd := &cobra.Command{
		Use:    "bench-echo",
		Short:  "Serve bare echoes for the benchmark",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return bench.ServeEchoes(ctx, grpcAddr, httpAddr, dir)
		},
	}
	f := cmd.Flags()
	f.StringVar(&grpcAddr, "grpc", "", "address of the gRPC echo")
	f.StringVar(&httpAddr, "http", "", "address of the HTTPS echo")
	f.StringVar(&dir, "dir", "", "directory with certificates")
	return cmd
}
