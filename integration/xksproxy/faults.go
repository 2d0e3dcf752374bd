package xksproxy

import (
	"net/http"
	"strings"
	"time"
)

// Fault is something that a proxy does wrong. It reports whether it has answered;
// answer is what the proxy would have said.
type Fault func(w http.ResponseWriter, r *http.Request, answer func() (any, *failure)) bool

// Names are the errors that a proxy may answer, with their HTTP status.
var Names = map[string]int{
	"ValidationException": 400, "InvalidStateException": 400, "InvalidCiphertextException": 400, "InvalidKeyUsageException": 400,
	"AuthenticationFailedException": 401, "AccessDeniedException": 403, "KeyNotFoundException": 404, "InvalidUriPathException": 404,
	"ThrottlingException": 429, "InternalException": 500, "UnsupportedOperationException": 501, "DependencyTimeoutException": 503,
}

// Named answers with an error of the specification.
func Named(name string) Fault { return Status(Names[name], name) }

// Status answers with an error and any HTTP status.
func Status(status int, name string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ func() (any, *failure)) bool {
		failure{status, name}.answer(w)
		return true
	}
}

// Says answers with a success of that body.
func Says(body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ func() (any, *failure)) bool {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(body))
		return true
	}
}

// Oversized answers with more than any answer can be.
func Oversized() Fault { return Says(`{"x":"` + strings.Repeat("x", 1<<20) + `"}`) }

// Delay answers late, or never if the caller goes first.
func Delay(d time.Duration) Fault {
	return func(_ http.ResponseWriter, r *http.Request, _ func() (any, *failure)) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return false
		case <-r.Context().Done():
			return true
		}
	}
}

// Reset cuts the connection.
func Reset() Fault {
	return func(http.ResponseWriter, *http.Request, func() (any, *failure)) bool { panic(http.ErrAbortHandler) }
}

// Redirect points to another address.
func Redirect(to string) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ func() (any, *failure)) bool {
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
		return true
	}
}

// Wrong answers with members of the right answer replaced.
func Wrong(members map[string]any) Fault {
	return func(w http.ResponseWriter, _ *http.Request, answer func() (any, *failure)) bool {
		out, failed := answer()
		if m, ok := out.(map[string]any); failed == nil && ok {
			for k, v := range members {
				if v == nil {
					delete(m, k)
				} else {
					m[k] = v
				}
			}
			writeJSON(w, m)
			return true
		}
		return false
	}
}

// Hold keeps callers waiting until release is closed, and then answers.
func Hold(arrived chan<- struct{}, release <-chan struct{}) Fault {
	return func(_ http.ResponseWriter, r *http.Request, _ func() (any, *failure)) bool {
		arrived <- struct{}{}
		select {
		case <-release:
			return false
		case <-r.Context().Done():
			return true
		}
	}
}
