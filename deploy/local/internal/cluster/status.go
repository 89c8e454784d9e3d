package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/state"
)

// Status is how a cluster is now.
type Status struct {
	Dir        layout.Dir        `json:"dir"`
	Instance   layout.Instance   `json:"instance"`
	Server     string            `json:"server"`
	Kubeconfig string            `json:"kubeconfig"`
	Components []ComponentStatus `json:"components"`
	Nodes      []NodeStatus      `json:"nodes"`
	// Answers says whether the apiserver answers; without it no node's readiness is known.
	Answers bool `json:"answers"`
}

// ComponentStatus is how a process of the control plane is.
type ComponentStatus struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Running bool   `json:"running"`
	// MemoryBytes is its share of the machine's memory (PSS): what it shares with others is divided among them.
	MemoryBytes int64 `json:"memory_bytes"`
}

// NodeStatus is how a node is.
type NodeStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// PID is that of its process 1.
	PID     int  `json:"pid"`
	Running bool `json:"running"`
	// Ready is the condition in the apiserver: True, False, Unknown, or empty where it is not known.
	Ready string `json:"ready"`
	GPUs  int    `json:"gpus"`
	// Schedulable GPUs, as the apiserver has it.
	AllocatableGPUs int64 `json:"allocatable_gpus"`
	// MemoryBytes is the share (PSS) of its daemons.
	MemoryBytes int64 `json:"memory_bytes"`
}

// statusLimit is for the apiserver to answer a person who wants to know whether it does.
const statusLimit = 3 * time.Second

// GetStatus looks at a cluster, without changing it.
func GetStatus(ctx context.Context, dir layout.Dir) (Status, error) {
	recorded, err := state.Load(dir)
	if err != nil {
		return Status{}, input("%w", err)
	}
	c := newCluster(recorded, nil)
	status := Status{
		Dir: dir, Instance: recorded.Instance, Server: recorded.Server, Kubeconfig: recorded.Kubeconfig,
		Components: []ComponentStatus{}, Nodes: []NodeStatus{},
	}
	for _, component := range recorded.Components {
		status.Components = append(status.Components, ComponentStatus{
			Name: component.Name, PID: component.Process.PID, Running: component.Process.Alive(),
			MemoryBytes: memoryShare(component.Process.PID, component.Process.Alive()),
		})
	}
	objects := c.nodeObjects(ctx, &status)
	for _, node := range recorded.Nodes {
		one := NodeStatus{Name: node.Name, Address: node.Address, PID: node.Init.PID, Running: node.Init.Alive(), GPUs: node.GPUs}
		if object, found := objects[node.Name]; found {
			offered := object.Status.Allocatable["nvidia.com/gpu"]
			one.AllocatableGPUs = offered.Value()
			for _, condition := range object.Status.Conditions {
				if condition.Type == corev1.NodeReady {
					one.Ready = string(condition.Status)
				}
			}
		}
		if one.Running {
			one.MemoryBytes = c.daemonMemory(node.Number)
		}
		status.Nodes = append(status.Nodes, one)
	}
	return status, nil
}

func (c *Cluster) nodeObjects(ctx context.Context, status *Status) map[string]corev1.Node {
	client, err := c.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	status.Answers = true
	objects := map[string]corev1.Node{}
	for _, object := range list.Items {
		objects[object.Name] = object
	}
	return objects
}

func memoryShare(pid int, alive bool) int64 {
	if !alive {
		return 0
	}
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(content), "\n") {
		if rest, found := strings.CutPrefix(line, "Pss:"); found {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// daemonMemory adds up the processes of a node's daemon group; its pods are not among them.
func (c *Cluster) daemonMemory(number int) int64 {
	groups, err := c.daemonGroups(number)
	if err != nil || len(groups) == 0 {
		return 0
	}
	content, err := os.ReadFile(groups[0])
	if err != nil {
		return 0
	}
	total := int64(0)
	for _, field := range strings.Fields(string(content)) {
		if pid, err := strconv.Atoi(field); err == nil {
			total += memoryShare(pid, true)
		}
	}
	return total
}

// Text is the status for a person.
func (s Status) Text() string {
	var text strings.Builder
	line := func(format string, values ...any) { _, _ = fmt.Fprintf(&text, format+"\n", values...) }
	line("cluster %s, instance %d, %s, answers: %v", s.Dir, s.Instance, s.Server, s.Answers)
	for _, component := range s.Components {
		line("  %-24s %-8s pid %-8d %5.0f MiB", component.Name, running(component.Running), component.PID, mebibytes(component.MemoryBytes))
	}
	for _, node := range s.Nodes {
		ready := node.Ready
		if ready == "" {
			ready = "?"
		}
		line("  node %-19s %-8s pid %-8d %5.0f MiB  %s  ready %s  GPUs %d of %d", node.Name, running(node.Running), node.PID,
			mebibytes(node.MemoryBytes), node.Address, ready, node.AllocatableGPUs, node.GPUs)
	}
	line("export KUBECONFIG=%s", s.Kubeconfig)
	return text.String()
}

func running(is bool) string {
	if is {
		return "running"
	}
	return "stopped"
}

func mebibytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }
