package node

import (
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/conclavekms/conclave/transport/client"
)

// pprofHandler serves the profiles of net/http/pprof. They reveal the names of functions and
// how often they run, and no keys: those are outside of the heap that profiles describe.
//
// The listener is on loopback, so only programs on this machine reach it. A browser on this
// machine is one of them, and a page from anywhere can make it send requests to any address.
// The page's own host name is then in the request, and so other names are refused.
func pprofHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(host, "80")
		}
		if !client.Loopback(host) {
			http.Error(w, "only for loopback addresses", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// pprofWrite bounds an answer: the longest profile takes 60 s, and has to be written after
// that.
const pprofWrite = 90 * time.Second
