package docs

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine/issuertest"
)

// What docs/access.md calls so.
const (
	accessIssuer   = "https://kubernetes.default.svc.cluster.local"
	accessPipeline = "https://gitlab.example.com"
	accessEndpoint = "https://conclave.example.com:7600"
)

// accessHooks are what happens right before a command of docs/access.md, by its beginning: what
// somebody does there who is not at the shell.
var accessHooks = map[string]string{
	// The page says where the access key of the profile is.
	"aws kms describe-key": `(. ./alice.env; printf '[alice]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" > credentials)`,
	// No node reaches the pipeline's issuer. The job runs elsewhere, with the token alone.
	`eval "$(conclave sts assume-role-with-token`: `conclave iam oidc-provider set-keys arn:aws:iam::111122223333:oidc-provider/gitlab.example.com pipeline.json
ADMIN=$(export -p | grep ' AWS_'); unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY`,
	"conclave account create": `unset AWS_SESSION_TOKEN; eval "$ADMIN"`,
}

// fileBlock is a block that is a file, whose name follows the language.
var fileBlock = regexp.MustCompile("(?s)```(?:json|ini|yaml) ([a-z.-]+)\n(.*?)```")

// TestAccessPage carries out what docs/access.md shows, in the order of the page: the commands
// with the files, and then what a pod with the page's variables does.
func TestAccessPage(t *testing.T) {
	t.Parallel()
	optional.Program(t, "aws")
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	text := page(t, "docs/access.md")
	s := newDevShell(t, binary, "--account", "111122223333")
	files := make(map[string]string)
	for _, b := range fileBlock.FindAllStringSubmatch(text, -1) {
		files[b[1]] = b[2]
		s.write(t, b[1], b[2], 0o600)
	}
	pod := podOf(t, files["pod.yaml"])

	issuer := issuertest.NewInsecure(t)
	token := func(url, subject, audience string) string {
		return issuer.Sign(issuer.Claims(time.Now(), subject, audience).With(issuertest.Claims{"iss": url}))
	}
	s.write(t, "pipeline.json", string(issuer.Keys()), 0o600)
	s.write(t, "token.jwt", token(accessPipeline, "project_path:shop/payments:ref_type:branch:ref:main", "https://conclave.example.com"), 0o600)
	s.write(t, "token", token(accessIssuer, pod.subject, pod.audience), 0o600)
	// What the cluster's API server answers.
	s.write(t, "bin/kubectl", "#!/bin/sh\n[ \"$*\" = 'get --raw /openid/v1/jwks' ] && cat pipeline.json\n", 0o700)

	var script strings.Builder
	script.WriteString("eval \"$(conclave env --wait 60s)\"\n")
	hooks := 0
	for _, w := range walks {
		if w.test != "TestAccessPage" {
			continue
		}
		for _, c := range shellCommands(section(text, w.heading)) {
			for before, hook := range accessHooks {
				if strings.HasPrefix(c, before) {
					script.WriteString(hook + "\n")
					hooks++
				}
			}
			script.WriteString(c + "\n")
		}
	}
	if hooks != len(accessHooks) {
		t.Fatalf("%d of %d commands are on the page that the test prepares", hooks, len(accessHooks))
	}
	out := s.run(t, script.String())
	for _, want := range []string{
		"arn:aws:iam::111122223333:user/alice", ":assumed-role/key-admin/alice", ":assumed-role/deploy/job-4711", ":assumed-role/partner/reader",
		`"KeyState": "Enabled"`,                       // by the profile
		"arn:aws:iam::111122223333:role/payments-pod", // in the list of who can use the key
		"kms:CreateKey ImplicitDeny",                  // by policy why
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the output has no %q:\n%s", want, out)
		}
	}

	// The pod has nothing but what its manifest gives it. Its sessions begin after those that
	// were revoked.
	local := strings.NewReplacer(accessEndpoint, "$AWS_ENDPOINT_URL_KMS", "/var/run/secrets/conclave/", "")
	for name, vars := range map[string][]podVariable{
		"web identity": pod.env,
		"container":    append(slices.DeleteFunc(slices.Clone(pod.env), func(v podVariable) bool { return slices.Contains(containerReplaces, v.Name) }), variables(t, files["container.yaml"])...),
	} {
		lines := "eval \"$(conclave env)\"\nunset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_ENDPOINT_URL_STS\n"
		for _, v := range vars {
			lines += fmt.Sprintf("export %s=\"%s\"\n", v.Name, local.Replace(v.Value))
		}
		lines += "aws kms encrypt --key-id alias/payments --plaintext aGVsbG8=\naws kms create-key 2>&1 || true\n"
		out := s.run(t, lines)
		if !strings.Contains(out, "CiphertextBlob") || !strings.Contains(out, ":assumed-role/payments-pod/") || !strings.Contains(out, "AccessDenied") {
			t.Errorf("a pod, %s:\n%s", name, out)
		}
	}
}

// containerReplaces are the variables that a pod does not need with the endpoint for containers.
var containerReplaces = []string{"AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ENDPOINT_URL_STS"}

// podVariable is a variable of a container's environment.
type podVariable struct{ Name, Value string }

func variables(t *testing.T, text string) (vars []podVariable) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), &vars); err != nil || len(vars) == 0 {
		t.Fatalf("%d variables, %v:\n%s", len(vars), err, text)
	}
	return vars
}

// podFacts are what Kubernetes makes of a pod's manifest.
type podFacts struct {
	env               []podVariable
	subject, audience string // of its token
}

func podOf(t *testing.T, manifest string) podFacts {
	t.Helper()
	var m struct {
		Metadata struct{ Namespace string }
		Spec     struct {
			ServiceAccountName string `yaml:"serviceAccountName"`
			Containers         []struct {
				Env          []podVariable
				VolumeMounts []struct {
					MountPath string `yaml:"mountPath"`
				} `yaml:"volumeMounts"`
			}
			Volumes []struct {
				Projected struct {
					Sources []struct {
						ServiceAccountToken struct{ Path, Audience string } `yaml:"serviceAccountToken"`
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(manifest), &m); err != nil {
		t.Fatal(err)
	}
	c, source := m.Spec.Containers[0], m.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken
	if want := (podVariable{"AWS_WEB_IDENTITY_TOKEN_FILE", c.VolumeMounts[0].MountPath + "/" + source.Path}); !slices.Contains(c.Env, want) {
		t.Errorf("the token is at %s, which is not what the variables say: %v", want.Value, c.Env)
	}
	return podFacts{c.Env, "system:serviceaccount:" + m.Metadata.Namespace + ":" + m.Spec.ServiceAccountName, source.Audience}
}
