package gpu

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

func TestUUIDsAreStableAndDiffer(t *testing.T) {
	form := regexp.MustCompile(`^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for _, node := range []string{"b-1", "b-2"} {
		for index := range 8 {
			id := UUID(node, index)
			if !form.MatchString(id) || seen[id] || id != UUID(node, index) {
				t.Errorf("%s gpu%d: %s", node, index, id)
			}
			seen[id] = true
		}
	}
}

func TestUnhealthyFileIsRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "unhealthy")
	s := &server{node: "b-1", count: 4, unhealthyFile: file}
	if indices, err := s.unhealthy(); err != nil || len(indices) != 0 {
		t.Errorf("no file: %v %v", indices, err)
	}
	if err := os.WriteFile(file, []byte("3,1,1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	indices, err := s.unhealthy()
	if err != nil {
		t.Fatal(err)
	}
	var bad []string
	for _, device := range s.devices(indices) {
		if device.Health == plugin.Unhealthy {
			bad = append(bad, device.ID)
		}
	}
	if len(bad) != 2 || bad[0] != UUID("b-1", 1) || bad[1] != UUID("b-1", 3) {
		t.Errorf("unhealthy: %v", bad)
	}
	for _, wrong := range []string{"4", "-1", "x"} {
		if _, err := ParseIndices(wrong, 4); err == nil {
			t.Errorf("index %q was accepted", wrong)
		}
	}
}

func TestContainerLearnsItsDevices(t *testing.T) {
	s := &server{}
	response, err := s.Allocate(context.Background(), &plugin.AllocateRequest{
		ContainerRequests: []*plugin.ContainerAllocateRequest{{DevicesIds: []string{"GPU-a", "GPU-b"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := response.ContainerResponses[0].Envs["NVIDIA_VISIBLE_DEVICES"]; got != "GPU-a,GPU-b" {
		t.Errorf("got %q", got)
	}
}
