package kmsapi

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Pattern is a regular expression of the service model. Frequent ones are matched by
// equivalent code.
type Pattern struct {
	text  string
	match func(string) bool
}

// Match reports whether the whole of s matches.
func (p *Pattern) Match(s string) bool { return p.match(s) }

// String returns the expression as AWS's messages have it.
func (p *Pattern) String() string { return p.text }

// PatternOf returns the pattern with the name that tags use. It panics if there is none.
func PatternOf(name string) *Pattern {
	p := patterns[name]
	if p == nil {
		panic("kmsapi: no pattern " + name)
	}
	return p
}

// patterns has the patterns of the service model, by the names that tags use.
var patterns = map[string]*Pattern{
	"alias":      {`^[a-zA-Z0-9:/_-]+$`, allOf(wordByte, ":/-")},
	"ascii":      {`^\p{ASCII}+$`, allOf(func(c byte) bool { return c < utf8.RuneSelf }, "")}, // not in the model, but in AWS's answers
	"policyName": {`[\w]+`, allOf(wordByte, "")},
	"policy": {`[\u0009\u000A\u000D\u0020-\u00FF]+`, func(s string) bool {
		for _, r := range s {
			if r > 0xff || r < 0x20 && r != '\t' && r != '\n' && r != '\r' {
				return false
			}
		}
		return s != ""
	}},
	"xksKeyId": {`^[a-zA-Z0-9-_.]+$`, allOf(wordByte, "-.")},
	"marker": {`[\u0020-\u00FF]*`, func(s string) bool {
		for _, r := range s {
			if r > 0xff || r < 0x20 {
				return false
			}
		}
		return true
	}},
	"principal":           {`^[\w+=,.@:/-]+$`, allOf(wordByte, "+=,.@:/-")},
	"servicePrincipal":    expression(`^([A-Za-z0-9\-]+)\.([A-Za-z0-9\-]+)(\.[A-Za-z0-9\-]+)+$`),
	"sourceArn":           expression(`^arn:aws[a-z0-9-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$`),
	"grantName":           {`^[a-zA-Z0-9:/_-]+$`, allOf(wordByte, ":/-")},
	"materialId":          {`^[a-f0-9]+$`, allOf(hexByte, "")},
	"materialDescription": {`^[a-zA-Z0-9:/_\s.-]+$`, allOf(wordByte, ":/.- \t\n\r\f\v")},
	"account":             expression(`[0-9]{12}`),
	"region":              expression(`^([a-z]+-){2,3}\d+$`),
	"hsmCluster":          expression(`cluster-[2-7a-zA-Z]{11,16}`),
	"xksEndpoint":         {`^https://[a-zA-Z0-9.-]+$`, xksEndpoint},
	"xksPath":             expression(`^(/[a-zA-Z0-9\/_-]+/kms/xks/v\d{1,2})$|^(/kms/xks/v\d{1,2})$`),
	"xksAccessKeyId":      expression(`^[A-Z2-7]+$`),
	"xksSecret":           expression(`^[a-zA-Z0-9\/+=]+$`),
	"vpcService":          expression(`^(com|eu)\.amazonaws\.vpce\.([a-z]+-){2,3}\d+\.vpce-svc-[0-9a-z]+$`),

	// Those of IAM and STS.
	"entityName":      {`[\w+=,.@-]+`, allOf(wordByte, "+=,.@-")},
	"id":              {`[\w]+`, allOf(wordByte, "")},
	"iamMarker":       {`[\u0020-\u00FF]+`, runes(func(r rune) bool { return 0x20 <= r && r <= 0xff }, false)},
	"path":            {`(\u002F)|(\u002F[\u0021-\u007E]+\u002F)`, iamPath},
	"pathPrefix":      {`\u002F[\u0021-\u007F]*`, func(s string) bool { return strings.HasPrefix(s, "/") && allOf(within(0x21, 0x7f), "")(s) }},
	"policyPath":      expression(`((/[A-Za-z0-9\.,\+@=_-]+)*)/`),
	"policyVersion":   expression(`v[1-9][0-9]*(\.[A-Za-z0-9-]*)?`),
	"accountAlias":    {`^[a-z0-9]([a-z0-9]|-(?!-)){1,61}[a-z0-9]$`, accountAlias},
	"tagKey":          {`[\p{L}\p{Z}\p{N}_.:/=+\-@]+`, runes(tagRune, false)},
	"tagValue":        {`[\p{L}\p{Z}\p{N}_.:/=+\-@]*`, runes(tagRune, true)},
	"roleDescription": {`[\u0009\u000A\u000D\u0020-\u007E\u00A1-\u00FF]*`, runes(func(r rune) bool { return lineRune(r) && r < 0x7f || 0xa1 <= r && r <= 0xff }, true)},
	// The model means the planes beyond the first with \u10000-\u10FFFF.
	"arn": {`[\u0009\u000A\u000D\u0020-\u007E\u0085\u00A0-\uD7FF\uE000-\uFFFD\u10000-\u10FFFF]+`,
		runes(func(r rune) bool { return lineRune(r) && (r < 0x7f || r == 0x85 || r >= 0xa0) && r&^1 != 0xfffe }, false)},
	"sessionName":  {`[\w+=,.@-]*`, orEmpty(allOf(wordByte, "+=,.@-"))},
	"accessKeyId":  {`[\w]*`, orEmpty(allOf(wordByte, ""))},
	"externalId":   {`[\w+=,.@:\/-]*`, orEmpty(allOf(wordByte, "+=,.@:/-"))},
	"serialNumber": {`[\w+=/:,.@-]*`, orEmpty(allOf(wordByte, "+=/:,.@-"))},
	"digits":       {`[\d]*`, orEmpty(allOf(digitByte, ""))},
}

// expression returns a pattern that is matched as a regular expression, for rare
// operations. Like AWS, it matches the whole text.
func expression(text string) *Pattern {
	return &Pattern{text, regexp.MustCompile(`^(?:` + text + `)$`).MatchString}
}

// xksEndpoint matches AWS's form, and also a port. Whether a port is allowed depends on the
// operator's configuration, which is checked later.
func xksEndpoint(s string) bool {
	host, ok := strings.CutPrefix(s, "https://")
	return ok && allOf(wordByte, ".-:")(host) && !strings.Contains(host, "_")
}

// iamPath matches paths of IAM's entities: "/", or more between two slashes.
func iamPath(s string) bool {
	return s == "/" || len(s) > 2 && s[0] == '/' && s[len(s)-1] == '/' && allOf(within(0x21, 0x7e), "")(s)
}

// accountAlias matches words joined by single hyphens.
func accountAlias(s string) bool {
	ends := func(c byte) bool { return 'a' <= c && c <= 'z' || digitByte(c) }
	return 3 <= len(s) && len(s) <= 63 && ends(s[0]) && ends(s[len(s)-1]) && allOf(ends, "-")(s) && !strings.Contains(s, "--")
}

// tagRune reports whether r may be in a tag of IAM's entities.
func tagRune(r rune) bool {
	return unicode.In(r, unicode.L, unicode.Z, unicode.N) || strings.ContainsRune("_.:/=+-@", r)
}

// lineRune reports whether r is not a control character, or is one that ends a line or is a
// tab.
func lineRune(r rune) bool { return r >= 0x20 || r == '\t' || r == '\n' || r == '\r' }

// within returns the class of the bytes from low to high.
func within(low, high byte) func(byte) bool {
	return func(c byte) bool { return low <= c && c <= high }
}

// runes returns a function that matches texts of characters in class, and the empty text if
// empty is set.
func runes(class func(rune) bool, empty bool) func(string) bool {
	return func(s string) bool {
		for _, r := range s {
			if !class(r) {
				return false
			}
		}
		return empty || s != ""
	}
}

// orEmpty returns a function that matches the empty text too.
func orEmpty(match func(string) bool) func(string) bool {
	return func(s string) bool { return s == "" || match(s) }
}

func hexByte(c byte) bool   { return 'a' <= c && c <= 'f' || digitByte(c) }
func digitByte(c byte) bool { return '0' <= c && c <= '9' }

// allOf returns a function that matches texts of one or more bytes, each in class or in
// more.
func allOf(class func(byte) bool, more string) func(string) bool {
	return func(s string) bool {
		for i := range len(s) {
			if !class(s[i]) && strings.IndexByte(more, s[i]) < 0 {
				return false
			}
		}
		return s != ""
	}
}

func wordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}
