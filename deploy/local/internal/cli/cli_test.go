package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/state"
)

func call(args ...string) (code int, stdout, stderr string) {
	var out, errors bytes.Buffer
	code = run(context.Background(), args, &out, &errors)
	return code, out.String(), errors.String()
}

func TestBadInputGetsOneLineAndExitCode2(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	for want, args := range map[string][]string{
		"name a command":               {},
		"unknown command \"uq\"":       {"uq"},
		"unknown flag: --node":         {"up", "--dir", dir, "--node", "1"},
		"--dir is missing":             {"up"},
		"accepts":                      {"stop", "--dir", dir},
		"component \"kubelet\"":        {"stop", "kubelet", "--dir", dir},
		"instance 10":                  {"up", "--dir", dir, "--instance", "10"},
		"instance -1":                  {"down", "--dir", dir, "--instance", "-1"},
		"--nodes 101":                  {"up", "--dir", dir, "--nodes", "101"},
		"--nodes 3, but":               {"up", "--dir", dir, "--nodes", "3", "--node-names", "a,b"},
		"node name \"B_1\"":            {"up", "--dir", dir, "--node-names", "B_1"},
		"two nodes are called a":       {"up", "--dir", dir, "--node-names", "a,a"},
		"--gpus 73":                    {"up", "--dir", dir, "--nodes", "1", "--gpus", "73"},
		"label \"x\"":                  {"up", "--dir", dir, "--nodes", "1", "--label", "x"},
		"invalid taint effect":         {"up", "--dir", dir, "--nodes", "1", "--taint", "a=b:Never"},
		"taint \"a-\"":                 {"up", "--dir", dir, "--nodes", "1", "--taint", "a-"},
		"--node-grace 1s":              {"up", "--dir", dir, "--node-grace", "1s"},
		"no cluster here":              {"status", "--dir", dir},
		"cluster: no cluster here":     {"node", "crash", "node1", "--dir", dir},
		"link \"sideways\"":            {"node", "link", "node1", "sideways", "--dir", withRecord(t)},
		"no node \"node1\"":            {"node", "crash", "node1", "--dir", withRecord(t)},
		"no bridge for nodes":          {"node", "add", "node1", "--dir", withRecord(t)},
		"holds a cluster already":      {"up", "--dir", withRecord(t)},
		"is not empty":                 {"up", "--dir", withFile(t)},
		"image name \"x\"":             {"image", "build", "--name", "x", "--bin", "/bin/sh", "--dir", dir},
		"--file \"/bin/sh\"":           {"image", "build", "--name", "localhost/x:1", "--file", "/bin/sh", "--dir", dir},
		"/no/such: not a file":         {"image", "build", "--name", "localhost/x:1", "--bin", "/no/such", "--dir", dir},
		"image without an entrypoint":  {"image", "build", "--name", "localhost/x:1", "--file", "/bin/sh:/bin/sh", "--dir", dir},
		"image /no/such.tar: not a fi": {"image", "load", "/no/such.tar", "--dir", withRecord(t)},
	} {
		if strings.Contains(want, "no bridge") && os.Geteuid() != 0 {
			want = "nodes need root"
		}
		code, stdout, stderr := call(args...)
		if code != 2 || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit %d, stdout %q, stderr %q; want exit 2 and %q", args, code, stdout, stderr, want)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("bad input made the folder")
	}
}

// withRecord makes the folder of a cluster of which nothing runs.
func withRecord(t *testing.T) string {
	t.Helper()
	dir := layout.Dir(t.TempDir())
	if err := state.NewRecorder(&state.State{Dir: dir}).Change(func(*state.State) {}); err != nil {
		t.Fatal(err)
	}
	return string(dir)
}

func withFile(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTakenPortIsNamedAndNothingIsLeft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	var instance layout.Instance
	var held net.Listener
	// One that nobody uses on this machine now.
	for number := range layout.MaxInstances {
		instance = layout.Instance(number)
		listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(instance.SchedulerPort()))
		if err == nil {
			held = listener
			break
		}
	}
	if held == nil {
		t.Fatal("all instances are in use")
	}
	defer func() { _ = held.Close() }()
	code, _, stderr := call("up", "--dir", dir, "--instance", strconv.Itoa(int(instance)))
	if code != 2 || !strings.Contains(stderr, "taken") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder was made")
	}
}

func TestDownIsFineTwiceAndTouchesNothingElse(t *testing.T) {
	dir := withRecord(t)
	if code, _, stderr := call("down", "--dir", dir); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder is still there")
	}
	if code, _, stderr := call("down", "--dir", dir); code != 0 {
		t.Errorf("again: exit %d: %s", code, stderr)
	}
	other := withFile(t)
	if code, _, stderr := call("down", "--dir", other); code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(other, "thesis.txt")); err != nil {
		t.Error("a folder without a cluster was emptied")
	}
}

func TestStoppedClusterIsReported(t *testing.T) {
	dir := withRecord(t)
	code, stdout, stderr := call("status", "--dir", dir, "--json")
	var status struct {
		Dir     string `json:"dir"`
		Answers bool   `json:"answers"`
	}
	if err := json.Unmarshal([]byte(stdout), &status); code != 0 || err != nil || status.Dir != dir || status.Answers {
		t.Errorf("exit %d, %s, %s, %v", code, stdout, stderr, err)
	}
}

func TestImageIsBuiltFromTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	code, stdout, stderr := call("image", "build", "--name", "localhost/tools/sh:2", "--bin", "/bin/sh", "--dir", dir, "--json")
	var built struct {
		File  string `json:"file"`
		Bytes int64  `json:"bytes"`
	}
	if err := json.Unmarshal([]byte(stdout), &built); code != 0 || err != nil {
		t.Fatalf("exit %d, %s, %v", code, stderr, err)
	}
	info, err := os.Stat(filepath.Join(dir, "images", "sh-2.tar"))
	if err != nil || built.File != filepath.Join(dir, "images", "sh-2.tar") || info.Size() != built.Bytes {
		t.Errorf("%+v %v", built, err)
	}
}
