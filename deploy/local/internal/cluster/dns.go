package cluster

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"whetstone.dev/local/internal/layout"
)

const (
	// dnsUser is who the name server is to the apiserver.
	dnsUser    = "system:coredns"
	dnsService = "kube-dns"
	system     = metav1.NamespaceSystem
)

// corefile wants the port, the address, where to say that it is ready, the domain and a kubeconfig. It answers for the
// cluster's names only: nothing outside is reachable, so nothing is forwarded.
const corefile = `.:%d {
    bind %s
    errors
    ready %s
    kubernetes %s in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
        ttl 5
    }
    cache 5
}
`

// nameServer is CoreDNS beside the control plane, not in a pod: it needs no node that is well and takes pods, it is
// there before the first pod, and no node has to hold its image. Pods reach it through a service, as everywhere.
func (c *Cluster) nameServer() component {
	ready := loopback.String() + ":" + strconv.Itoa(c.instance.DNSReadyPort())
	return component{
		name:   NameServer,
		args:   []string{"-conf", c.dir.Config("Corefile")},
		env:    smallerHeap,
		health: health{url: "http://" + ready + "/ready"},
	}
}

func (c *Cluster) startNameServer(ctx context.Context) error {
	server := c.nameServer()
	ready := loopback.String() + ":" + strconv.Itoa(c.instance.DNSReadyPort())
	content := fmt.Sprintf(corefile, c.instance.DNSPort(), c.instance.BridgeAddress(), ready, layout.ClusterDomain, c.dir.Config("coredns.kubeconfig"))
	if err := writeFile(c.dir.Config("Corefile"), []byte(content)); err != nil {
		return err
	}
	if err := c.addNameObjects(ctx); err != nil {
		return err
	}
	return c.startComponent(server)
}

// addNameObjects lets the name server read what it answers with, and gives pods its address.
func (c *Cluster) addNameObjects(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	if _, err := client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: dnsUser},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: dnsUser},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: dnsUser},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: dnsUser}},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := client.CoreV1().Services(system).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: dnsService, Labels: map[string]string{"k8s-app": "kube-dns"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: c.instance.DNSService().String(),
			Ports: []corev1.ServicePort{
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
				{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP},
			},
		},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	port, ready := int32(c.instance.DNSPort()), true
	udp, tcp, udpName, tcpName := corev1.ProtocolUDP, corev1.ProtocolTCP, "dns", "dns-tcp"
	_, err = client.DiscoveryV1().EndpointSlices(system).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: dnsService, Labels: map[string]string{discoveryv1.LabelServiceName: dnsService}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{c.instance.BridgeAddress().String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}},
		Ports: []discoveryv1.EndpointPort{
			{Name: &udpName, Port: &port, Protocol: &udp},
			{Name: &tcpName, Port: &port, Protocol: &tcp},
		},
	}, metav1.CreateOptions{})
	return err
}
