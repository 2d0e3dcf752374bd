// Package check renders the Helm chart with Helm's own library and holds the result against
// the schema of Kubernetes' API and against what a cluster of Conclave needs. It is a module of
// its own, so that the server depends on none of this.
package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/client-go/openapi/openapitest"
)

const chartDir = "../conclave"

// values is what a user gives with --set and --values.
type values = map[string]any

// object is a Kubernetes object.
type object struct{ doc map[string]any }

// at returns what is at a path of members and indexes; nil if there is nothing.
func (o object) at(path ...any) any {
	var v any = o.doc
	for _, p := range path {
		switch k := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[k]
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

// render returns the objects of the chart.
func render(ctx context.Context, name string, given values) ([]object, error) {
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		return nil, err
	}
	all, err := util.ToRenderValues(chart, given, common.ReleaseOptions{Name: name, Namespace: "kms", Revision: 1, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Engine{}.RenderWithContext(ctx, chart, all)
	if err != nil {
		return nil, err
	}
	var list []object
	for file, text := range files {
		if filepath.Ext(file) != ".yaml" {
			continue
		}
		for d := yaml.NewDecoder(strings.NewReader(text)); ; {
			var doc map[string]any
			err := d.Decode(&doc)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", file, err, text)
			}
			if doc != nil {
				list = append(list, object{doc})
			}
		}
	}
	return list, nil
}

func rendered(t *testing.T, given values) []object {
	t.Helper()
	list, err := render(t.Context(), "conclave", given)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// one returns the object of a kind and name.
func one(t *testing.T, list []object, kind, name string) object {
	t.Helper()
	i := slices.IndexFunc(list, func(o object) bool { return o.at("kind") == kind && o.at("metadata", "name") == name })
	if i < 0 {
		t.Fatalf("there is no %s %s", kind, name)
	}
	return list[i]
}

func is(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

var minimal = values{"tls": values{"secretName": "conclave-tls"}}

// variants are values that reach each branch of the templates.
var variants = map[string]values{
	"minimal": minimal,
	"single":  {"tls": values{"secretName": "x"}, "replicaCount": 1, "antiAffinity": "none", "topologyKey": "", "networkPolicy": values{"enabled": false}},
	"everything": {
		"tls": values{"secretName": "x"}, "founders": 3, "replicaCount": 5, "antiAffinity": "preferred", "updateStrategy": "RollingUpdate", "allowUnlockedMemory": true,
		"image": values{"repository": "registry.example.com/conclave", "tag": "1.2.3"}, "imagePullSecrets": []any{values{"name": "pull"}},
		"env":         values{"CONCLAVE_LOG_JSON": "true", "CONCLAVE_HEARTBEAT_TIMEOUT": "2s"},
		"persistence": values{"size": "100Gi", "storageClass": "fast", "annotations": values{"a": "b"}},
		"podLabels":   values{"l": "m"}, "podAnnotations": values{"n": "o"}, "nodeSelector": values{"disk": "ssd"}, "priorityClassName": "high",
		"tolerations": []any{values{"key": "kms", "operator": "Exists", "effect": "NoSchedule"}},
		"service":     values{"type": "LoadBalancer", "annotations": values{"internal": "true"}}, "serviceAccount": values{"name": "own"},
		"networkPolicy": values{
			"clients": []any{values{"namespaceSelector": values{"matchLabels": values{"kms": "yes"}}}}, "monitoring": []any{values{"namespaceSelector": values{}}},
			"egress": []any{values{"to": []any{values{"ipBlock": values{"cidr": "192.0.2.0/24"}}}}},
		},
		"serviceMonitor": values{"enabled": true, "labels": values{"release": "prometheus"}},
	},
}

// TestChartIsValid: whatever the values, the objects are what Kubernetes' API describes,
// with no member that it does not know.
func TestChartIsValid(t *testing.T) {
	schema := newAPI(t)
	for name, given := range variants {
		t.Run(name, func(t *testing.T) {
			list := rendered(t, given)
			if len(list) < 4 {
				t.Fatalf("only %d objects", len(list))
			}
			for _, o := range list {
				if o.at("kind") == "ServiceMonitor" { // is of the Prometheus operator
					continue
				}
				if err := schema.check(o); err != nil {
					t.Errorf("%v %v: %v", o.at("kind"), o.at("metadata", "name"), err)
				}
			}
		})
	}
	// The schema finds what is wrong.
	for _, wrong := range []object{
		{map[string]any{"apiVersion": "v1", "kind": "Service", "spec": map[string]any{"portz": nil}}},
		{map[string]any{"apiVersion": "v1", "kind": "Service", "spec": map[string]any{"ports": []any{map[string]any{"port": "x"}}}}},
		{map[string]any{"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": map[string]any{}}},
		{map[string]any{"apiVersion": "v9", "kind": "Service"}},
	} {
		if schema.check(wrong) == nil {
			t.Errorf("the schema takes %v", wrong.doc)
		}
	}
}

// TestChartValues: what values.schema.json forbids is refused before anything is rendered.
func TestChartValues(t *testing.T) {
	for name, given := range map[string]values{
		"no secret":         {},
		"two nodes":         {"tls": values{"secretName": "x"}, "replicaCount": 2},
		"too many founders": {"tls": values{"secretName": "x"}, "replicaCount": 3, "founders": 5},
		"two founders":      {"tls": values{"secretName": "x"}, "replicaCount": 3, "founders": 2},
		"no nodes":          {"tls": values{"secretName": "x"}, "replicaCount": 0, "founders": 3},
		"unknown value":     {"tls": values{"secretName": "x"}, "replicas": 3},
		"a flag in env":     {"tls": values{"secretName": "x"}, "env": values{"log-json": "true"}},
		"node id in env":    {"tls": values{"secretName": "x"}, "env": values{"CONCLAVE_NODE_ID": "x"}},
		"insecure in env":   {"tls": values{"secretName": "x"}, "env": values{"CONCLAVE_INSECURE": "true"}},
		"number in env":     {"tls": values{"secretName": "x"}, "env": values{"CONCLAVE_LOG_JSON": true}},
		"size without unit": {"tls": values{"secretName": "x"}, "persistence": values{"size": "20"}},
		"unknown strategy":  {"tls": values{"secretName": "x"}, "updateStrategy": "Recreate"},
	} {
		if _, err := render(t.Context(), "conclave", given); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// TestChartPromises holds the objects against what a cluster needs.
func TestChartPromises(t *testing.T) {
	list := rendered(t, minimal)
	set := one(t, list, "StatefulSet", "conclave")
	pod := func(path ...any) any { return set.at(append([]any{"spec", "template", "spec"}, path...)...) }
	container := func(path ...any) any { return pod(append([]any{"containers", 0}, path...)...) }

	// Sealed nodes are not ready, and must find each other nevertheless.
	is(t, "podManagementPolicy", set.at("spec", "podManagementPolicy"), "Parallel")
	is(t, "updateStrategy", set.at("spec", "updateStrategy", "type"), "OnDelete")
	nodes := one(t, list, "Service", set.at("spec", "serviceName").(string))
	is(t, "clusterIP of the nodes", nodes.at("spec", "clusterIP"), "None")
	is(t, "publishNotReadyAddresses", nodes.at("spec", "publishNotReadyAddresses"), true)
	is(t, "publishNotReadyAddresses for clients", one(t, list, "Service", "conclave").at("spec", "publishNotReadyAddresses"), nil)

	// A sealed node lives, and is not ready.
	is(t, "liveness", container("livenessProbe", "httpGet", "path"), "/livez")
	is(t, "start", container("startupProbe", "httpGet", "path"), "/livez")
	is(t, "readiness", container("readinessProbe", "httpGet", "path"), "/readyz")

	is(t, "the budget", one(t, list, "PodDisruptionBudget", "conclave").at("spec", "maxUnavailable"), 1)
	is(t, "anti-affinity", pod("affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution", 0, "topologyKey"), "kubernetes.io/hostname")
	is(t, "retention", set.at("spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted"), "Retain")

	// What the process may do.
	is(t, "runAsNonRoot", pod("securityContext", "runAsNonRoot"), true)
	is(t, "token", pod("automountServiceAccountToken"), false)
	is(t, "service links", pod("enableServiceLinks"), false)
	is(t, "read-only root", container("securityContext", "readOnlyRootFilesystem"), true)
	is(t, "capabilities", container("securityContext", "capabilities", "drop"), "[ALL]")
	is(t, "escalation", container("securityContext", "allowPrivilegeEscalation"), false)

	// Each node sees its own key only.
	env := make(map[string]any)
	for _, e := range container("env").([]any) {
		e := object{e.(map[string]any)}
		env[e.at("name").(string)] = e.at("value")
	}
	is(t, "the mount of the keys", container("volumeMounts", 1, "subPathExpr"), "$(CONCLAVE_NODE_ID)")
	var paths []string
	for _, item := range pod("volumes", 0, "secret", "items").([]any) {
		paths = append(paths, object{item.(map[string]any)}.at("path").(string))
	}
	for _, want := range []string{"conclave-0/node-key.pem", "conclave-2/node-key.pem", "conclave-1/ca.pem", "conclave-1/gossip.key"} {
		if !slices.Contains(paths, want) {
			t.Errorf("the secret has no %s: %v", want, paths)
		}
	}
	is(t, "peers", env["CONCLAVE_PEERS"], "conclave-0=conclave-0.conclave-nodes.kms.svc.cluster.local:7602,conclave-1=conclave-1.conclave-nodes.kms.svc.cluster.local:7602,conclave-2=conclave-2.conclave-nodes.kms.svc.cluster.local:7602")
	is(t, "join", env["CONCLAVE_JOIN"], env["CONCLAVE_PEERS"])
	is(t, "bootstrap-expect", env["CONCLAVE_BOOTSTRAP_EXPECT"], 3)
	is(t, "unlocked memory", env["CONCLAVE_ALLOW_UNLOCKED_MEMORY"], nil)

	// A cluster of three that grows keeps its first nodes.
	grown := one(t, rendered(t, variants["everything"]), "StatefulSet", "conclave")
	for _, e := range grown.at("spec", "template", "spec", "containers", 0, "env").([]any) {
		if e := (object{e.(map[string]any)}); env[e.at("name").(string)] != nil && strings.HasSuffix(e.at("name").(string), "PEERS") {
			is(t, "the peers of five", e.at("value"), env["CONCLAVE_PEERS"])
		}
	}
	is(t, "the replicas of five", grown.at("spec", "replicas"), 5)

	// Strangers reach neither the nodes' ports nor the metrics.
	policy := one(t, list, "NetworkPolicy", "conclave")
	for _, rule := range policy.at("spec", "ingress").([]any) {
		rule := object{rule.(map[string]any)}
		from := fmt.Sprint(rule.at("from"))
		for _, p := range rule.at("ports").([]any) {
			port := object{p.(map[string]any)}.at("port").(string)
			if own := strings.Contains(from, "app.kubernetes.io/instance:conclave"); !own && port != "aws" && port != "grpc" {
				t.Errorf("%s may reach the port %s", from, port)
			}
		}
	}

	// A release of another name does not collide.
	other, err := render(t.Context(), "payments", minimal)
	if err != nil {
		t.Fatal(err)
	}
	one(t, other, "StatefulSet", "payments-conclave")
}

// TestChartConfiguresServer: the variables that a pod gets are a configuration that the server
// understands, with the files that the volumes bring.
func TestChartConfiguresServer(t *testing.T) {
	binary := os.Getenv("CONCLAVE_BINARY")
	if binary == "" {
		t.Skip("CONCLAVE_BINARY does not say where the server is; `make helm-check` does")
	}
	set := one(t, rendered(t, variants["everything"]), "StatefulSet", "conclave")
	dir := t.TempDir()
	var nodes []string
	for i := range set.at("spec", "replicas").(int) {
		nodes = append(nodes, fmt.Sprint("conclave-", i))
	}
	domain := "conclave-nodes.kms.svc.cluster.local"
	if out, err := exec.CommandContext(t.Context(), binary, "cert", "bootstrap", "--dir", dir, "--nodes", strings.Join(nodes, ","), "--dns", "*."+domain).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// As kubelet does: the files of the secret at their paths, and one directory of them mounted.
	for _, item := range set.at("spec", "template", "spec", "volumes", 0, "secret", "items").([]any) {
		item := object{item.(map[string]any)}
		from, to := filepath.Join(dir, item.at("key").(string)), filepath.Join(dir, "secret", item.at("path").(string))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, node := range []string{"conclave-1", "conclave-3"} { // one that founds the cluster, and one that joins it
		t.Run(node, func(t *testing.T) { configures(t, binary, dir, node, set) })
	}
}

// configures holds what a pod gets against what the server needs.
func configures(t *testing.T, binary, dir, node string, set object) {
	t.Helper()
	var env []string
	for _, e := range set.at("spec", "template", "spec", "containers", 0, "env").([]any) {
		e := object{e.(map[string]any)}
		value := node // what the field metadata.name is
		if v, ok := e.at("value").(string); ok {
			value = strings.NewReplacer("$(CONCLAVE_NODE_ID)", node, "/tls/", dir+"/secret/"+node+"/", "/data/", dir+"/").Replace(v)
		}
		env = append(env, fmt.Sprint(e.at("name"), "=", value))
	}
	cmd := exec.CommandContext(t.Context(), binary, "diagnose", "--output", "json")
	cmd.Env = env
	out, err := cmd.Output() // ports may be in use here, and the peers are not there
	var findings []struct{ Check, State, Found string }
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	seen := 0
	for _, f := range findings {
		if slices.Contains([]string{"configuration", "certificates", "gossip key", "data directory"}, f.Check) {
			seen++
			if f.State != "ok" {
				t.Errorf("%s: %s", f.Check, f.Found)
			}
		}
	}
	if seen != 4 {
		t.Errorf("%d findings, %v:\n%s", seen, err, out)
	}
}

// api has the schemas of the objects of Kubernetes' API, of the groups core and apps.
type api struct {
	compiler *jsonschema.Compiler
	byKind   map[string]string // names of schemas by group, version and kind
}

const schemaURL = "kubernetes.json"

// newAPI reads the schemas that Kubernetes' client library has for its tests.
func newAPI(t *testing.T) *api {
	t.Helper()
	groups, err := openapitest.NewEmbeddedFileClient().Paths()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]any)
	a := &api{compiler: jsonschema.NewCompiler(), byKind: make(map[string]string)}
	for _, group := range []string{"api/v1", "apis/apps/v1"} {
		if groups[group] == nil {
			t.Fatalf("there is no schema of %s", group)
		}
		raw, err := groups[group].Schema("application/json")
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(all, object{doc.(map[string]any)}.at("components", "schemas").(map[string]any))
	}
	for name, d := range all {
		def := d.(map[string]any)
		if def["properties"] != nil {
			def["additionalProperties"] = false
		}
		kinds, _ := def["x-kubernetes-group-version-kind"].([]any)
		for _, k := range kinds {
			k := object{k.(map[string]any)}
			group := k.at("version").(string)
			if g := k.at("group").(string); g != "" {
				group = g + "/" + group
			}
			a.byKind[group+" "+k.at("kind").(string)] = name
		}
	}
	a.compiler.DefaultDraft(jsonschema.Draft4)
	if err := a.compiler.AddResource(schemaURL, map[string]any{"components": map[string]any{"schemas": all}}); err != nil {
		t.Fatal(err)
	}
	return a
}

// goTypes are the Go types of the objects.
var goTypes = map[string]func() any{
	"v1 Service": func() any { return new(corev1.Service) }, "v1 ServiceAccount": func() any { return new(corev1.ServiceAccount) },
	"apps/v1 StatefulSet":                func() any { return new(appsv1.StatefulSet) },
	"policy/v1 PodDisruptionBudget":      func() any { return new(policyv1.PodDisruptionBudget) },
	"networking.k8s.io/v1 NetworkPolicy": func() any { return new(networkingv1.NetworkPolicy) },
}

// check holds an object against the Go type and the schema of its kind.
func (a *api) check(o object) error {
	kind := fmt.Sprint(o.at("apiVersion"), " ", o.at("kind"))
	raw, err := json.Marshal(o.doc)
	if err != nil {
		return err
	}
	if goTypes[kind] == nil {
		return fmt.Errorf("%s is no kind that the chart should have", kind)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(goTypes[kind]()); err != nil {
		return err
	}
	name := a.byKind[kind]
	if name == "" { // of a group whose schema the library lacks
		return nil
	}
	schema, err := a.compiler.Compile(schemaURL + "#/components/schemas/" + name)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	return schema.Validate(doc)
}
