package awsapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestCORS(t *testing.T) {
	const page = "https://app.example.com"
	preflight := func(origin string) *http.Request {
		r := httptest.NewRequest("OPTIONS", "/", nil)
		r.Header.Set("Origin", origin)
		r.Header.Set("Access-Control-Request-Method", "POST")
		r.Header.Set("Access-Control-Request-Headers", "authorization,content-type,x-amz-date,x-amz-target")
		return r
	}
	allows := func(w *httptest.ResponseRecorder) string { return w.Header().Get("Access-Control-Allow-Origin") }
	off := newFixture(t, nil)
	w := httptest.NewRecorder()
	off.ServeHTTP(w, preflight(page))
	if w.Code != 405 || allows(w) != "" || w.Header().Get("Vary") != "" {
		t.Errorf("without origins: %d %v", w.Code, w.Header())
	}

	f := newFixture(t, func(c *Config) { c.Origins = []string{page, "http://localhost:3000"} })
	w = httptest.NewRecorder()
	f.ServeHTTP(w, preflight(page))
	if w.Code != 204 || allows(w) != page || w.Body.Len() != 0 || w.Header().Get("Access-Control-Allow-Methods") != "POST" || w.Header().Get("Vary") != "Origin" {
		t.Errorf("preflight: %d %v", w.Code, w.Header())
	}
	// The page may send every header that signers sign.
	for _, name := range []string{"authorization", "content-type", "x-amz-date", "x-amz-target", "x-amz-content-sha256", "x-amz-security-token",
		"x-amz-user-agent", "amz-sdk-invocation-id", "amz-sdk-request"} {
		if !strings.Contains(w.Header().Get("Access-Control-Allow-Headers"), name) {
			t.Errorf("%s may not be sent", name)
		}
	}
	if f.engine.proofs.Load() != 0 || f.engine.dos.Load() != 0 {
		t.Error("the engine was asked about a preflight")
	}
	for _, origin := range []string{"https://evil.example.com", "https://app.example.com.evil.org", "https://APP.example.com", "http://app.example.com",
		"https://app.example.com:8443", "null", "*", ""} {
		w = httptest.NewRecorder()
		f.ServeHTTP(w, preflight(origin))
		if w.Code != 405 || allows(w) != "" {
			t.Errorf("%q: %d %v", origin, w.Code, w.Header())
		}
	}
	twice := preflight(page)
	twice.Header.Add("Origin", "https://evil.example.com")
	w = httptest.NewRecorder()
	if f.ServeHTTP(w, twice); allows(w) != "" {
		t.Errorf("two origins: %v", w.Header())
	}

	// Answers, including errors, may be read by these pages and by no others.
	// Credentials that a browser adds by itself are never requested.
	for _, origin := range []string{page, "https://evil.example.com"} {
		for _, signed := range []bool{true, false} {
			r := newRequest("EnableKey", []byte(`{}`))
			if signed {
				sign(t, r, []byte(`{}`), testTime)
			}
			r.Header.Set("Origin", origin)
			w = httptest.NewRecorder()
			f.ServeHTTP(w, r)
			if signed != (w.Code == 200) {
				t.Errorf("%s: %d %s", origin, w.Code, w.Body)
			}
			if (allows(w) == origin) != (origin == page) || (w.Header().Get("Access-Control-Expose-Headers") != "") != (origin == page) ||
				w.Header().Get("Access-Control-Allow-Credentials") != "" || w.Header().Get("Vary") != "Origin" {
				t.Errorf("%s: %v", origin, w.Header())
			}
		}
	}
}

func TestCheckOrigin(t *testing.T) {
	for origin, good := range map[string]bool{
		"https://app.example.com": true, "https://app.example.com:8443": true, "http://localhost:3000": true, "http://127.0.0.1:5173": true,
		"http://[::1]:3000": true, "http://app.localhost": true, "https://10.0.0.1": true,
		"*": false, "https://*": false, "https://*.example.com": false, "null": false, "": false, "app.example.com": false,
		"https://app.example.com/": false, "https://app.example.com/x": false, "https://App.example.com": false, "https://app.example.com?x": false,
		"https://user@app.example.com": false, "http://app.example.com": false, "https://app.example.com:443": false, "http://localhost:80": false,
		"ftp://app.example.com": false, "https://": false, "https://a b": false, "https://:8443": false, "chrome-extension://abc": false,
	} {
		if err := CheckOrigin(origin); (err == nil) != good {
			t.Errorf("%q: %v", origin, err)
		}
	}
	if _, err := New(Config{Engine: &fakeEngine{}, Origins: []string{"*"}}); err == nil {
		t.Error("a face for all origins was made")
	}
}
