// Package nodeinit is the first program of a simulated node: inside the node's new namespaces it gives the node its
// own folders, name and identity, and then becomes the node's process 1.
package nodeinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Spec is what the manager asks for; it is passed in a file.
type Spec struct {
	Hostname string `json:"hostname"`
	// Root is the node's folder: what it keeps over a restart.
	Root string `json:"root"`
	// Keep are folders that stay where they are, though the node covers /run and /var/lib with its own.
	Keep []string `json:"keep"`
	// Pause is the program that becomes process 1.
	Pause string `json:"pause"`
	// MachineID and BootID are what the kubelet reports: the one is the node's for ever, the other new at each start.
	MachineID string `json:"machine_id"`
	BootID    string `json:"boot_id"`
}

// Persistent are the folders of a node that outlive a restart, below its Root, and where the node sees them.
var Persistent = map[string]string{
	"kubelet":    "/var/lib/kubelet",
	"containerd": "/var/lib/containerd",
	"cni":        "/var/lib/cni",
	"log":        "/var/log",
}

// Main is the program; it does not return where all is well.
func Main() int {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "whet-node-init:", err)
		return 1
	}
	return 0
}

func run(args []string) error {
	if len(args) != 1 || os.Getpid() != 1 {
		return errors.New("started by whet-local only, as process 1 of new namespaces, with the name of a file")
	}
	content, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var spec Spec
	if err := json.Unmarshal(content, &spec); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	if err := syscall.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := mountAll(spec); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"net/ipv4/ip_forward": "1",
		// Pods of one node reach each other through services: the bridge has to show such packets to kube-proxy's rules.
		"net/bridge/bridge-nf-call-iptables": "1",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return err
		}
	}
	return syscall.Exec(spec.Pause, []string{"whet-node-" + spec.Hostname}, os.Environ())
}

func mountAll(spec Spec) error {
	// Nothing that is mounted from here on shows outside.
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return err
	}
	// Taken hold of now, as the mounts below may cover their paths.
	kept := map[string]*os.File{}
	for _, path := range spec.Keep {
		folder, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = folder.Close() }()
		kept[path] = folder
	}
	root, err := os.Open(spec.Root)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, covered := range coveredFolders {
		if err := mount("tmpfs", covered, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	for path, folder := range kept {
		if !isCovered(path) {
			continue
		}
		if err := bind(fmt.Sprintf("/proc/self/fd/%d", folder.Fd()), path); err != nil {
			return err
		}
	}
	for name, path := range Persistent {
		if err := bind(fmt.Sprintf("/proc/self/fd/%d/%s", root.Fd(), name), path); err != nil {
			return err
		}
	}
	if err := coverFile("/etc/machine-id", "machine-id", spec.MachineID); err != nil {
		return err
	}
	if err := coverFile("/proc/sys/kernel/random/boot_id", "boot-id", spec.BootID); err != nil {
		return err
	}
	// The kubelet's mounts for a pod have to reach the pod's own namespace.
	return mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
}

// coveredFolders are those that each node has to have for itself.
var coveredFolders = []string{"/run", "/var/lib"}

func isCovered(path string) bool {
	for _, covered := range coveredFolders {
		if strings.HasPrefix(path+"/", covered+"/") {
			return true
		}
	}
	return false
}

func bind(source, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return mount(source, target, "", syscall.MS_BIND|syscall.MS_REC, "")
}

// coverFile lays a file with the node's own content over one of the machine's, if the machine has it.
func coverFile(path, name, content string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	source := filepath.Join("/run", "whet-"+name)
	if err := os.WriteFile(source, []byte(content+"\n"), 0o444); err != nil {
		return err
	}
	return mount(source, path, "", syscall.MS_BIND, "")
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := syscall.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}
