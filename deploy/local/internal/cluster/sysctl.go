package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"whetstone.dev/local/internal/layout"
)

// sysctlRecord holds the values from before the first cluster with nodes; the last one that goes puts them back.
const sysctlRecord = "/run/whetstone-local-sysctls.json"

// raised are limits that many nodes need: each kubelet, containerd and pod watches files.
var raised = map[string]int{
	"fs/inotify/max_user_instances": 8192,
	"fs/inotify/max_user_watches":   524288,
}

// changedByKubelet are those of the whole machine that every kubelet sets at its start.
var changedByKubelet = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

func sysctlPath(name string) string { return filepath.Join("/proc/sys", name) }

func readSysctl(name string) (string, error) {
	content, err := os.ReadFile(sysctlPath(name))
	return strings.TrimSpace(string(content)), err
}

func writeSysctl(name, value string) error {
	return os.WriteFile(sysctlPath(name), []byte(value), 0o644)
}

// raiseSysctls saves the values of this machine and raises what nodes need.
func raiseSysctls() error {
	if _, err := os.Stat(sysctlRecord); errors.Is(err, fs.ErrNotExist) {
		if err := saveSysctls(); err != nil {
			return err
		}
	}
	for name, wanted := range raised {
		value, err := readSysctl(name)
		if err != nil {
			return err
		}
		if now, err := strconv.Atoi(value); err == nil && now >= wanted {
			continue
		}
		if err := writeSysctl(name, strconv.Itoa(wanted)); err != nil {
			return err
		}
	}
	return nil
}

func saveSysctls() error {
	before := map[string]string{}
	names := append([]string(nil), changedByKubelet...)
	for name := range raised {
		names = append(names, name)
	}
	for _, name := range names {
		value, err := readSysctl(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		before[name] = value
	}
	content, err := json.Marshal(before)
	if err != nil {
		return err
	}
	return os.WriteFile(sysctlRecord, content, 0o600)
}

// restoreSysctls puts the values back once no cluster with nodes is left.
func restoreSysctls() error {
	for number := range layout.MaxInstances {
		if _, err := net.InterfaceByName(layout.Instance(number).Bridge()); err == nil {
			return nil
		}
	}
	content, err := os.ReadFile(sysctlRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	before := map[string]string{}
	if err := json.Unmarshal(content, &before); err != nil {
		return fmt.Errorf("%s: %w", sysctlRecord, err)
	}
	known := map[string]bool{}
	for _, name := range changedByKubelet {
		known[name] = true
	}
	for name, value := range before {
		if _, ok := raised[name]; !ok && !known[name] {
			return fmt.Errorf("%s: unknown setting %q", sysctlRecord, name)
		}
		if err := writeSysctl(name, value); err != nil {
			return err
		}
	}
	return os.Remove(sysctlRecord)
}
