// Command coredns is the cluster's name server: CoreDNS with only the plugins that the cluster's Corefile names.
//
// A module of its own: CoreDNS asks for newer k8s.io modules than the Kubernetes beside it has.
package main

import (
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() { coremain.Run() }
