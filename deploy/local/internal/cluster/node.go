package cluster

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/nodeinit"
	"whetstone.dev/local/internal/proc"
	"whetstone.dev/local/internal/state"
)

// nodesAtOnce start side by side: a starting node keeps a processor busy for a second and waits for three.
const nodesAtOnce = 2

// node finds a recorded node.
func (c *Cluster) node(name string) (*state.Node, error) {
	snapshot := c.record.Snapshot()
	node := snapshot.Node(name)
	if node == nil {
		return nil, input("this cluster has no node %q", name)
	}
	return node, nil
}

// AddNode adds a worker node and waits until it is ready; one that does not become so is taken out again.
func (c *Cluster) AddNode(ctx context.Context, options NodeOptions) error {
	if err := checkHost(); err != nil {
		return err
	}
	if !c.record.Snapshot().Networked {
		return input("this cluster has no bridge for nodes: it was started without --nodes or --network")
	}
	images, err := c.systemImages()
	if err != nil {
		return err
	}
	node, err := c.recordNode(options)
	if err != nil {
		return err
	}
	if err := c.bringUp(ctx, node, images); err != nil {
		return errors.Join(err, c.RemoveNode(context.WithoutCancel(ctx), node.Name))
	}
	return nil
}

// addNodes adds the first nodes, some at a time.
func (c *Cluster) addNodes(ctx context.Context, all []NodeOptions) error {
	images, err := c.systemImages()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(nodesAtOnce)
	for _, options := range all {
		node, err := c.recordNode(options)
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		group.Go(func() error { return c.bringUp(ctx, node, images) })
	}
	return group.Wait()
}

// bringUp starts a recorded node and waits until it is ready.
func (c *Cluster) bringUp(ctx context.Context, node state.Node, images []string) error {
	started := time.Now()
	err := c.startNode(ctx, node, images)
	if err == nil {
		err = c.awaitNode(ctx, node)
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", node.Name, err)
	}
	c.progress.Step("node %s ready (%.1f s)", node.Name, time.Since(started).Seconds())
	return nil
}

// recordNode gives a new node its number and address.
func (c *Cluster) recordNode(options NodeOptions) (state.Node, error) {
	node := state.Node{Name: options.Name, GPUs: options.GPUs, Labels: options.Labels, Taints: options.Taints}
	var refused error
	err := c.record.Change(func(s *state.State) {
		node.Number = s.FreeNumber()
		switch {
		case s.Node(node.Name) != nil:
			refused = input("node %s exists", node.Name)
		case node.Number == 0:
			refused = input("there are %d nodes already", layout.MaxNodes)
		default:
			node.Address = c.instance.NodeAddress(node.Number).String()
			s.Nodes = append(s.Nodes, node)
		}
	})
	return node, errors.Join(refused, err)
}

// startNode makes the node's namespaces and starts its daemons.
func (c *Cluster) startNode(ctx context.Context, node state.Node, images []string) error {
	snapshot := c.record.Snapshot()
	if err := c.makeNodeCgroups(node.Number); err != nil {
		return err
	}
	if err := c.writeNodeFiles(node, snapshot.NodeGrace, snapshot.Server); err != nil {
		return err
	}
	init, err := c.startInit(node)
	if err != nil {
		return err
	}
	if err := c.record.Change(func(s *state.State) { s.Node(node.Name).Init = init }); err != nil {
		return errors.Join(err, init.Kill())
	}
	node.Init = init
	if err := awaitInit(ctx, init); err != nil {
		return fmt.Errorf("%w; its log's last line: %s", err, lastLine(c.dir.Log(node.Name)))
	}
	if err := c.connect(node.Number, init); err != nil {
		return err
	}
	return c.startDaemons(ctx, node, images)
}

// newNamespaces are those that a node has for itself.
const newNamespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

func (c *Cluster) startInit(node state.Node) (proc.ID, error) {
	for name := range nodeinit.Persistent {
		if err := os.MkdirAll(c.dir.Node(node.Name, name), 0o755); err != nil {
			return proc.ID{}, err
		}
	}
	boot, err := newUUID()
	if err != nil {
		return proc.ID{}, err
	}
	machine, err := c.machineID(node.Name)
	if err != nil {
		return proc.ID{}, err
	}
	spec, err := json.Marshal(nodeinit.Spec{
		Hostname:  node.Name,
		Root:      c.dir.Node(node.Name),
		Keep:      []string{string(c.dir), c.binaries},
		Pause:     filepath.Join(c.binaries, "pause"),
		MachineID: machine,
		BootID:    boot,
	})
	if err != nil {
		return proc.ID{}, err
	}
	file := c.dir.Node(node.Name, "init.json")
	if err := writeFile(file, spec); err != nil {
		return proc.ID{}, err
	}
	return proc.Start(proc.Command{
		Path:       c.program("whet-node-init"),
		Args:       []string{"whet-node-init", file},
		Env:        c.markers(),
		Log:        c.dir.Log(node.Name),
		Namespaces: newNamespaces,
	})
}

// bootID is the one that the node was last started with.
func (c *Cluster) bootID(node string) (string, error) {
	content, err := os.ReadFile(c.dir.Node(node, "init.json"))
	if err != nil {
		return "", err
	}
	var spec nodeinit.Spec
	err = json.Unmarshal(content, &spec)
	return spec.BootID, err
}

// machineID is made at a node's first start and kept.
func (c *Cluster) machineID(node string) (string, error) {
	file := c.dir.Node(node, "machine-id")
	content, err := os.ReadFile(file)
	if err == nil {
		return strings.TrimSpace(string(content)), nil
	}
	id, err := newUUID()
	if err != nil {
		return "", err
	}
	id = strings.ReplaceAll(id, "-", "")
	return id, writeFile(file, []byte(id+"\n"))
}

func newUUID() (string, error) {
	var raw [16]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", err
	}
	// Version 4, as the kernel's own.
	raw[6] = raw[6]&0x0f | 0x40
	raw[8] = raw[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[0:4], raw[4:6], raw[6:8], raw[8:10], raw[10:16]), nil
}

// startLimit is for one step of a node's start; together they take some seconds.
const startLimit = time.Minute

// await polls until the condition holds; it ends at once with an error of the condition's own.
func await(ctx context.Context, what string, condition func() (bool, error)) error {
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		done, err := condition()
		if err != nil || done {
			return err
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return errInterrupted
			}
			return fmt.Errorf("%s: not after %v", what, startLimit)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// awaitInit waits until the node's first program has made its mounts and become `pause`.
func awaitInit(ctx context.Context, init proc.ID) error {
	return await(ctx, "mounts", func() (bool, error) {
		if !init.Alive() {
			return false, errors.New("its first process ended at once")
		}
		name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(init.PID), "cmdline"))
		return err == nil && strings.HasPrefix(string(name), "whet-node-") && !strings.HasPrefix(string(name), "whet-node-init\x00"), nil
	})
}

// CrashNode ends everything of a node at once, as a power cut does.
func (c *Cluster) CrashNode(name string) error {
	node, err := c.node(name)
	if err != nil {
		return err
	}
	if err := node.Init.Kill(); err != nil {
		return err
	}
	c.progress.Step("node %s is off", name)
	return nil
}

// RestartNode switches a node off, if it is on, and on again, with its disk as it was.
func (c *Cluster) RestartNode(ctx context.Context, name string) error {
	node, err := c.node(name)
	if err != nil {
		return err
	}
	if err := node.Init.Kill(); err != nil {
		return err
	}
	if err := c.dropLink(ctx, node.Number); err != nil {
		return err
	}
	// A machine that boots has none, and the kubelet would look three seconds long for the dead container of each.
	if err := removeGroup(c.instance.NodeCgroup(node.Number)); err != nil {
		return err
	}
	// Images are on its disk.
	return c.bringUp(ctx, *node, nil)
}

// dropLink waits for the kernel to take the cable of a node that is gone: a new one has the same name.
func (c *Cluster) dropLink(ctx context.Context, number int) error {
	return await(ctx, "end of the network namespace", func() (bool, error) {
		_, err := net.InterfaceByName(c.instance.Veth(number))
		return err != nil, nil
	})
}

// RemoveNode takes a node out of the cluster for good.
func (c *Cluster) RemoveNode(ctx context.Context, name string) error {
	node, err := c.node(name)
	if err != nil {
		return err
	}
	if err := node.Init.Kill(); err != nil {
		return err
	}
	if err := c.deleteNodeObject(ctx, name); err != nil {
		return err
	}
	if err := c.dropLink(ctx, node.Number); err != nil {
		return err
	}
	// It may be missing where the node never came up.
	_ = runProgram("", "ip", "route", "delete", c.instance.NodePodSubnet(node.Number).String(), "dev", c.instance.Bridge())
	if err := removeGroup(c.instance.NodeCgroup(node.Number)); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir.Node(name)); err != nil {
		return err
	}
	if err := c.record.Change(func(s *state.State) {
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n state.Node) bool { return n.Name == name })
	}); err != nil {
		return err
	}
	c.progress.Step("node %s removed", name)
	return nil
}
