package transport

import (
	"net/http"
	"strconv"
)

// Health is what a node knows about itself.
type Health struct {
	Initialised bool
	Sealed      bool
	// Leader is set on the node that leads the cluster.
	Leader bool
	// InContact is set while the node hears from a leader, or is the leader.
	InContact bool
	// DiskFull is set while the node has no room to store anything, and Disk says how
	// much room it has; "" if that is unknown.
	DiskFull bool
	Disk     string
}

// Ready reports whether the node answers requests now.
func (h Health) Ready() bool { return h.Initialised && !h.Sealed && h.InContact && !h.DiskFull }

// healthState is one of the states that /healthz distinguishes.
type healthState struct {
	name string
	code int
	// override is the query parameter that replaces the code; "" for none.
	override string
}

var (
	stateUninitialised = healthState{"uninitialised", http.StatusNotImplemented, "uninitcode"}
	stateSealed        = healthState{"sealed", http.StatusServiceUnavailable, "sealedcode"}
	stateNoLeader      = healthState{"no leader", http.StatusServiceUnavailable, ""}
	stateDiskFull      = healthState{"disk full", http.StatusServiceUnavailable, ""}
	stateActive        = healthState{"active", http.StatusOK, "activecode"}
	stateStandby       = healthState{"standby", http.StatusTooManyRequests, "standbycode"}
)

// State returns the name of the state that /healthz reports.
func (h Health) State() string { return h.state().name }

func (h Health) state() healthState {
	switch {
	case !h.Initialised:
		return stateUninitialised
	case h.Sealed:
		return stateSealed
	case !h.InContact && !h.Leader:
		return stateNoLeader
	case h.DiskFull:
		return stateDiskFull
	case h.Leader:
		return stateActive
	default:
		return stateStandby
	}
}

// HealthHandler answers GET and HEAD on these paths and passes everything else
// to next. They require no authentication, and reveal only a state.
//
//   - /livez is 200 while the process runs, whatever the state of the cluster,
//     since a restart would not help.
//   - /readyz is 200 if the node is unsealed, in contact with a leader and has
//     room on its disk, and 503 otherwise. Use it to route requests, since every
//     unsealed node answers them.
//   - /healthz has Vault's codes: 200 for the leader, 429 for an unsealed follower, 501 if the
//     cluster is not initialised, and 503 if the node is sealed, without a leader, or has a full
//     disk. activecode, standbycode, uninitcode and sealedcode in the query replace the codes of
//     the first four states, so that a load balancer that uses all unsealed nodes asks for
//     /healthz?standbycode=200.
//
// If the room on the disk is known, /readyz and /healthz report it in "disk": ample,
// low, scarce (new keys are refused), yield (another node should lead) or full.
func HealthHandler(health func() Health, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var name, disk string
		var code int
		switch r.URL.Path {
		case "/livez":
			name, code = "alive", http.StatusOK
		case "/readyz":
			h := health()
			disk = h.Disk
			name, code = h.state().name, http.StatusServiceUnavailable
			if h.Ready() {
				name, code = "ready", http.StatusOK
			}
		case "/healthz":
			h := health()
			disk = h.Disk
			s := h.state()
			name, code = s.name, s.code
			if s.override == "" {
				break
			}
			if v := r.URL.Query().Get(s.override); v != "" {
				n, err := strconv.Atoi(v)
				if err != nil || n < 200 || n > 599 {
					name, code = "bad "+s.override, http.StatusBadRequest
					break
				}
				code = n
			}
		default:
			next.ServeHTTP(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		body := `{"state":"` + name + `"`
		if disk != "" {
			body += `,"disk":"` + disk + `"`
		}
		body += "}\n"
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(code)
		if r.Method == http.MethodGet && code != http.StatusNoContent && code != http.StatusNotModified {
			w.Write([]byte(body)) // an error means that the client has gone
		}
	})
}
