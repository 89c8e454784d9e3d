package cluster

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"whetstone.dev/local/internal/layout"
)

// Names of the control plane's processes, in the order in which they start.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	NameServer        = "coredns"
)

// componentNames also has the short names that a person may use.
var componentNames = map[string]string{
	Etcd: Etcd, APIServer: APIServer, ControllerManager: ControllerManager, Scheduler: Scheduler, NameServer: NameServer,
	"apiserver": APIServer, "controller-manager": ControllerManager, "scheduler": Scheduler,
}

// component is what a process of the control plane is started with and how it says that it is well.
type component struct {
	name   string
	args   []string
	env    []string
	health health
}

// health is a URL that answers 200 when the process is ready; only etcd asks for a client certificate.
type health struct {
	url, authority, certificate, key string
}

func (c *Cluster) localURL(port int) string {
	return "https://" + net.JoinHostPort(loopback.String(), strconv.Itoa(port))
}

// serverURL is the apiserver's: with nodes it is on the bridge, which pods and nodes reach and no other machine does.
func serverURL(instance layout.Instance, networked bool) string {
	return "https://" + net.JoinHostPort(serverAddress(instance, networked), strconv.Itoa(instance.APIServerPort()))
}

func serverAddress(instance layout.Instance, networked bool) string {
	if networked {
		return instance.BridgeAddress().String()
	}
	return loopback.String()
}

// smallerHeap trades a little CPU time for memory where there is hardly any load.
var smallerHeap = []string{"GOGC=50"}

// The controllers' own default, 20 requests a second, makes them take five seconds to begin.
const (
	clientRate  = "--kube-api-qps=500"
	clientBurst = "--kube-api-burst=1000"
)

func (c *Cluster) etcd() component {
	client, peer := c.localURL(c.instance.EtcdPort()), c.localURL(c.instance.EtcdPeerPort())
	certificate, key, authority := c.dir.PKI("etcd.crt"), c.dir.PKI("etcd.key"), c.dir.PKI("etcd-ca.crt")
	return component{
		name: Etcd,
		args: []string{
			"--data-dir=" + c.dir.Etcd(),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=default=" + peer,
			"--cert-file=" + certificate, "--key-file=" + key, "--trusted-ca-file=" + authority, "--client-cert-auth",
			"--peer-cert-file=" + certificate, "--peer-key-file=" + key, "--peer-trusted-ca-file=" + authority, "--peer-client-cert-auth",
			// There is one member: it need not wait for the votes of others.
			"--heartbeat-interval=20", "--election-timeout=100",
			// The data lives no longer than the machine is up: a power cut may lose it, a killed process does not.
			"--unsafe-no-fsync",
			// 5,000 blades with their history of revisions fit; past it etcd refuses writes with a clear error.
			"--quota-backend-bytes=4294967296",
			"--auto-compaction-mode=periodic", "--auto-compaction-retention=5m",
			"--log-level=warn",
		},
		health: health{client + "/health", authority, c.dir.PKI("apiserver-etcd.crt"), c.dir.PKI("apiserver-etcd.key")},
	}
}

func (c *Cluster) apiserver(networked bool) component {
	address := serverAddress(c.instance, networked)
	args := []string{
		"--bind-address=" + address,
		"--secure-port=" + strconv.Itoa(c.instance.APIServerPort()),
		"--etcd-servers=" + c.localURL(c.instance.EtcdPort()),
		"--etcd-cafile=" + c.dir.PKI("etcd-ca.crt"),
		"--etcd-certfile=" + c.dir.PKI("apiserver-etcd.crt"),
		"--etcd-keyfile=" + c.dir.PKI("apiserver-etcd.key"),
		"--tls-cert-file=" + c.dir.PKI("apiserver.crt"),
		"--tls-private-key-file=" + c.dir.PKI("apiserver.key"),
		"--client-ca-file=" + c.dir.PKI("ca.crt"),
		"--kubelet-client-certificate=" + c.dir.PKI("apiserver-kubelet.crt"),
		"--kubelet-client-key=" + c.dir.PKI("apiserver-kubelet.key"),
		// Node names are not in any DNS.
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-key-file=" + c.dir.PKI("sa.pub"),
		"--service-account-signing-key-file=" + c.dir.PKI("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--requestheader-client-ca-file=" + c.dir.PKI("front-proxy-ca.crt"),
		"--requestheader-allowed-names=" + frontProxyName,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + c.dir.PKI("front-proxy.crt"),
		"--proxy-client-key-file=" + c.dir.PKI("front-proxy.key"),
		// No kube-proxy runs beside the apiserver: webhooks and aggregated APIs are called by pod address.
		"--enable-aggregator-routing=true",
		"--enable-bootstrap-token-auth",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=" + c.instance.ServiceSubnet().String(),
		"--allow-privileged=true",
		// Taints a node in the very request that registers it.
		"--feature-gates=MutatingAdmissionPolicy=true",
		"--runtime-config=admissionregistration.k8s.io/v1beta1=true",
		"--profiling=false",
	}
	if networked {
		args = append(args, "--advertise-address="+address)
	} else {
		// There is nobody to route to it, and a loopback address is refused as an endpoint.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	return component{
		name:   APIServer,
		args:   args,
		health: health{url: serverURL(c.instance, networked) + "/readyz", authority: c.dir.PKI("ca.crt")},
	}
}

func (c *Cluster) controllerManager(nodeGrace time.Duration) component {
	port := c.instance.ControllerManagerPort()
	return component{
		name: ControllerManager,
		args: []string{
			"--bind-address=" + loopback.String(),
			"--secure-port=" + strconv.Itoa(port),
			"--tls-cert-file=" + c.dir.PKI("localhost.crt"),
			"--tls-private-key-file=" + c.dir.PKI("localhost.key"),
			"--kubeconfig=" + c.dir.Config("controller-manager.kubeconfig"),
			"--use-service-account-credentials",
			"--service-account-private-key-file=" + c.dir.PKI("sa.key"),
			"--root-ca-file=" + c.dir.PKI("ca.crt"),
			"--cluster-signing-cert-file=" + c.dir.PKI("ca.crt"),
			"--cluster-signing-key-file=" + c.dir.PKI("ca.key"),
			"--controllers=*,bootstrap-signer-controller,token-cleaner-controller",
			"--node-monitor-grace-period=" + nodeGrace.String(),
			"--node-monitor-period=" + max(nodeGrace/10, time.Second).String(),
			"--leader-elect=false",
			"--profiling=false",
			clientRate, clientBurst,
		},
		env:    smallerHeap,
		health: health{url: c.localURL(port) + "/healthz", authority: c.dir.PKI("ca.crt")},
	}
}

func (c *Cluster) scheduler() component {
	port := c.instance.SchedulerPort()
	return component{
		name: Scheduler,
		args: []string{
			"--bind-address=" + loopback.String(),
			"--secure-port=" + strconv.Itoa(port),
			"--tls-cert-file=" + c.dir.PKI("localhost.crt"),
			"--tls-private-key-file=" + c.dir.PKI("localhost.key"),
			"--kubeconfig=" + c.dir.Config("scheduler.kubeconfig"),
			"--leader-elect=false",
			"--profiling=false",
			clientRate, clientBurst,
		},
		env:    smallerHeap,
		health: health{url: c.localURL(port) + "/readyz", authority: c.dir.PKI("ca.crt")},
	}
}

// healthOf finds how a recorded component says that it is well.
func (c *Cluster) healthOf(name string, networked bool) (health, error) {
	for _, component := range []component{c.etcd(), c.apiserver(networked), c.controllerManager(0), c.scheduler(), c.nameServer()} {
		if component.name == name {
			return component.health, nil
		}
	}
	return health{}, fmt.Errorf("unknown component %q in the record", name)
}
