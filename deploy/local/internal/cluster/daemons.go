package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"whetstone.dev/local/internal/gpu"
	"whetstone.dev/local/internal/proc"
	"whetstone.dev/local/internal/state"
)

// enterGroups moves the shell into the groups named in its environment and then becomes the program.
const enterGroups = `for file in $WHETSTONE_LOCAL_GROUPS; do echo $$ > "$file" || exit 1; done; exec "$@"`

// startDaemons starts what makes a node of the namespaces, in the order in which each needs the other.
func (c *Cluster) startDaemons(ctx context.Context, node state.Node, images []string) error {
	containerd, err := c.startDaemon(node, "containerd", "containerd", "--config", c.dir.Node(node.Name, "containerd.toml"), "--log-level", "warn")
	if err != nil {
		return err
	}
	if err := c.awaitContainerd(ctx, node, containerd); err != nil {
		return err
	}
	if err := c.importImages(node, images); err != nil {
		return err
	}
	kubelet := []string{
		c.program("kubelet"),
		"--config=" + c.dir.Node(node.Name, "kubelet.json"),
		"--kubeconfig=" + c.dir.Node(node.Name, "kubelet.kubeconfig"),
		"--hostname-override=" + node.Name,
		"--node-ip=" + node.Address,
	}
	if len(node.Labels) > 0 {
		kubelet = append(kubelet, "--node-labels="+labelList(node.Labels))
	}
	if _, err := c.startDaemon(node, "kubelet", kubelet...); err != nil {
		return err
	}
	if _, err := c.startDaemon(node, "kube-proxy",
		c.program("kube-proxy"),
		"--kubeconfig="+c.dir.Config("kube-proxy.kubeconfig"),
		"--proxy-mode=nftables",
		"--cluster-cidr="+c.instance.PodSubnet().String(),
		"--hostname-override="+node.Name,
		// These are the machine's, not the node's.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
	); err != nil {
		return err
	}
	if node.GPUs == 0 {
		return nil
	}
	_, err = c.startDaemon(node, "gpu-plugin", c.program("whet-gpu-plugin"),
		"--node="+node.Name, "--count="+strconv.Itoa(node.GPUs), "--unhealthy-file="+c.unhealthyFile(node.Name))
	return err
}

// startDaemon starts a program in the node's namespaces and control groups. It ends with the node.
func (c *Cluster) startDaemon(node state.Node, name string, command ...string) (proc.ID, error) {
	groups, err := c.daemonGroups(node.Number)
	if err != nil {
		return proc.ID{}, err
	}
	args := append([]string{"sh", "-c", enterGroups, "sh"}, enter(node)...)
	return proc.Start(proc.Command{
		Path: "/bin/sh",
		Args: append(args, command...),
		Env:  append(append(c.markers(), "WHETSTONE_LOCAL_GROUPS="+strings.Join(groups, " ")), smallerHeap...),
		Log:  c.dir.Log(node.Name + "-" + name),
	})
}

// enter is the command that runs another one inside the node.
func enter(node state.Node) []string {
	return []string{"nsenter", "-t", strconv.Itoa(node.Init.PID), "-m", "-n", "-u", "-i", "-p", "--"}
}

func (c *Cluster) awaitContainerd(ctx context.Context, node state.Node, daemon proc.ID) error {
	// Through the node's root, as /run is its own there.
	socket := filepath.Join("/proc", strconv.Itoa(node.Init.PID), "root/run/containerd/containerd.sock")
	return await(ctx, "containerd", func() (bool, error) {
		if !daemon.Alive() {
			return false, fmt.Errorf("containerd ended at once; its log's last line: %s", lastLine(c.dir.Log(node.Name+"-containerd")))
		}
		connection, err := net.Dial("unix", socket)
		if err != nil {
			return false, nil
		}
		return true, connection.Close()
	})
}

// importImages gives images to the node's containerd.
func (c *Cluster) importImages(node state.Node, files []string) error {
	for _, file := range files {
		// Opened here: the file may lie where the node has folders of its own.
		image, err := os.Open(file)
		if err != nil {
			return input("%w", err)
		}
		command := enter(node)
		err = runWithInput(image, command[0], append(command[1:], "ctr", "--namespace", "k8s.io", "images", "import", "-")...)
		if err := errors.Join(err, image.Close()); err != nil {
			return err
		}
	}
	return nil
}

func labelList(labels map[string]string) string {
	var entries []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		entries = append(entries, key+"="+labels[key])
	}
	return strings.Join(entries, ",")
}

func (c *Cluster) unhealthyFile(node string) string { return c.dir.Node(node, "unhealthy-gpus") }

// SetUnhealthy says which simulated GPUs of a node are not well: the node then offers fewer.
func (c *Cluster) SetUnhealthy(name, indices string) error {
	node, err := c.node(name)
	if err != nil {
		return err
	}
	parsed, err := gpu.ParseIndices(indices, node.GPUs)
	if err != nil {
		return input("%w", err)
	}
	var text []string
	for _, index := range parsed {
		text = append(text, strconv.Itoa(index))
	}
	// Renamed into place: the plugin must not read half a list.
	file := c.unhealthyFile(name)
	if err := writeFile(file+".new", []byte(strings.Join(text, ",")+"\n")); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	c.progress.Step("node %s: %d of %d GPUs unhealthy", name, len(parsed), node.GPUs)
	return nil
}

// unhealthyCount is how many of a node's GPUs are said not to be well.
func (c *Cluster) unhealthyCount(node state.Node) int {
	content, err := os.ReadFile(c.unhealthyFile(node.Name))
	if err != nil {
		return 0
	}
	indices, err := gpu.ParseIndices(string(content), node.GPUs)
	if err != nil {
		return 0
	}
	return len(indices)
}
