package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/smithy-go"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
)

// reply is what a client made of an answer.
type reply struct {
	output map[string]any // blobs in base64
	code   string         // of the error; "" for success
	// typed says that the client knew the error as one of the service's own, and
	// gave it a type.
	typed bool
}

// driver is a client of AWS's that calls an operation by its name.
type driver interface {
	call(n *harness.Node, operation string, in harness.Members) (reply, error)
}

// sdkDriver is the Go SDK, with the members filled in by their names.
type sdkDriver struct{}

func (sdkDriver) call(n *harness.Node, operation string, in harness.Members) (reply, error) {
	method := reflect.ValueOf(n.SDK()).MethodByName(operation)
	if !method.IsValid() {
		return reply{}, fmt.Errorf("the SDK has no operation %s", operation)
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return reply{}, err
	}
	request := reflect.New(method.Type().In(1).Elem())
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(request.Interface()); err != nil {
		return reply{}, fmt.Errorf("input of %s: %w", operation, err)
	}
	results := method.Call([]reflect.Value{reflect.ValueOf(context.Background()), request})
	if err, _ := results[1].Interface().(error); err != nil {
		api, ok := errors.AsType[smithy.APIError](err)
		if !ok {
			return reply{}, err
		}
		_, generic := api.(*smithy.GenericAPIError)
		return reply{code: api.ErrorCode(), typed: !generic}, nil
	}
	raw, err = json.Marshal(results[0].Interface())
	if err != nil {
		return reply{}, err
	}
	var r reply
	return r, json.Unmarshal(raw, &r.output)
}

// lines is a process that answers each line with a line.
type lines struct {
	in     io.Writer
	out    *bufio.Scanner
	stderr bytes.Buffer
}

func startLines(t testing.TB, env []string, name string, args ...string) *lines {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = env
	cmd.WaitDelay = 5 * time.Second
	l := &lines{}
	cmd.Stderr = &l.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait() // it was killed with the test's context, or ends with its harness.Members
	})
	l.in, l.out = in, bufio.NewScanner(out)
	l.out.Buffer(nil, 1<<20)
	return l
}

func (l *lines) ask(question, answer any) error {
	raw, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if _, err := l.in.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("%w\n%s", err, l.stderr.String())
	}
	if !l.out.Scan() {
		return fmt.Errorf("no answer: %v\n%s", l.out.Err(), l.stderr.String())
	}
	return json.Unmarshal(l.out.Bytes(), answer)
}

// toolEnv is the environment in which AWS's tools use a cluster: nothing of the
// user's own configuration is left in it.
func toolEnv(c *harness.Cluster) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") {
			env = append(env, v)
		}
	}
	return append(env,
		"AWS_ACCESS_KEY_ID="+c.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+c.Secret(), "AWS_REGION="+harness.Region, "AWS_DEFAULT_REGION="+harness.Region,
		"AWS_CA_BUNDLE="+c.CAFile(), "AWS_CONFIG_FILE="+os.DevNull, "AWS_SHARED_CREDENTIALS_FILE="+os.DevNull,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1", "AWS_PAGER=")
}

// botoDriver is boto3.
type botoDriver struct{ *lines }

func newBotoDriver(t testing.TB, c *harness.Cluster) driver {
	needBoto3(t)
	return botoDriver{startLines(t, toolEnv(c), "python3", filepath.Join("testdata", "boto3_server.py"))}
}

func (d botoDriver) call(n *harness.Node, operation string, in harness.Members) (reply, error) {
	var a struct {
		Output map[string]any
		Code   string
		Class  string
	}
	err := d.ask(map[string]any{"endpoint": "https://" + n.AWS, "operation": operation, "input": blobsMarked(in)}, &a)
	return reply{output: a.Output, code: a.Code, typed: a.Class == a.Code}, err
}

func blobsMarked(in harness.Members) map[string]any {
	out := make(map[string]any, len(in))
	for k, v := range in {
		if b, ok := v.([]byte); ok {
			v = map[string]string{"$blob": base64.StdEncoding.EncodeToString(b)}
		}
		out[k] = v
	}
	return out
}

// cliDriver is the AWS CLI. It gives errors no types.
type cliDriver struct {
	run func(args []string) (cliAnswer, error)
	dir string
}

type cliAnswer struct {
	Code     int
	Out, Err string
}

func newCLIDriver(t testing.TB, c *harness.Cluster) driver {
	return &cliDriver{run: startCLI(t, toolEnv(c)), dir: t.TempDir()}
}

// startCLI returns a function that runs commands of the AWS CLI in an environment. The test
// is skipped if it is not installed.
func startCLI(t testing.TB, env []string) func(args []string) (cliAnswer, error) {
	t.Helper()
	path, err := exec.LookPath("aws")
	if err != nil {
		optional.Skip(t, "there is no AWS CLI: %v", err)
	}
	python := cliPython(t, path)
	if python == "" {
		return func(args []string) (cliAnswer, error) { return execCLI(t, env, args) }
	}
	l := startLines(t, env, python, filepath.Join("testdata", "awscli_server.py"))
	return func(args []string) (a cliAnswer, err error) { return a, l.ask(args, &a) }
}

func execCLI(t testing.TB, env, args []string) (cliAnswer, error) {
	cmd := exec.CommandContext(t.Context(), "aws", args...)
	cmd.Env = env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
	}
	if err != nil {
		return cliAnswer{}, err
	}
	return cliAnswer{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}, nil
}

// cliPython is the Python that has the CLI, if it is installed as a package of
// one; "" where each command needs a process of its own.
func cliPython(t testing.TB, aws string) string {
	candidates := []string{"python3"}
	if f, err := os.Open(aws); err == nil {
		first, _ := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
		f.Close()
		if interpreter, ok := strings.CutPrefix(strings.TrimSpace(first), "#!"); ok && strings.Contains(interpreter, "python") && !strings.Contains(interpreter, " ") {
			candidates = []string{interpreter, "python3"}
		}
	}
	for _, python := range candidates {
		if exec.CommandContext(t.Context(), python, "-c", "import awscli.clidriver").Run() == nil {
			return python
		}
	}
	return ""
}

var (
	capital  = regexp.MustCompile(`([a-z])([A-Z])`)
	cliError = regexp.MustCompile(`An error occurred \(([A-Za-z.]+)\) when calling the (\w+) operation`)
)

func kebab(name string) string {
	return strings.ToLower(capital.ReplaceAllString(name, "$1-$2"))
}

func (d *cliDriver) call(n *harness.Node, operation string, in harness.Members) (reply, error) {
	args := []string{"kms", kebab(operation), "--endpoint-url", "https://" + n.AWS, "--output", "json"}
	if in["Limit"] != nil {
		args = append(args, "--no-paginate") // or it reads on to the end by itself
	}
	rest := make(harness.Members)
	for name, v := range in {
		b, ok := v.([]byte)
		if !ok {
			rest[name] = v
			continue
		}
		// The one way to give bytes that all versions understand alike.
		file := filepath.Join(d.dir, n.ID+name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			return reply{}, err
		}
		args = append(args, "--"+kebab(name), "fileb://"+file)
	}
	raw, err := json.Marshal(rest)
	if err != nil {
		return reply{}, err
	}
	a, err := d.run(append(args, "--cli-input-json", string(raw)))
	if err != nil {
		return reply{}, err
	}
	if a.Code != 0 {
		m := cliError.FindStringSubmatch(a.Err)
		if m == nil || m[2] != operation {
			return reply{}, fmt.Errorf("exit code %d: %s", a.Code, a.Err)
		}
		return reply{code: m[1]}, nil
	}
	var r reply
	if strings.TrimSpace(a.Out) != "" {
		err = json.Unmarshal([]byte(a.Out), &r.output)
	}
	return r, err
}
