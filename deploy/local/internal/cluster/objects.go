package cluster

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"whetstone.dev/local/internal/gpu"
	"whetstone.dev/local/internal/state"
)

// client speaks to the apiserver as the administrator.
func (c *Cluster) client() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.dir.Kubeconfig())
	if err != nil {
		return nil, err
	}
	// The client's own limit, 5 a second, is for nobody's good here.
	config.QPS, config.Burst = 200, 400
	return kubernetes.NewForConfig(config)
}

// addBootstrapObjects lets nodes join with a bootstrap token, and kube-proxy read what it needs.
func (c *Cluster) addBootstrapObjects(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	for _, binding := range []struct{ name, role, kind, subject string }{
		{"node-bootstrapper", "system:node-bootstrapper", rbacv1.GroupKind, "system:bootstrappers"},
		{"approve-new-nodes", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", rbacv1.GroupKind, "system:bootstrappers"},
		{"approve-renewals", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", rbacv1.GroupKind, "system:nodes"},
	} {
		if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "whetstone-local:" + binding.name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: binding.role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: binding.kind, Name: binding.subject}},
		}, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("role binding %s: %w", binding.name, err)
		}
	}
	// No pod can be made before its controller has made this one.
	return await(ctx, "service account `default`", func() (bool, error) {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, nil
	})
}

// awaitNode waits until the node is ready and offers its GPUs.
func (c *Cluster) awaitNode(ctx context.Context, node state.Node) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	snapshot := c.record.Snapshot()
	init := snapshot.Node(node.Name).Init
	boot, err := c.bootID(node.Name)
	if err != nil {
		return err
	}
	err = await(ctx, "ready", func() (bool, error) {
		if !init.Alive() {
			return false, fmt.Errorf("its first process ended")
		}
		object, err := client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
		if err != nil {
			// Not yet registered, or the apiserver is busy.
			return false, nil
		}
		offered := object.Status.Allocatable[gpu.Resource]
		// After a restart the object still says what was before.
		return object.Status.NodeInfo.BootID == boot && isReady(object) && offered.Value() >= int64(node.GPUs-c.unhealthyCount(node)), nil
	})
	if err != nil {
		return fmt.Errorf("%w; its kubelet's last line: %s", err, lastLine(c.dir.Log(node.Name+"-kubelet")))
	}
	return nil
}

func isReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (c *Cluster) deleteNodeObject(ctx context.Context, name string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	err = client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
