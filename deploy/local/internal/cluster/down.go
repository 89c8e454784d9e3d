package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/proc"
	"whetstone.dev/local/internal/state"
)

// Down takes a cluster down and leaves nothing of it. Where there is none it does nothing, and that is no error.
// With an instance it also removes what that instance left where its folder is lost.
func Down(dir layout.Dir, instance *layout.Instance, progress *Progress) error {
	recorded, err := state.Load(dir)
	if errors.Is(err, state.ErrNone) {
		return downWithoutRecord(dir, instance, progress)
	}
	if err != nil {
		return err
	}
	if instance != nil && *instance != recorded.Instance {
		return input("%s is instance %d, not %d", dir, recorded.Instance, *instance)
	}
	release, err := state.Lock(dir, lockPatience)
	if err != nil {
		return err
	}
	defer release()
	// Again: another command may have just changed it.
	recorded, err = state.Load(dir)
	if err != nil {
		return err
	}
	return newCluster(recorded, progress).down()
}

func downWithoutRecord(dir layout.Dir, instance *layout.Instance, progress *Progress) error {
	if err := killMarked(dirMarker(dir)); err != nil {
		return err
	}
	// What an `up` that was killed at its very first step leaves.
	if err := os.Remove(dir.Lock()); err == nil {
		_ = os.Remove(string(dir))
	}
	if instance != nil {
		if err := checkUnused(*instance); err != nil {
			return err
		}
		if err := removeNetwork(*instance); err != nil {
			return err
		}
		if err := removeCgroups(*instance); err != nil {
			return err
		}
		if err := restoreSysctls(); err != nil {
			return err
		}
	}
	progress.Step("no cluster in %s", dir)
	return nil
}

// checkUnused refuses if a cluster of this instance still runs, in whatever folder: its network is not ours to take.
func checkUnused(instance layout.Instance) error {
	if others := proc.Marked(instanceMarker(instance)); len(others) > 0 {
		return input("instance %d belongs to a cluster in another folder: process %d", instance, others[0].PID)
	}
	for _, port := range instance.Ports() {
		if err := checkPort(port); err != nil {
			return input("instance %d belongs to a cluster in another folder: port %d: %w", instance, port, err)
		}
	}
	return nil
}

// down removes everything of the cluster; what fails does not keep the rest from going.
func (c *Cluster) down() error {
	snapshot := c.record.Snapshot()
	var failed []error
	note := func(what string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", what, err))
		}
	}
	for _, node := range snapshot.Nodes {
		note("node "+node.Name, node.Init.Kill())
	}
	note("control plane", stopAll(snapshot.Components))
	note("processes", killMarked(dirMarker(c.dir)))
	if snapshot.Networked {
		note("network", removeNetwork(c.instance))
		note("cgroups", removeCgroups(c.instance))
		note("sysctls", restoreSysctls())
	}
	if len(failed) > 0 {
		// The record stays, so that `down` can be tried again.
		return errors.Join(failed...)
	}
	if err := os.RemoveAll(string(c.dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.progress.Step("nothing left of %s", c.dir)
	return nil
}
