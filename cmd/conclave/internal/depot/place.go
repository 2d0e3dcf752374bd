package depot

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// place is a parsed s3:// place.
type place struct {
	bucket, prefix string
	// endpoint is the URL of a store other than AWS's; "" for what the environment says.
	endpoint, region, profile string
	pathStyle                 bool
	// lockMode and lockFor keep objects from being removed or changed, by the store's object
	// lock; "" and 0 for none.
	lockMode string
	lockFor  time.Duration
}

// String returns the place as it was written.
func (p place) String() string { return scheme + p.bucket + "/" + p.prefix }

// bucketForm is the form of buckets' names: anything else could become a host or a path.
var bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// parseBucket parses s3://BUCKET/KEY?OPTION=VALUE&….
func parseBucket(s string) (place, error) {
	u, err := url.Parse(s)
	if err != nil {
		return place{}, err
	}
	p := place{bucket: u.Host, prefix: strings.TrimPrefix(u.Path, "/")}
	switch {
	case !bucketForm.MatchString(p.bucket) || u.User != nil || u.Fragment != "":
		return place{}, fmt.Errorf("%q is not s3://BUCKET/KEY", s)
	case len(p.prefix) > 900 || strings.Contains("/"+p.prefix+"/", "/../") || strings.Contains("/"+p.prefix, "//"):
		return place{}, fmt.Errorf("%q: the key is too long, or has a part that is empty or means the one above", s)
	}
	options, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return place{}, fmt.Errorf("%q: %w", s, err)
	}
	styled := false
	for name, values := range options {
		v := values[0]
		switch {
		case len(values) > 1:
			err = errors.New("given twice")
		case name == "endpoint":
			p.endpoint, err = v, checkEndpoint(v)
		case name == "region":
			p.region = v
		case name == "profile":
			p.profile = v
		case name == "path-style":
			p.pathStyle, err = strconv.ParseBool(v)
			styled = true
		case name == "lock-mode":
			if p.lockMode = v; v != "GOVERNANCE" && v != "COMPLIANCE" {
				err = errors.New("it is GOVERNANCE or COMPLIANCE")
			}
		case name == "lock-for":
			if p.lockFor, err = time.ParseDuration(v); err == nil && p.lockFor <= 0 {
				err = errors.New("it is not positive")
			}
		default:
			err = errors.New("there is no such option; there are endpoint, region, profile, path-style, lock-mode and lock-for")
		}
		if err != nil {
			return place{}, fmt.Errorf("%s: %s: %w", p, name, err)
		}
	}
	if (p.lockMode == "") != (p.lockFor == 0) {
		return place{}, fmt.Errorf("%s: lock-mode and lock-for need each other", p)
	}
	if !styled {
		p.pathStyle = p.endpoint != "" // most stores other than AWS's have one host for all buckets
	}
	return p, nil
}

func checkEndpoint(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return errors.New("it is not https://HOST or http://HOST")
	}
	return nil
}
