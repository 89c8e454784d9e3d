package layout

import (
	"net/netip"
	"testing"
)

func TestInstancesDoNotOverlap(t *testing.T) {
	ports := map[int]Instance{}
	var subnets []netip.Prefix
	for number := range MaxInstances {
		instance, err := ParseInstance(number)
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range instance.Ports() {
			if other, taken := ports[port]; taken {
				t.Errorf("port %d belongs to instances %d and %d", port, other, instance)
			}
			if port >= 32768 {
				t.Errorf("port %d is in the kernel's range for outgoing connections", port)
			}
			ports[port] = instance
		}
		for _, subnet := range []netip.Prefix{instance.NodeSubnet(), instance.PodSubnet(), instance.ServiceSubnet()} {
			for _, other := range subnets {
				if subnet.Overlaps(other) {
					t.Errorf("%v overlaps %v", subnet, other)
				}
			}
			subnets = append(subnets, subnet)
		}
	}
}

func TestAddressesLieInTheirSubnets(t *testing.T) {
	instance := Instance(MaxInstances - 1)
	seen := map[netip.Addr]bool{instance.BridgeAddress(): true}
	for number := 1; number <= MaxNodes; number++ {
		address := instance.NodeAddress(number)
		if !instance.NodeSubnet().Contains(address) || seen[address] {
			t.Errorf("node %d: address %v is outside its subnet or taken", number, address)
		}
		seen[address] = true
		if pods := instance.NodePodSubnet(number); !instance.PodSubnet().Overlaps(pods) {
			t.Errorf("node %d: pods %v are outside %v", number, pods, instance.PodSubnet())
		}
		// The kernel's limit for a link's name is 15 characters.
		if veth := instance.Veth(number); len(veth) > 15 {
			t.Errorf("node %d: link name %q is too long", number, veth)
		}
	}
	for _, address := range []netip.Addr{instance.FirstService(), instance.DNSService()} {
		if !instance.ServiceSubnet().Contains(address) {
			t.Errorf("%v is outside %v", address, instance.ServiceSubnet())
		}
	}
}

func TestBadNamesAndInstancesAreRefused(t *testing.T) {
	for _, number := range []int{-1, MaxInstances} {
		if _, err := ParseInstance(number); err == nil {
			t.Errorf("instance %d was accepted", number)
		}
	}
	for _, name := range []string{"", "Node1", "-a", "a-", "a.b", "a/b", "../x", string(make([]byte, 64))} {
		if _, err := ParseNodeName(name); err == nil {
			t.Errorf("node name %q was accepted", name)
		}
	}
	if _, err := ParseNodeName("b-003"); err != nil {
		t.Error(err)
	}
}
