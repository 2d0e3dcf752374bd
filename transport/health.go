package transport

import (
	"net/http"
	"strconv"
)

// Health is what a node knows of itself.
type Health struct {
	Initialised bool
	Sealed      bool
	// Leader is set on the node that leads the cluster.
	Leader bool
	// InContact is set while the node hears from a leader, itself included.
	InContact bool
	// DiskFull is set while the node has no room to store anything, and Disk says how
	// much room it has; "" for not known.
	DiskFull bool
	Disk     string
}

// Ready reports whether the node answers requests now.
func (h Health) Ready() bool { return h.Initialised && !h.Sealed && h.InContact && !h.DiskFull }

// healthState is one line of what /healthz distinguishes.
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

// HealthHandler answers GET and HEAD on these paths and gives everything else to
// next. They ask for no authentication, and say no more than a state.
//
//   - /livez is 200 while the process runs, whatever the cluster does: a restart
//     mends nothing that it could report.
//   - /readyz is 200 when the node is unsealed and in contact with a leader, else
//     503: the one to route requests by, since every unsealed node answers them.
//   - /healthz has Vault's codes: 200 the leader, 429 an unsealed follower, 501
//     not initialised, 503 sealed, without a leader, or with a full disk. activecode, standbycode,
//     uninitcode and sealedcode in the query replace the first four, so that a
//     balancer which wants all unsealed nodes asks /healthz?standbycode=200.
//
// Where the room on the disk is known, /readyz and /healthz say it in "disk": ample,
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
			w.Write([]byte(body)) // a peer that has gone misses nothing
		}
	})
}
