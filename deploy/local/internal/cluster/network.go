package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/proc"
)

// runProgram runs a short program of this machine; its output becomes part of the error.
func runProgram(stdin string, name string, args ...string) error {
	return runWithInput(strings.NewReader(stdin), name, args...)
}

func runWithInput(stdin io.Reader, name string, args ...string) error {
	command := exec.Command(name, args...)
	command.Stdin = stdin
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(output.String()))
	}
	return nil
}

// ipBatch gives many lines to one `ip`.
func ipBatch(lines ...string) error {
	return runProgram(strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
}

// makeNetwork makes the bridge that the nodes hang on, with this machine's address.
func (c *Cluster) makeNetwork() error {
	if err := raiseSysctls(); err != nil {
		return err
	}
	bridge := c.instance.Bridge()
	prefix := fmt.Sprintf("%s/%d", c.instance.BridgeAddress(), c.instance.NodeSubnet().Bits())
	return ipBatch(
		"link add "+bridge+" type bridge",
		"addr add "+prefix+" dev "+bridge,
		"link set "+bridge+" up",
	)
}

// removeNetwork removes the bridge, and cables whose other end is not yet gone.
func removeNetwork(instance layout.Instance) error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	var failed []error
	for _, link := range links {
		if link.Name != instance.Bridge() && !isVeth(instance, link.Name) {
			continue
		}
		err := runProgram("", "ip", "link", "delete", link.Name)
		// A cable goes by itself with its node's namespace, perhaps right now.
		if _, gone := net.InterfaceByName(link.Name); err != nil && gone == nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func isVeth(instance layout.Instance, name string) bool {
	number, found := strings.CutPrefix(name, instance.Bridge()+"n")
	if !found {
		return false
	}
	_, err := strconv.Atoi(number)
	return err == nil
}

// connect lays a node's cable and sets its addresses and routes.
func (c *Cluster) connect(number int, init proc.ID) error {
	veth := c.instance.Veth(number)
	pid := strconv.Itoa(init.PID)
	if err := ipBatch(
		"link add "+veth+" type veth peer name eth0 netns "+pid,
		"link set "+veth+" master "+c.instance.Bridge()+" up",
		// For the apiserver, which calls webhooks by pod address.
		fmt.Sprintf("route replace %s via %s dev %s", c.instance.NodePodSubnet(number), c.instance.NodeAddress(number), c.instance.Bridge()),
	); err != nil {
		return err
	}
	lines := []string{
		"link set lo up",
		fmt.Sprintf("addr add %s/%d dev eth0", c.instance.NodeAddress(number), c.instance.NodeSubnet().Bits()),
		"link set eth0 up",
		"route add default via " + c.instance.BridgeAddress().String(),
	}
	// To the pods of every node that there may ever be: nobody need be told when one comes.
	for other := 1; other <= layout.MaxNodes; other++ {
		if other != number {
			lines = append(lines, fmt.Sprintf("route add %s via %s", c.instance.NodePodSubnet(other), c.instance.NodeAddress(other)))
		}
	}
	return runProgram(strings.Join(lines, "\n")+"\n", "nsenter", "-t", pid, "-n", "ip", "-batch", "-")
}

// SetLink pulls a node's cable or plugs it in again.
func (c *Cluster) SetLink(name string, up bool) error {
	node, err := c.node(name)
	if err != nil {
		return err
	}
	if !node.Init.Alive() {
		return input("node %s does not run", name)
	}
	where := "down"
	if up {
		where = "up"
	}
	if err := runProgram("", "ip", "link", "set", c.instance.Veth(node.Number), where); err != nil {
		return err
	}
	c.progress.Step("link of %s is %s", name, where)
	return nil
}
