package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"time"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/state"
)

// Options are what a cluster is to be.
type Options struct {
	Dir      layout.Dir
	Instance layout.Instance
	// Nodes may be none: a control plane alone.
	Nodes []NodeOptions
	// Network makes the bridge even so, for nodes that come later.
	Network bool
	// NodeGrace is how long a node may be silent before it counts as not ready.
	NodeGrace time.Duration
}

// Report is what `up` has to say.
type Report struct {
	Dir        layout.Dir      `json:"dir"`
	Instance   layout.Instance `json:"instance"`
	Server     string          `json:"server"`
	Kubeconfig string          `json:"kubeconfig"`
	Nodes      []string        `json:"nodes"`
	Seconds    Seconds         `json:"seconds"`
}

// Seconds are how long the parts took, from the start of the command.
type Seconds struct {
	ControlPlane float64 `json:"control_plane"`
	Total        float64 `json:"total"`
}

// Up starts a cluster. Where it fails nothing is left behind.
func Up(ctx context.Context, options Options, progress *Progress) (Report, error) {
	networked := options.Network || len(options.Nodes) > 0
	if err := checkFree(options, networked); err != nil {
		return Report{}, err
	}
	binaries, err := BinariesFolder()
	if err != nil {
		return Report{}, err
	}
	release, err := state.Lock(options.Dir, 0)
	if err != nil {
		return Report{}, input("%w", err)
	}
	defer release()
	c := newCluster(&state.State{
		Dir:        options.Dir,
		Instance:   options.Instance,
		Binaries:   binaries,
		Server:     serverURL(options.Instance, networked),
		Kubeconfig: options.Dir.Kubeconfig(),
		Networked:  networked,
		NodeGrace:  options.NodeGrace,
	}, progress)
	report, err := c.up(ctx, options, networked)
	if err != nil {
		progress.Step("failed; taking down what was started")
		return Report{}, errors.Join(err, c.down())
	}
	return report, nil
}

func (c *Cluster) up(ctx context.Context, options Options, networked bool) (Report, error) {
	// First the record: from here on `down` finds everything.
	if err := c.record.Change(func(*state.State) {}); err != nil {
		return Report{}, err
	}
	server := serverURL(c.instance, networked)
	if err := c.makeCredentials(server); err != nil {
		return Report{}, err
	}
	c.progress.Step("keys and certificates")
	if networked {
		if err := c.makeNetwork(); err != nil {
			return Report{}, err
		}
		c.progress.Step("bridge %s, %s", c.instance.Bridge(), c.instance.NodeSubnet())
	}
	if err := c.startControlPlane(ctx, options, networked); err != nil {
		return Report{}, err
	}
	seconds := Seconds{ControlPlane: c.progress.Seconds()}
	if err := c.addBootstrapObjects(ctx); err != nil {
		return Report{}, err
	}
	if networked {
		if err := c.startNameServer(ctx); err != nil {
			return Report{}, err
		}
		if err := c.addNodes(ctx, options.Nodes); err != nil {
			return Report{}, err
		}
		server := c.nameServer()
		if err := c.awaitComponent(ctx, server.name, server.health); err != nil {
			return Report{}, err
		}
		c.progress.Step("cluster DNS ready")
	}
	if err := c.record.Change(func(s *state.State) { s.Ready = true }); err != nil {
		return Report{}, err
	}
	seconds.Total = c.progress.Seconds()
	names := []string{}
	for _, node := range options.Nodes {
		names = append(names, node.Name)
	}
	return Report{c.dir, c.instance, server, c.dir.Kubeconfig(), names, seconds}, nil
}

func (c *Cluster) startControlPlane(ctx context.Context, options Options, networked bool) error {
	etcd, apiserver := c.etcd(), c.apiserver(networked)
	followers := []component{c.controllerManager(options.NodeGrace), c.scheduler()}
	for _, next := range []component{etcd, apiserver} {
		if err := c.startComponent(next); err != nil {
			return err
		}
		if err := c.awaitComponent(ctx, next.name, next.health); err != nil {
			return err
		}
		c.progress.Step("%s ready", next.name)
	}
	for _, next := range followers {
		if err := c.startComponent(next); err != nil {
			return err
		}
	}
	for _, next := range followers {
		if err := c.awaitComponent(ctx, next.name, next.health); err != nil {
			return err
		}
		c.progress.Step("%s ready", next.name)
	}
	return nil
}

// checkFree refuses where something is in the way, before anything is changed.
func checkFree(options Options, networked bool) error {
	if err := checkFolder(options.Dir); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, node := range options.Nodes {
		if seen[node.Name] {
			return input("two nodes are called %s", node.Name)
		}
		seen[node.Name] = true
	}
	if networked {
		if err := checkHost(); err != nil {
			return err
		}
		if err := checkLeftovers(options.Instance); err != nil {
			return err
		}
	}
	for _, port := range options.Instance.Ports() {
		if err := checkPort(port); err != nil {
			return input("port %d of instance %d is taken (%w): choose another --instance, or stop what holds it", port, options.Instance, err)
		}
	}
	return checkAddresses(options.Instance)
}

// checkPort says what is wrong if somebody listens on the port.
func checkPort(port int) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(loopback.String(), strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return listener.Close()
}

func checkFolder(dir layout.Dir) error {
	entries, err := os.ReadDir(string(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return input("%w", err)
	}
	if _, err := os.Stat(dir.State()); err == nil {
		return input("%s holds a cluster already; `whet-local down --dir %s` takes it down", dir, dir)
	}
	for _, entry := range entries {
		if dir.Lock() != string(dir)+"/"+entry.Name() {
			return input("%s is not empty (%s): `down` would delete it; name a folder that is new", dir, entry.Name())
		}
	}
	return nil
}

// hostPrograms are called for nodes; each is in a Debian package that build.sh installs.
var hostPrograms = []string{"ip", "nsenter", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "nft"}

const cniFolder = "/usr/lib/cni"

func checkHost() error {
	if os.Geteuid() != 0 {
		return input("nodes need root (namespaces, a bridge, containers); without --nodes a control plane runs as any user")
	}
	for _, program := range hostPrograms {
		if _, err := exec.LookPath(program); err != nil {
			return input("nodes need %s: %w; deploy/local/build.sh installs what is missing", program, err)
		}
	}
	for _, plugin := range []string{"bridge", "host-local", "loopback", "portmap"} {
		if _, err := os.Stat(cniFolder + "/" + plugin); err != nil {
			return input("nodes need the CNI plugin %s: %w", plugin, err)
		}
	}
	return nil
}

func checkLeftovers(instance layout.Instance) error {
	if _, err := net.InterfaceByName(instance.Bridge()); err == nil {
		return input("the bridge %s of instance %d exists: a cluster runs there, or was not taken down; `whet-local down --dir ITS-DIR --instance %d` removes it", instance.Bridge(), instance, instance)
	}
	groups, err := mountedHierarchies()
	if err != nil {
		return err
	}
	for _, group := range groups {
		path := group.folder(instance.Cgroup())
		if _, err := os.Stat(path); err == nil {
			return input("the cgroup %s of instance %d exists: a cluster runs there, or was not taken down; `whet-local down --dir ITS-DIR --instance %d` removes it", path, instance, instance)
		}
	}
	return nil
}

// checkAddresses refuses if this machine uses an address of the instance's ranges: packets would go astray.
func checkAddresses(instance layout.Instance) error {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, address := range addresses {
		used, err := netip.ParsePrefix(address.String())
		if err != nil {
			return fmt.Errorf("address %s of this machine: %w", address, err)
		}
		for _, wanted := range []netip.Prefix{instance.NodeSubnet(), instance.PodSubnet(), instance.ServiceSubnet()} {
			if used.Overlaps(wanted) {
				return input("this machine has the address %s, which overlaps %s of instance %d: choose another --instance", used, wanted, instance)
			}
		}
	}
	return nil
}
