package keys

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// input is a member of a request that comes from an argument or a flag.
type input struct {
	member   string // of the request
	flag     string // "" for an argument
	arg      int    // place of the argument, from 1
	usage    string
	optional bool   // of arguments: may be left out
	required bool   // of flags: may not
	many     bool   // of the last argument: one or more
	key      bool   // names a key
	preset   string // value of a flag that is not given
	named    bool   // says in errors what was worked on

	bind  func(*bound, input)       // makes the flag
	fill  func(*bound, input) error // sets the member
	given func(*bound) string       // what the command line has
}

// keyIDForm is what AWS and Conclave give keys as ids.
var keyIDForm = regexp.MustCompile(`^(mrk-[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$`)

// IsKeyID reports whether a key can have this id.
func IsKeyID(id string) bool { return keyIDForm.MatchString(id) }

// keyName is what a user's KEY means: a key id, an ARN, or an alias, with or
// without "alias/".
func keyName(name string) string {
	if name == "" || IsKeyID(name) || strings.HasPrefix(name, "arn:") {
		return name
	}
	return AliasName(name)
}

// isAlias tells an alias, or an alias's ARN, from a key.
func isAlias(name string) bool {
	if strings.HasPrefix(name, "arn:") {
		_, resource, _ := strings.Cut(name, ":alias/")
		return resource != ""
	}
	return strings.HasPrefix(name, "alias/")
}

func (b *bound) set(member string, v protoreflect.Value) {
	b.req.Set(b.field(member), v)
}

func (b *bound) field(member string) protoreflect.FieldDescriptor {
	f := b.req.Descriptor().Fields().ByName(protoreflect.Name(member))
	if f == nil {
		panic(fmt.Sprintf("%s has no member %s", b.row.op, member)) // a row is wrong
	}
	return f
}

// argument is the nth argument as text, or "".
func (b *bound) argument(n int) string { return at(b.args, n-1) }

// keyArg is the key as an argument.
func keyArg(n int) input {
	return input{
		member: "key_id", arg: n, key: true, named: true,
		given: func(b *bound) string { return b.argument(n) },
		fill: func(b *bound, in input) error {
			b.set(in.member, protoreflect.ValueOfString(keyName(b.argument(n))))
			return nil
		},
	}
}

// as has an input fill another member.
func (in input) as(member string) input {
	in.member = member
	return in
}

// needed makes a flag one that must be given.
func (in input) needed() input {
	in.required = true
	return in
}

// or sets what a flag has when it is not given.
func (in input) or(value string) input {
	in.preset = value
	return in
}

// textArg is an argument as it is.
func textArg(member string, n int) input {
	return input{
		member: member, arg: n, named: n == 1,
		given: func(b *bound) string { return b.argument(n) },
		fill: func(b *bound, in input) error {
			if n <= len(b.args) {
				b.set(in.member, protoreflect.ValueOfString(b.argument(n)))
			}
			return nil
		},
	}
}

// aliasArg is the name of an alias, with or without "alias/".
func aliasArg(n int) input {
	in := textArg("alias_name", n)
	in.fill = func(b *bound, in input) error {
		b.set(in.member, protoreflect.ValueOfString(AliasName(b.argument(n))))
		return nil
	}
	return in
}

// textFlag is a flag as it is.
func textFlag(member, flag, usage string) input {
	return input{
		member: member, flag: flag, usage: usage,
		bind: func(b *bound, in input) { b.cmd.Flags().String(in.flag, in.preset, in.usage) },
		fill: func(b *bound, in input) error {
			v, err := b.cmd.Flags().GetString(in.flag)
			if err != nil {
				return err
			}
			if !b.cmd.Flags().Changed(in.flag) && in.preset == "" {
				if in.required {
					return cli.Usagef("--%s is needed: %s", in.flag, in.usage)
				}
				return nil
			}
			b.set(in.member, protoreflect.ValueOfString(v))
			return nil
		},
	}
}

// keyFlag is the key as a flag.
func keyFlag(usage string) input {
	in := textFlag("key_id", "key", usage)
	in.key, in.named = true, true
	return in.keyed()
}

// naming has errors name what a flag has.
func (in input) naming() input {
	in.named = true
	return in
}

// keyed has a flag that names a key take it in all forms.
func (in input) keyed() input {
	in.key = true
	in.given = func(b *bound) string {
		v, _ := b.cmd.Flags().GetString(in.flag)
		return v
	}
	plain := in.fill
	in.fill = func(b *bound, in input) error {
		if err := plain(b, in); err != nil {
			return err
		}
		if f := b.field(in.member); b.req.Has(f) {
			b.req.Set(f, protoreflect.ValueOfString(keyName(b.req.Get(f).String())))
		}
		return nil
	}
	return in
}

// numberFlag is a flag with a number.
func numberFlag(member, flag string, usage string) input {
	return input{
		member: member, flag: flag, usage: usage,
		bind: func(b *bound, in input) {
			b.cmd.Flags().Int32(in.flag, 0, in.usage)
			if in.preset != "" {
				_ = b.cmd.Flags().Lookup(in.flag).Value.Set(in.preset)
			}
		},
		fill: func(b *bound, in input) error {
			v, err := b.cmd.Flags().GetInt32(in.flag)
			if err == nil && (b.cmd.Flags().Changed(in.flag) || in.preset != "") {
				b.set(in.member, protoreflect.ValueOfInt32(v))
			}
			return err
		},
	}
}

// boolFlag is a flag that is given or not.
func boolFlag(member, flag, usage string) input {
	return input{
		member: member, flag: flag, usage: usage,
		bind: func(b *bound, in input) { b.cmd.Flags().Bool(in.flag, false, in.usage) },
		fill: func(b *bound, in input) error {
			v, err := b.cmd.Flags().GetBool(in.flag)
			if err == nil && b.cmd.Flags().Changed(in.flag) {
				b.set(in.member, protoreflect.ValueOfBool(v))
			}
			return err
		},
	}
}

func dryRun() input {
	return boolFlag("dry_run", "dry-run", "ask whether it would be allowed, and do nothing")
}

func lockout() input {
	return boolFlag("bypass_policy_lockout_safety_check", "bypass-policy-lockout-safety-check", "take a policy that locks you out")
}

// textsFlag is a flag that may be repeated.
func textsFlag(member, flag, usage string) input {
	return manyFlag(input{
		member: member, flag: flag, usage: usage,
		bind: func(b *bound, in input) { b.cmd.Flags().StringArray(in.flag, nil, in.usage+"; may be repeated") },
	}, (*pflag.FlagSet).GetStringArray)
}

// listFlag is a flag with values separated by commas.
func listFlag(member, flag, usage string) input {
	return manyFlag(input{
		member: member, flag: flag, usage: usage,
		bind: func(b *bound, in input) { b.cmd.Flags().StringSlice(in.flag, nil, in.usage) },
	}, (*pflag.FlagSet).GetStringSlice)
}

// manyFlag fills a member that has several values with those that get reads.
func manyFlag(in input, get func(*pflag.FlagSet, string) ([]string, error)) input {
	in.fill = func(b *bound, in input) error {
		vs, err := get(b.cmd.Flags(), in.flag)
		if err != nil {
			return err
		}
		if in.required && len(vs) == 0 {
			return cli.Usagef("--%s is needed: %s", in.flag, in.usage)
		}
		b.appendTexts(in.member, vs)
		return nil
	}
	return in
}

func (b *bound) appendTexts(member string, values []string) {
	if len(values) == 0 {
		return
	}
	list := b.req.Mutable(b.field(member)).List()
	for _, v := range values {
		list.Append(protoreflect.ValueOfString(v))
	}
}

func grantTokens() input {
	return textsFlag("grant_tokens", "grant-token", "token of a grant that was made just now")
}

// contextFlag is an encryption context.
func contextFlag(member, flag, usage string) input {
	return input{
		member: member, flag: flag, usage: usage,
		bind: func(b *bound, in input) { b.cmd.Flags().StringArray(in.flag, nil, in.usage) },
		fill: func(b *bound, in input) error {
			given, err := b.cmd.Flags().GetStringArray(in.flag)
			if err != nil {
				return err
			}
			ec, err := pairs(in.flag, given)
			if err != nil || len(ec) == 0 {
				return err
			}
			m := b.req.Mutable(b.field(in.member)).Map()
			for k, v := range ec {
				m.Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOfString(v))
			}
			return nil
		},
	}
}

// pairs reads NAME=VALUE of a flag.
func pairs(flag string, given []string) (map[string]string, error) {
	m := make(map[string]string, len(given))
	for _, p := range given {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, cli.Usagef("--%s %q is not NAME=VALUE", flag, p)
		}
		if _, ok := m[k]; ok {
			return nil, cli.Usagef("--%s: duplicate %q", flag, k)
		}
		m[k] = v
	}
	return m, nil
}

// tagFlags are tags of what is made.
func tagFlags() input {
	return input{
		member: "tags", flag: "tag", usage: "KEY=VALUE; may be repeated",
		bind: func(b *bound, in input) { b.cmd.Flags().StringArray(in.flag, nil, in.usage) },
		fill: func(b *bound, in input) error {
			given, err := b.cmd.Flags().GetStringArray(in.flag)
			if err != nil {
				return err
			}
			return b.tags(in.member, "--tag ", given)
		},
	}
}

// tags sets NAME=VALUE, in the order given: the server reports duplicates.
func (b *bound) tags(member, flag string, given []string) error {
	for _, p := range given {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return cli.Usagef("%s%q is not KEY=VALUE", flag, p)
		}
		b.req.Mutable(b.field(member)).List().Append(protoreflect.ValueOfMessage((&kmspb.Tag{TagKey: &k, TagValue: &v}).ProtoReflect()))
	}
	return nil
}

// dateFlag is a flag with a time, RFC 3339 or a duration from now.
func dateFlag(member, flag, usage string) input {
	return input{
		member: member, flag: flag, usage: usage + ": a time such as 2030-01-02T15:04:05Z, or from now, such as 720h",
		bind: func(b *bound, in input) { b.cmd.Flags().String(in.flag, "", in.usage) },
		fill: func(b *bound, in input) error {
			v, err := b.cmd.Flags().GetString(in.flag)
			if err != nil || v == "" {
				return err
			}
			t, err := time.Parse(time.RFC3339, v)
			if err != nil {
				d, derr := time.ParseDuration(v)
				if derr != nil {
					return cli.Usagef("--%s %q is neither a time such as 2030-01-02T15:04:05Z nor a duration such as 720h", in.flag, v)
				}
				t = time.Now().Add(d)
			}
			b.set(in.member, protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()))
			return nil
		},
	}
}

// blob is how the bytes of a file become a member.
type blob struct {
	limit   int64
	what    string // as in "the ciphertext"
	tooLong string // what to do then
	may64   bool   // with --base64 it is base64
	pem     bool   // PEM is taken too, and becomes DER
	empty   bool   // may be empty
	line    bool   // is a line, and its end does not count
}

// file is an argument that names a file, or standard input where it is "-" or left
// out.
func file(member string, n int, form blob) input {
	return input{
		member: member, arg: n, optional: true,
		bind: func(b *bound, _ input) {
			switch {
			case form.may64 && b.row.shows.writes64():
				b.cmd.Flags().Bool("base64", false, "read and write base64 instead of raw bytes")
			case form.may64:
				b.cmd.Flags().Bool("base64", false, "read base64 instead of raw bytes")
			}
		},
		given: func(*bound) string { return "" },
		fill:  func(b *bound, in input) error { return b.fillFile(in, b.argument(n), form) },
	}
}

// fileFlag is a flag that names a file, or standard input by "-".
func fileFlag(member, flag, usage string, form blob) input {
	return input{
		member: member, flag: flag, usage: usage,
		bind: func(b *bound, in input) { b.cmd.Flags().String(in.flag, "", in.usage) },
		fill: func(b *bound, in input) error {
			name, err := b.cmd.Flags().GetString(in.flag)
			if err != nil {
				return err
			}
			if name == "" {
				if in.required {
					return cli.Usagef("--%s is needed: %s", in.flag, in.usage)
				}
				return nil
			}
			return b.fillFile(in, name, form)
		},
	}
}

func (b *bound) fillFile(in input, name string, form blob) error {
	raw, err := b.app.ReadInput(name, form.limit)
	if err != nil {
		if form.tooLong != "" {
			err = fmt.Errorf("%w; %s", err, form.tooLong)
		}
		return err
	}
	if form.pem {
		if p, _ := pem.Decode(raw); p != nil {
			raw = p.Bytes
		}
	}
	if form.line {
		raw = bytes.TrimRight(raw, "\r\n")
	}
	if form.may64 && b.base64() {
		if raw, err = base64.StdEncoding.DecodeString(string(bytes.TrimSpace(raw))); err != nil {
			return fmt.Errorf("%s is not base64: %w", form.what, err)
		}
	}
	if len(raw) == 0 && !form.empty {
		return fmt.Errorf("%s is empty", form.what)
	}
	if b.field(in.member).Kind() == protoreflect.StringKind {
		b.set(in.member, protoreflect.ValueOfString(string(raw)))
	} else {
		b.set(in.member, protoreflect.ValueOfBytes(raw))
	}
	return nil
}

const (
	maxPlaintext  = 4096
	maxCiphertext = 6144
	maxPolicyFile = 1 << 20
	maxAttested   = 256 << 10
)

func ciphertextFile(n int) input {
	return file("ciphertext_blob", n, blob{limit: 2 * maxCiphertext, what: "the ciphertext", may64: true})
}

func policyFlag() input {
	return fileFlag("policy", "policy", "file with the key policy, - for standard input (default: the account decides)", blob{limit: maxPolicyFile, what: "the policy"})
}

// recipient is the enclave that an answer is encrypted for.
func recipient() input {
	return input{
		member: "recipient", flag: "attestation-document", usage: "file with an enclave's attestation document; the answer is encrypted for that enclave",
		bind: func(b *bound, in input) { b.cmd.Flags().String(in.flag, "", in.usage) },
		fill: func(b *bound, in input) error {
			name, err := b.cmd.Flags().GetString(in.flag)
			if err != nil || name == "" {
				return err
			}
			doc, err := b.app.ReadInput(name, maxAttested)
			if err != nil {
				return err
			}
			r := &kmspb.RecipientInfo{KeyEncryptionAlgorithm: proto.String("RSAES_OAEP_SHA_256"), AttestationDocument: doc}
			b.set(in.member, protoreflect.ValueOfMessage(r.ProtoReflect()))
			return nil
		},
	}
}
