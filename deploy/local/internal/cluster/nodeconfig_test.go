package cluster

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kubeletapi "k8s.io/kubelet/config/v1beta1"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/state"
)

func testCluster(t *testing.T, instance layout.Instance) *Cluster {
	t.Helper()
	return newCluster(&state.State{Dir: layout.Dir(t.TempDir()), Instance: instance, Binaries: "/opt/bin"}, NewProgress(&strings.Builder{}))
}

func TestKubeletRegistersWithItsTaints(t *testing.T) {
	c := testCluster(t, 4)
	content, err := c.kubeletConfig(state.Node{Name: "b-1", Number: 7, Taints: []string{"whetstone.dev/unproven=t-07:NoSchedule", "a:NoExecute"}}, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var config kubeletapi.KubeletConfiguration
	if err := json.Unmarshal(content, &config); err != nil {
		t.Fatal(err)
	}
	var taints []string
	for _, taint := range config.RegisterWithTaints {
		taints = append(taints, taint.ToString())
	}
	if got := strings.Join(taints, " "); got != "whetstone.dev/unproven=t-07:NoSchedule a:NoExecute" {
		t.Errorf("taints %q", got)
	}
	if config.CgroupRoot != "/whet4/n7" || config.ClusterDNS[0] != "10.224.0.10" || config.NodeLeaseDurationSeconds != 20 {
		t.Errorf("%s %v %d", config.CgroupRoot, config.ClusterDNS, config.NodeLeaseDurationSeconds)
	}
	if *config.Authentication.Anonymous.Enabled {
		t.Error("anybody may ask the kubelet")
	}
}

func TestEveryListenerOfTheControlPlaneHasAnAddress(t *testing.T) {
	for _, networked := range []bool{false, true} {
		c := testCluster(t, 2)
		for _, component := range []component{c.etcd(), c.apiserver(networked), c.controllerManager(time.Minute), c.scheduler()} {
			args := strings.Join(component.args, " ")
			if strings.Contains(args, "0.0.0.0") {
				t.Errorf("%s listens everywhere: %s", component.name, args)
			}
			if component.name != Etcd && !strings.Contains(args, "--bind-address=127.0.0.1") && (!networked || !strings.Contains(args, "--bind-address=10.77.2.1")) {
				t.Errorf("%s has no address: %s", component.name, args)
			}
		}
	}
}

func TestSecretsAreReadableByTheirOwnerOnly(t *testing.T) {
	c := testCluster(t, 0)
	if err := c.makeCredentials("https://127.0.0.1:26043"); err != nil {
		t.Fatal(err)
	}
	secrets := 0
	err := filepath.WalkDir(string(c.dir), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		if strings.HasSuffix(path, ".key") || strings.HasSuffix(path, ".kubeconfig") {
			secrets++
		}
		return nil
	})
	if err != nil || secrets < 10 {
		t.Errorf("%d keys and kubeconfigs (%v)", secrets, err)
	}
}

func TestOnlyCablesOfTheInstanceAreItsOwn(t *testing.T) {
	for name, own := range map[string]bool{"whet1n1": true, "whet1n100": true, "whet1": false, "whet1nx": false, "whet2n1": false, "whet10n1": false, "eth0": false} {
		if isVeth(1, name) != own {
			t.Errorf("%s: %v", name, !own)
		}
	}
}

func TestGroupsAreRemovedFromTheInnermostOut(t *testing.T) {
	// Folders behave here as control groups do, but for files, which there is no need to remove.
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "whet0/n1/kubepods/besteffort"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(filepath.Join(root, "whet0")); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(filepath.Join(root, "whet0")); err != nil {
		t.Errorf("again: %v", err)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("left: %v %v", entries, err)
	}
}
