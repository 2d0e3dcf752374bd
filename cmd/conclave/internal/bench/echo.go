package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/conclavekms/conclave/cmd/conclave/internal/certs"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// echoMethod answers with its request.
const echoMethod = "/conclave.bench.Echo/Echo"

// ServeEchoes serves a gRPC echo and an HTTPS echo with the certificate of "echo" in dir,
// until ctx ends.
func ServeEchoes(ctx context.Context, grpcAddr, httpAddr, dir string) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "echo.pem"), filepath.Join(dir, "echo-key.pem"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(dir, certs.CAFile))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("the CA file has no certificate")
	}
	gl, err := net.Listen("tcp", grpcAddr)
	if err != nil {
		return err
	}
	hl, err := net.Listen("tcp", httpAddr)
	if err != nil {
		return errors.Join(err, gl.Close())
	}
	gs := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	gs.RegisterService(&grpc.ServiceDesc{
		ServiceName: "conclave.bench.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(kmspb.EncryptRequest)
			return in, decode(in)
		}}},
	}, nil)
	hs := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
			_, _ = w.Write(body) // an error means that the client has gone
		}),
	}
	failed := make(chan error, 2)
	go func() { failed <- gs.Serve(gl) }()
	go func() {
		failed <- hs.Serve(tls.NewListener(hl, &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"},
		}))
	}()
	defer gs.Stop()
	defer hs.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("serving echoes: %w", err)
	}
}
