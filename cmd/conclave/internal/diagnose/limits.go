package diagnose

import (
	"context"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/admission"
)

func lockedMemory(_ context.Context, s *subject, r *report) {
	const check = "locked memory"
	err := keyengine.CheckLockedMemory()
	switch {
	case err == nil:
		r.ok(check, "this user may lock the memory that keys are kept in")
	case s.cfg.AllowUnlockedMemory:
		r.add(check, Warning, "raise the limit (systemd: LimitMEMLOCK=8M, containers: ulimits memlock, shells: ulimit -l), or turn swap off", "keys could be swapped out, which --allow-unlocked-memory permits: %v", err)
	default:
		r.add(check, Problem, "raise the limit (systemd: LimitMEMLOCK=8M, containers: ulimits memlock, shells: ulimit -l)", "%v", err)
	}
}

// fewClients is a number of clients' connections that one busy program may open.
const fewClients = 512

func openFiles(_ context.Context, _ *subject, r *report) {
	const check = "open files"
	b, err := admission.New(admission.Config{})
	if err != nil {
		r.add(check, Problem, "raise the limit (systemd: LimitNOFILE=65536, containers: ulimits nofile, shells: ulimit -Hn)", "%v", err)
		return
	}
	clients := b.Limit(admission.Client)
	if clients < fewClients {
		r.add(check, Warning, "raise the limit (systemd: LimitNOFILE=65536, containers: ulimits nofile, shells: ulimit -Hn)", "there is room for %d connections of clients at once", clients)
		return
	}
	r.ok(check, "there is room for %d connections of clients at once", clients)
}
