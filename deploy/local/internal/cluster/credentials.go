package cluster

import (
	"net/netip"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientapi "k8s.io/client-go/tools/clientcmd/api"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/pki"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// makeCredentials makes all keys, certificates and kubeconfigs of the control plane.
func (c *Cluster) makeCredentials(server string) error {
	now := time.Now()
	authority, err := pki.NewAuthority("whetstone-local", now)
	if err != nil {
		return err
	}
	if err := c.writePair("ca", authority.Pair); err != nil {
		return err
	}
	if err := c.makeServerCredentials(authority, now); err != nil {
		return err
	}
	if err := c.makeEtcdCredentials(now); err != nil {
		return err
	}
	if err := c.makeFrontProxyCredentials(now); err != nil {
		return err
	}
	private, public, err := pki.SigningKey()
	if err != nil {
		return err
	}
	if err := writeFile(c.dir.PKI("sa.key"), private); err != nil {
		return err
	}
	if err := writeFile(c.dir.PKI("sa.pub"), public); err != nil {
		return err
	}
	masters := []string{"system:masters"}
	kubelet, err := authority.Client("kube-apiserver-kubelet-client", masters, now)
	if err != nil {
		return err
	}
	if err := c.writePair("apiserver-kubelet", kubelet); err != nil {
		return err
	}
	for _, user := range []struct {
		path, name string
		groups     []string
	}{
		{c.dir.Kubeconfig(), "kubernetes-admin", masters},
		{c.dir.Config("controller-manager.kubeconfig"), "system:kube-controller-manager", nil},
		{c.dir.Config("scheduler.kubeconfig"), "system:kube-scheduler", nil},
		{c.dir.Config("kube-proxy.kubeconfig"), "system:kube-proxy", nil},
		{c.dir.Config("coredns.kubeconfig"), dnsUser, nil},
	} {
		if err := writeKubeconfig(authority, user.path, server, user.name, user.groups, now); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) makeServerCredentials(authority *pki.Authority, now time.Time) error {
	hosts := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + layout.ClusterDomain}
	addresses := []netip.Addr{loopback, c.instance.BridgeAddress(), c.instance.FirstService()}
	server, err := authority.Server("kube-apiserver", hosts, addresses, now)
	if err != nil {
		return err
	}
	if err := c.writePair("apiserver", server); err != nil {
		return err
	}
	// Given one, the controller manager and the scheduler need not make an RSA key each at every start.
	local, err := authority.Server("localhost", []string{"localhost"}, []netip.Addr{loopback}, now)
	if err != nil {
		return err
	}
	return c.writePair("localhost", local)
}

// makeEtcdCredentials uses an authority of etcd's own: whoever etcd lets in reads and writes every secret, and the
// cluster's authority also signs for nodes and people.
func (c *Cluster) makeEtcdCredentials(now time.Time) error {
	authority, err := pki.NewAuthority("whetstone-local-etcd", now)
	if err != nil {
		return err
	}
	if err := writeFile(c.dir.PKI("etcd-ca.crt"), authority.Certificate); err != nil {
		return err
	}
	server, err := authority.Peer("etcd", []string{"localhost"}, []netip.Addr{loopback}, now)
	if err != nil {
		return err
	}
	if err := c.writePair("etcd", server); err != nil {
		return err
	}
	client, err := authority.Client("kube-apiserver", nil, now)
	if err != nil {
		return err
	}
	return c.writePair("apiserver-etcd", client)
}

// makeFrontProxyCredentials lets aggregated API servers know that a request came through the apiserver.
func (c *Cluster) makeFrontProxyCredentials(now time.Time) error {
	authority, err := pki.NewAuthority("whetstone-local-front-proxy", now)
	if err != nil {
		return err
	}
	if err := writeFile(c.dir.PKI("front-proxy-ca.crt"), authority.Certificate); err != nil {
		return err
	}
	client, err := authority.Client(frontProxyName, nil, now)
	if err != nil {
		return err
	}
	return c.writePair("front-proxy", client)
}

const frontProxyName = "front-proxy-client"

// makeNodeKubeconfig is what a node's kubelet joins with: RBAC and NodeRestriction know it by name and group.
func (c *Cluster) makeNodeKubeconfig(path, server, node string) error {
	authority, err := pki.LoadAuthority(c.dir.PKI("ca.crt"), c.dir.PKI("ca.key"))
	if err != nil {
		return err
	}
	return writeKubeconfig(authority, path, server, "system:node:"+node, []string{"system:nodes"}, time.Now())
}

func (c *Cluster) writePair(name string, pair pki.Pair) error {
	if err := writeFile(c.dir.PKI(name+".crt"), pair.Certificate); err != nil {
		return err
	}
	return writeFile(c.dir.PKI(name+".key"), pair.Key)
}

func writeKubeconfig(authority *pki.Authority, path, server, user string, groups []string, now time.Time) error {
	pair, err := authority.Client(user, groups, now)
	if err != nil {
		return err
	}
	const name = "whetstone-local"
	config := clientapi.NewConfig()
	config.Clusters[name] = &clientapi.Cluster{Server: server, CertificateAuthorityData: authority.Certificate}
	config.AuthInfos[user] = &clientapi.AuthInfo{ClientCertificateData: pair.Certificate, ClientKeyData: pair.Key}
	config.Contexts[name] = &clientapi.Context{Cluster: name, AuthInfo: user}
	config.CurrentContext = name
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return writeFile(path, content)
}
