// Package layout says where everything of a cluster lies: addresses, ports, names of links and groups, and files.
// It is pure: it follows from the instance, the folder and the number of a node, so that clusters never collide and
// what a cluster left behind can be found again.
package layout

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
)

const (
	// MaxInstances is how many clusters fit beside each other on one machine.
	MaxInstances = 10
	// MaxNodes bounds a cluster: a node costs about 80 MiB, and its number is part of an address's last octet.
	MaxNodes = 100
	// MaxGPUs bounds the simulated GPUs of a node; servers have 8, a whole NVLink domain 72.
	MaxGPUs = 72
	// ClusterDomain is the suffix of the names that the cluster's name server answers for.
	ClusterDomain = "cluster.local"
	// firstPort and portStep keep all listeners below 32768, where the kernel takes ports for outgoing connections.
	firstPort = 26000
	portStep  = 100
	// firstHost leaves room below the nodes for the bridge.
	firstHost = 10
)

// Instance is one of the clusters that can live side by side on a machine: 0 to MaxInstances-1.
type Instance int

// ParseInstance refuses a number for which there are no ports and addresses.
func ParseInstance(number int) (Instance, error) {
	if number < 0 || number >= MaxInstances {
		return 0, fmt.Errorf("instance %d: must be 0 to %d", number, MaxInstances-1)
	}
	return Instance(number), nil
}

func (i Instance) port(offset int) int { return firstPort + portStep*int(i) + offset }

// APIServerPort and the others are the TCP ports of the control plane.
func (i Instance) APIServerPort() int { return i.port(43) }

// EtcdPort is for etcd's clients (the apiserver).
func (i Instance) EtcdPort() int { return i.port(79) }

// EtcdPeerPort is etcd's own; there is one member, so nobody calls it.
func (i Instance) EtcdPeerPort() int { return i.port(80) }

// ControllerManagerPort serves its health and metrics.
func (i Instance) ControllerManagerPort() int { return i.port(57) }

// SchedulerPort serves its health and metrics.
func (i Instance) SchedulerPort() int { return i.port(59) }

// DNSPort is the name server's, on the bridge; pods use port 53 of its service.
func (i Instance) DNSPort() int { return i.port(53) }

// DNSReadyPort is where the name server says that it is ready.
func (i Instance) DNSReadyPort() int { return i.port(54) }

// Ports are all that the control plane listens on.
func (i Instance) Ports() []int {
	return []int{i.APIServerPort(), i.EtcdPort(), i.EtcdPeerPort(), i.ControllerManagerPort(), i.SchedulerPort(), i.DNSPort(), i.DNSReadyPort()}
}

// Bridge is the link on this machine that the nodes hang on.
func (i Instance) Bridge() string { return fmt.Sprintf("whet%d", i) }

// BridgeAddress is this machine's address on the bridge, and so the apiserver's when there are nodes.
func (i Instance) BridgeAddress() netip.Addr { return i.nodeNet(1) }

// NodeSubnet holds the bridge and the nodes.
func (i Instance) NodeSubnet() netip.Prefix { return netip.PrefixFrom(i.nodeNet(0), 24) }

// PodSubnet holds the pods of all nodes.
func (i Instance) PodSubnet() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200 + byte(i), 0, 0}), 16)
}

// ServiceSubnet holds the services' addresses.
func (i Instance) ServiceSubnet() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 220 + byte(i), 0, 0}), 16)
}

// FirstService is the address of the service `kubernetes` (the apiserver takes the first of the range).
func (i Instance) FirstService() netip.Addr { return i.ServiceSubnet().Addr().Next() }

// DNSService is the address of the name server, written into every pod's resolv.conf.
func (i Instance) DNSService() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 220 + byte(i), 0, 10})
}

func (i Instance) nodeNet(host byte) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 77, byte(i), host})
}

// NodeAddress is that of node number 1 to MaxNodes.
func (i Instance) NodeAddress(number int) netip.Addr { return i.nodeNet(byte(firstHost + number)) }

// NodePodSubnet is the part of PodSubnet that node number hands out to its pods.
func (i Instance) NodePodSubnet(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200 + byte(i), byte(number), 0}), 24)
}

// Veth is the host's end of node number's cable.
func (i Instance) Veth(number int) string { return fmt.Sprintf("whet%dn%d", i, number) }

// Cgroup is the folder, in each hierarchy, that everything of the instance's nodes lies in.
func (i Instance) Cgroup() string { return fmt.Sprintf("whet%d", i) }

// NodeCgroup is the folder of one node, below Cgroup.
func (i Instance) NodeCgroup(number int) string {
	return filepath.Join(i.Cgroup(), "n"+strconv.Itoa(number))
}

// Node names are DNS labels: they become host names, object names and parts of certificates.
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ParseNodeName refuses what cannot be a node's name.
func ParseNodeName(name string) (string, error) {
	if !nodeName.MatchString(name) {
		return "", fmt.Errorf("node name %q: must be 1 to 63 lower-case letters, digits or '-', with no '-' at an end", name)
	}
	return name, nil
}
