// Package grpcapi is Conclave's native face: the operations of KMS, IAM and STS under
// AWS's names, sessions, the audit log, and the calls of operators.
//
// The reader may rely on this. Each handler authenticates its caller, unless the input of
// the operation is what proves who calls, and is bound to its operation when the server is
// created; nothing is decided by the path that a client sent. Every handler runs within answer, which gives the
// request an id, bounds its time, recovers from panics and turns errors into
// statuses that reveal nothing internal. No request is carried out in part: one
// with a member that this version does not know is refused.
package grpcapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/kmspb"
)

const (
	// maxMessage is the size of the longest request that is read. The largest
	// sensible one, a GenerateRandom with an attestation document, has half of
	// that.
	maxMessage = 512 << 10
	// maxHeaders bounds a request's metadata.
	maxHeaders = 16 << 10
	maxStreams = 250
	// streamWindow is how much a stream may send before its handler reads: the
	// default of HTTP/2. Windows that grow dynamically would cost a ping with
	// nearly every call, and would let a client use up to 16 MiB of buffers in each
	// stream.
	streamWindow = 64 << 10
	// streamWorkers is the number of goroutines that handle calls. While all are
	// busy, further calls get goroutines of their own.
	streamWorkers = 64

	handshakeTimeout = 5 * time.Second
)

// Engine is what the face needs from the engine; *keyengine.Engine implements
// it.
type Engine interface {
	Do(ctx context.Context, c *iam.Caller, op *keyengine.Operation, in any) (any, error)
	// KnowsToken reports whether a session token is one of the cluster's and has not
	// expired, without waiting for anything.
	KnowsToken(token string) bool
	AuthenticateSession(ctx context.Context, token string) (iam.Identity, error)
	AuthenticateCertificate(ctx context.Context, cert iam.Certificate) (iam.Identity, error)
	OpenSession(ctx context.Context, p iam.SessionProof) (token string, expires time.Time, err error)
	ReadAudit(ctx context.Context, c *iam.Caller, from uint64) (*keyengine.AuditReader, error)
	// RecordReceipt finds the record by the id of its request if index is nil.
	RecordReceipt(ctx context.Context, c *iam.Caller, index *uint64, id iam.RequestID) ([]byte, error)
	SearchAudit(ctx context.Context, c *iam.Caller, q keyengine.AuditQuery, page string, limit int) (*keyengine.AuditPage, error)
	AuditSinks(ctx context.Context, c *iam.Caller) ([]keyengine.AuditSink, error)
	ForgetAuditSink(ctx context.Context, c *iam.Caller, name string) error
	Credentials(ctx context.Context, c *iam.Caller) ([]keyengine.CredentialInfo, error)
	// CreateAccessKey returns the secret encrypted to answerKey.
	CreateAccessKey(ctx context.Context, c *iam.Caller, answerKey []byte) (id string, sealed []byte, err error)
	CreateAccount(ctx context.Context, c *iam.Caller, number, name string, answerKey []byte) (id string, sealed []byte, err error)
	Accounts(ctx context.Context, c *iam.Caller) ([]keyengine.AccountInfo, error)
	Usage(ctx context.Context, c *iam.Caller, q keyengine.UsageQuery) (*keyengine.UsagePage, error)
	UsedKeys(ctx context.Context, c *iam.Caller, q keyengine.UsageQuery) (*keyengine.UsagePage, error)
	CreateCertificateMapping(ctx context.Context, c *iam.Caller, pattern, principal string) (arn string, err error)
	CertificateMappings(ctx context.Context, c *iam.Caller) ([]keyengine.CertificateMapping, error)
	DeleteCertificateMapping(ctx context.Context, c *iam.Caller, pattern string) error
	DeleteCredential(ctx context.Context, c *iam.Caller, id string) error
	RevokeSessions(ctx context.Context, c *iam.Caller) error
}

// Config configures a server.
type Config struct {
	Engine     Engine
	Operations []*keyengine.Operation
	Ceremony   Ceremony

	// TLS has the server's certificate and, in ClientCAs, the CAs of client
	// certificates. Without ClientCAs, no client certificate is accepted. The
	// server supports only TLS 1.3.
	TLS *tls.Config
	// Plaintext serves without TLS, which must then be nil. It is for
	// development on loopback.
	Plaintext bool
	// LoopbackOperators lets anybody who connects from loopback act as an
	// operator. It requires Plaintext.
	LoopbackOperators bool

	// Serving reports whether this node answers requests on keys, because it is
	// unsealed and knows a leader. The health service reports it.
	Serving func() bool

	// Timeout bounds a call; 0 for 30 s. MaxCalls bounds how many calls of clients
	// are worked on at once over all connections; 0 for 4096. MaxStreams bounds
	// how many health watches, and how many readers of the audit log, there are at
	// once; 0 for 256 each. WatchTime bounds the duration of a watch; 0 for an
	// hour.
	Timeout    time.Duration
	MaxCalls   int
	MaxStreams int
	WatchTime  time.Duration
	// Proxies are those that are trusted to say, in the metadata x-forwarded-for, where
	// calls come from.
	Proxies transport.Proxies
	// RefusalPeriod is how often calls that could not be authenticated are summed
	// up in the log; 10 s if 0.
	RefusalPeriod time.Duration

	// Tracer may be nil.
	Tracer  *trace.Tracer
	Clock   keyengine.Clock
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Server is a gRPC server for one node. Serve may be called for more than one
// listener.
type Server struct {
	cfg     Config
	api     *transport.API
	grpc    *grpc.Server
	gates   gates
	audit   *auditService
	answers answers

	// life ends when the server begins to stop, and ends long-lived streams.
	life    context.Context
	endLife context.CancelFunc
}

// New returns a server. It fails unless the API has all operations that the engine has,
// with exactly the same members.
func New(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.MaxCalls == 0 {
		cfg.MaxCalls = 4096
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 256
	}
	if cfg.WatchTime == 0 {
		cfg.WatchTime = time.Hour
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg}
	var err error
	s.api, err = transport.NewAPI(transport.APIConfig{
		Name: "grpc", Timeout: cfg.Timeout, MaxCalls: int64(cfg.MaxCalls), MaxStrangers: maxStrangers, MaxStrangersFrom: maxStrangersFrom,
		Busy: errFull, Proxies: cfg.Proxies, RefusalPeriod: cfg.RefusalPeriod, Tracer: cfg.Tracer, Logger: cfg.Logger, Metrics: cfg.Metrics,
	})
	if err != nil {
		return nil, err
	}
	s.gates.init(cfg, s.api)
	s.answers = make(answers)
	var services []*grpc.ServiceDesc
	for _, of := range awsServices {
		desc, err := s.service(of, cfg.Operations)
		if err != nil {
			return nil, err
		}
		services = append(services, desc)
	}
	s.life, s.endLife = context.WithCancel(context.Background())

	s.audit = &auditService{server: s, open: s.openAudit, every: reauthInterval}

	s.grpc = grpc.NewServer(s.options()...)
	for _, desc := range services {
		s.register(desc, s)
	}
	s.register(&kmspb.Operator_ServiceDesc, &operatorService{server: s})
	s.register(&kmspb.Cluster_ServiceDesc, &clusterService{server: s})
	s.register(&kmspb.Joining_ServiceDesc, &joiningService{server: s})
	s.register(&kmspb.Session_ServiceDesc, &sessionService{server: s})
	s.register(&kmspb.Credentials_ServiceDesc, &credentialsService{server: s})
	s.register(&kmspb.Accounts_ServiceDesc, &accountsService{server: s})
	s.register(&kmspb.Usage_ServiceDesc, &usageService{server: s})
	s.register(&kmspb.CertificateMappings_ServiceDesc, &certificatesService{server: s})
	s.register(&kmspb.Audit_ServiceDesc, s.audit)
	s.register(&grpc_health_v1.Health_ServiceDesc, &healthService{serving: cfg.Serving, watches: s.gates.watches, life: cfg.WatchTime})
	reflection.Register(s.grpc)
	return s, nil
}

func (cfg *Config) validate() error {
	var faults []error
	if cfg.Engine == nil || cfg.Operations == nil || cfg.Ceremony == nil || cfg.Serving == nil || cfg.Clock == nil {
		faults = append(faults, errors.New("engine, operations, ceremony, serving and clock are required"))
	}
	if (cfg.TLS == nil) != cfg.Plaintext {
		faults = append(faults, errors.New("either TLS or Plaintext is required"))
	}
	if cfg.LoopbackOperators && !cfg.Plaintext {
		faults = append(faults, errors.New("LoopbackOperators requires Plaintext: with TLS, operators have certificates"))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("gRPC server: %w", err)
	}
	return nil
}

func (s *Server) options() []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(maxMessage),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 20 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 15 * time.Minute,
			Time:              2 * time.Minute,
			Timeout:           20 * time.Second,
		}),
		// A goroutine for each call would grow its stack anew for each call.
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ForceServerCodecV2(newCodec(s.answers)),
		grpc.InTapHandle(s.gates.enter),
		grpc.StreamInterceptor(s.answerStream),
		grpc.UnknownServiceHandler(unknownMethod),
	}
	creds := insecure.NewCredentials()
	if s.cfg.TLS != nil {
		creds = credentials.NewTLS(hardened(s.cfg.TLS))
	}
	return append(opts, grpc.Creds(handshakes{creds, s}))
}

// hardened returns a copy of cfg with the settings that must not be weakened.
func hardened(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.ClientAuth = tls.VerifyClientCertIfGiven
	if cfg.ClientCAs == nil {
		cfg.ClientCAs = x509.NewCertPool() // not the system's
	}
	// A resumed connection would use a certificate that was verified earlier.
	cfg.SessionTicketsDisabled = true
	if !slices.Contains(cfg.NextProtos, "h2") {
		cfg.NextProtos = append(slices.Clone(cfg.NextProtos), "h2")
	}
	if get := cfg.GetConfigForClient; get != nil {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := get(hello)
			if c == nil || err != nil {
				return nil, err
			}
			c = c.Clone()
			c.GetConfigForClient = nil
			return hardened(c), nil
		}
	}
	return cfg
}

// Serve answers on l until the server stops, and then returns nil.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(l)
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Stop accepts no new calls and waits for those in flight. If ctx ends first, it
// cancels them and closes the connections. No handler is running when it
// returns.
func (s *Server) Stop(ctx context.Context) {
	s.endLife()
	// GracefulStop waits for the handlers even if it is cut short.
	cut := context.AfterFunc(ctx, s.grpc.Stop)
	defer cut()
	s.grpc.GracefulStop()
}
