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

// input is an argument or a flag that sets a member of the request.
type input struct {
	member   string // of the request
	flag     string // "" for an argument
	arg      int    // place of the argument, from 1
	usage    string
	optional bool   // an argument that may be left out
	required bool   // a flag that must be given
	many     bool   // the last argument, given once or more
	key      bool   // it names a key
	preset   string // default value of a flag
	named    bool   // errors name its value

	bind  func(*bound, input)       // makes the flag
	fill  func(*bound, input) error // sets the member
	given func(*bound) string       // returns its value on the command line
}

// keyIDForm is the form of key ids in AWS and Conclave.
var keyIDForm = regexp.MustCompile(`^(mrk-[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$`)

// IsKeyID reports whether id has the form of a key id.
func IsKeyID(id string) bool { return keyIDForm.MatchString(id) }

// Name returns the KeyId for a user's KEY: a key id, an ARN, or an alias
// with or without "alias/".
func Name(name string) string {
	if name == "" || IsKeyID(name) || strings.HasPrefix(name, "arn:") {
		return name
	}
	return AliasName(name)
}

// isAlias reports whether name is an alias or an alias's ARN.
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
		panic(fmt.Sprintf("%s has no member %s", b.row.op, member)) // a bug in a row
	}
	return f
}

// argument returns the nth argument, or "".
func (b *bound) argument(n int) string { return at(b.args, n-1) }

// keyArg is an argument that names the key.
func keyArg(n int) input {
	return input{
		member: "key_id", arg: n, key: true, named: true,
		given: func(b *bound) string { return b.argument(n) },
		fill: func(b *bound, in input) error {
			b.set(in.member, protoreflect.ValueOfString(Name(b.argument(n))))
			return nil
		},
	}
}

// as changes the member that an input sets.
func (in input) as(member string) input {
	in.member = member
	return in
}

// needed makes a flag required.
func (in input) needed() input {
	in.required = true
	return in
}

// or sets the default value of a flag.
func (in input) or(value string) input {
	in.preset = value
	return in
}

// textArg is an argument that sets a text.
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

// aliasArg is an argument with the name of an alias, with or without "alias/".
func aliasArg(n int) input {
	in := textArg("alias_name", n)
	in.fill = func(b *bound, in input) error {
		b.set(in.member, protoreflect.ValueOfString(AliasName(b.argument(n))))
		return nil
	}
	return in
}

// textFlag is a flag that sets a text.
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
					return cli.Usagef("--%s is required: %s", in.flag, in.usage)
				}
				return nil
			}
			b.set(in.member, protoreflect.ValueOfString(v))
			return nil
		},
	}
}

// keyFlag is a flag that names the key.
func keyFlag(usage string) input {
	in := textFlag("key_id", "key", usage)
	in.key, in.named = true, true
	return in.keyed()
}

// naming makes errors mention the value of a flag.
func (in input) naming() input {
	in.named = true
	return in
}

// keyed makes a flag accept all forms of KEY.
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
			b.req.Set(f, protoreflect.ValueOfString(Name(b.req.Get(f).String())))
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

// boolFlag is a boolean flag.
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
	return boolFlag("dry_run", "dry-run", "only check whether the request would be allowed")
}

func lockout() input {
	return boolFlag("bypass_policy_lockout_safety_check", "bypass-policy-lockout-safety-check", "accept a policy that locks you out")
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

// manyFlag sets a member that has several values to those that get returns.
func manyFlag(in input, get func(*pflag.FlagSet, string) ([]string, error)) input {
	in.fill = func(b *bound, in input) error {
		vs, err := get(b.cmd.Flags(), in.flag)
		if err != nil {
			return err
		}
		if in.required && len(vs) == 0 {
			return cli.Usagef("--%s is required: %s", in.flag, in.usage)
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
	return textsFlag("grant_tokens", "grant-token", "token of a grant that was just created")
}

// contextFlag is a flag for an encryption context.
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

// pairs parses the values NAME=VALUE of a flag.
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

// tagFlags is the flag for the tags of what is created.
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

// tags sets tags from NAME=VALUE, in the given order. The server reports
// duplicates.
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

// dateFlag is a flag with a time in RFC 3339, or a duration from now.
func dateFlag(member, flag, usage string) input {
	return input{
		member: member, flag: flag, usage: usage + ": a time such as 2030-01-02T15:04:05Z, or a duration from now such as 720h",
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

// blob says how the bytes of a file become a member.
type blob struct {
	limit   int64
	what    string // as in "the ciphertext"
	tooLong string // advice if it is longer than limit
	may64   bool   // it is base64 if --base64 is given
	pem     bool   // PEM is accepted too, and converted to DER
	empty   bool   // it may be empty
	line    bool   // it is a line, whose end is removed
}

// file is an argument that names a file, or standard input if it is "-" or left
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
					return cli.Usagef("--%s is required: %s", in.flag, in.usage)
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
	return fileFlag("policy", "policy", "file with the key policy, - for standard input (default: the account's policies decide)", blob{limit: maxPolicyFile, what: "the policy"})
}

// recipient is the flag for the enclave that the answer is encrypted for.
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
