package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"whetstone.dev/local/internal/layout"
)

// hierarchy is one tree of control groups: on version 1 there is one for each controller, on version 2 one for all.
type hierarchy struct {
	mount       string
	unified     bool
	controllers []string
}

func (h hierarchy) folder(name string) string { return filepath.Join(h.mount, name) }

// findHierarchies finds those that containerd and the kubelet put processes into: on a machine with both versions that
// is the first, and the second has no controllers.
func findHierarchies() ([]hierarchy, error) {
	all, err := mountedHierarchies()
	if err != nil {
		return nil, err
	}
	first := slices.DeleteFunc(slices.Clone(all), func(h hierarchy) bool { return h.unified })
	if len(first) > 0 {
		return first, nil
	}
	if len(all) == 0 {
		return nil, errors.New("no control groups are mounted")
	}
	return all[:1], nil
}

// mountedHierarchies finds them all.
func mountedHierarchies() ([]hierarchy, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	var all []hierarchy
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// ID parent dev root MOUNTPOINT options… - TYPE source super,options
		before, after, found := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 5 || len(rest) < 3 || !strings.HasPrefix(rest[0], "cgroup") {
			continue
		}
		all = append(all, hierarchy{mount: fields[4], unified: rest[0] == "cgroup2", controllers: strings.Split(rest[2], ",")})
	}
	return all, lines.Err()
}

// makeNodeCgroups makes a node's groups. The pods' groups are made by its kubelet below the node's; its daemons are in
// `system`, as version 2 allows no processes in a group that has others below it.
func (c *Cluster) makeNodeCgroups(number int) error {
	hierarchies, err := findHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		path := h.mount
		for _, part := range append(strings.Split(c.instance.NodeCgroup(number), "/"), daemonGroup) {
			if h.unified {
				if err := enableControllers(path); err != nil {
					return err
				}
			}
			parent := path
			path = filepath.Join(path, part)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if !h.unified && slices.Contains(h.controllers, "cpuset") {
				if err := inheritCpuset(parent, path); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const daemonGroup = "system"

// daemonGroups are the files that a daemon of the node writes its number into.
func (c *Cluster) daemonGroups(number int) ([]string, error) {
	hierarchies, err := findHierarchies()
	if err != nil {
		return nil, err
	}
	var files []string
	for _, h := range hierarchies {
		files = append(files, filepath.Join(h.folder(c.instance.NodeCgroup(number)), daemonGroup, "cgroup.procs"))
	}
	return files, nil
}

// inheritCpuset gives a new group its parent's processors: with none, no process may enter it.
func inheritCpuset(parent, group string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(group, name), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// enableControllers lets the groups below use every controller that the group itself has.
func enableControllers(group string) error {
	available, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(available)) {
		if err := os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+"+name), 0o644); err != nil {
			return fmt.Errorf("controller %s for %s: %w", name, group, err)
		}
	}
	return nil
}

// cgroupLimit is for the kernel to let go of the groups of processes that were just killed.
const cgroupLimit = 20 * time.Second

// removeCgroups removes all groups of the instance, whose processes are gone.
func removeCgroups(instance layout.Instance) error {
	return removeGroup(instance.Cgroup())
}

func removeGroup(name string) error {
	// In all: the container runtime also makes groups in a second version that nobody uses.
	hierarchies, err := mountedHierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(cgroupLimit)
	var failed []error
	for _, h := range hierarchies {
		path := h.folder(name)
		err := removeTree(path)
		for err != nil && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
			err = removeTree(path)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// removeTree removes a group and those below it: only folders can be removed there, their files go with them.
func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(path, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
