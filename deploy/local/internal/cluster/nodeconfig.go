package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kubeletapi "k8s.io/kubelet/config/v1beta1"
	"k8s.io/kubernetes/pkg/util/taints"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/pki"
	"whetstone.dev/local/internal/state"
)

// NodeOptions are what a worker node is to be.
type NodeOptions struct {
	Name string
	// GPUs are the simulated ones; none is fine.
	GPUs   int
	Labels map[string]string
	// Taints are on the Node object from its first moment: the kubelet registers with them.
	Taints []string
}

// ParseLabels reads KEY=VALUE entries.
func ParseLabels(entries []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, entry := range entries {
		key, value, found := strings.Cut(entry, "=")
		if !found {
			return nil, input("label %q: must be KEY=VALUE", entry)
		}
		if problems := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...); len(problems) > 0 {
			return nil, input("label %q: %s", entry, strings.Join(problems, "; "))
		}
		labels[key] = value
	}
	return labels, nil
}

// CheckTaints refuses what is not KEY[=VALUE]:EFFECT.
func CheckTaints(entries []string) error {
	_, err := parseTaints(entries)
	return err
}

func parseTaints(entries []string) ([]corev1.Taint, error) {
	parsed, removed, err := taints.ParseTaints(entries)
	if err != nil {
		return nil, input("%w", err)
	}
	if len(removed) > 0 {
		return nil, input("taint %q: must be KEY=VALUE:EFFECT", removed[0].Key+"-")
	}
	return parsed, nil
}

// writeNodeFiles writes all that a node's daemons read. What names the node, its certificates too, is written once;
// a node that starts again finds it.
func (c *Cluster) writeNodeFiles(node state.Node, grace time.Duration, server string) error {
	authority, err := pki.LoadAuthority(c.dir.PKI("ca.crt"), c.dir.PKI("ca.key"))
	if err != nil {
		return err
	}
	address, err := netip.ParseAddr(node.Address)
	if err != nil {
		return err
	}
	serving, err := authority.Server("system:node:"+node.Name, []string{node.Name}, []netip.Addr{address}, time.Now())
	if err != nil {
		return err
	}
	kubelet, err := c.kubeletConfig(node, grace)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"kubelet.crt":              serving.Certificate,
		"kubelet.key":              serving.Key,
		"kubelet.json":             kubelet,
		"containerd.toml":          []byte(fmt.Sprintf(containerdConfig, cniFolder, c.dir.Node(node.Name, "cni.d"))),
		"cni.d/10-bridge.conflist": []byte(fmt.Sprintf(cniConfig, c.instance.NodePodSubnet(node.Number))),
		// Pods that ask for the node's own name servers get none: nothing outside is reachable.
		"resolv.conf": nil,
	} {
		if err := writeFile(c.dir.Node(node.Name, name), content); err != nil {
			return err
		}
	}
	return c.makeNodeKubeconfig(c.dir.Node(node.Name, "kubelet.kubeconfig"), server, node.Name)
}

// pauseImage holds a pod's namespaces.
const pauseImage = "localhost/whetstone-pause:1"

// containerdConfig wants the folders of CNI's plugins and configuration. Snapshotters that no node uses are left out:
// they only cost start-up time and complaints.
const containerdConfig = `version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`

// cniConfig wants the node's pod subnet.
const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

func (c *Cluster) kubeletConfig(node state.Node, grace time.Duration) ([]byte, error) {
	registered, err := parseTaints(node.Taints)
	if err != nil {
		return nil, err
	}
	memory, err := reservedMemory()
	if err != nil {
		return nil, err
	}
	yes, no, all := true, false, int32(100)
	resolv := c.dir.Node(node.Name, "resolv.conf")
	config := kubeletapi.KubeletConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: "kubelet.config.k8s.io/v1beta1", Kind: "KubeletConfiguration"},
		Authentication: kubeletapi.KubeletAuthentication{
			Anonymous: kubeletapi.KubeletAnonymousAuthentication{Enabled: &no},
			Webhook:   kubeletapi.KubeletWebhookAuthentication{Enabled: &yes},
			X509:      kubeletapi.KubeletX509Authentication{ClientCAFile: c.dir.PKI("ca.crt")},
		},
		Authorization:      kubeletapi.KubeletAuthorization{Mode: kubeletapi.KubeletAuthorizationModeWebhook},
		TLSCertFile:        c.dir.Node(node.Name, "kubelet.crt"),
		TLSPrivateKeyFile:  c.dir.Node(node.Name, "kubelet.key"),
		FailSwapOn:         &no,
		FailCgroupV1:       &no,
		CgroupDriver:       "cgroupfs",
		CgroupRoot:         "/" + c.instance.NodeCgroup(node.Number),
		RegisterWithTaints: registered,
		// A quarter of this is between two signs of life, so that a slow one does no harm.
		NodeLeaseDurationSeconds: int32(max(grace/time.Second, 4)),
		// How soon a change, such as a GPU that is not well, is told; the first is how often the kubelet looks.
		NodeStatusUpdateFrequency: metav1.Duration{Duration: 2 * time.Second},
		NodeStatusReportFrequency: metav1.Duration{Duration: 5 * time.Minute},
		// Each kubelet sees the whole machine.
		SystemReserved: map[string]string{"cpu": "100m", "memory": memory},
		// All nodes share the machine's memory and disk: what one would evict helps none.
		EvictionHard: map[string]string{
			"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
		ImageGCHighThresholdPercent:   &all,
		LocalStorageCapacityIsolation: &no,
		// Rules for old proxies; ours makes its own.
		MakeIPTablesUtilChains:   &no,
		ContainerRuntimeEndpoint: "unix:///run/containerd/containerd.sock",
		VolumePluginDir:          "/var/lib/kubelet/volume-plugins",
		ClusterDNS:               []string{c.instance.DNSService().String()},
		ClusterDomain:            layout.ClusterDomain,
		ResolverConfig:           &resolv,
	}
	return json.MarshalIndent(config, "", "  ")
}

// nodeMemory is what a node offers to pods, on a machine that has twice that: as much as would surprise nobody.
const nodeMemory = 8 << 30

// reservedMemory is all of the machine's but nodeMemory, or but half.
func reservedMemory() (string, error) {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(firstLine(string(content)))
	if len(fields) != 3 || fields[0] != "MemTotal:" || fields[2] != "kB" {
		return "", fmt.Errorf("/proc/meminfo begins with %q", firstLine(string(content)))
	}
	total, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return "", err
	}
	total *= 1 << 10
	return strconv.FormatInt(total-min(nodeMemory, total/2), 10), nil
}
