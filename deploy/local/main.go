// Command kube is a whole Kubernetes in one file: every process of a cluster, the simulated GPU device plugin and
// the manager that runs them on one machine.
//
// One file, because its text is then in memory once however many of its processes run. Which program it is follows
// from the name that it is called by (symlinks), or from its first argument: `kube etcd …` is `etcd …`.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// program runs one of the built-in programs with os.Args as its command line and returns its exit code.
type program func() int

func main() {
	os.Exit(run())
}

func run() int {
	name := filepath.Base(os.Args[0])
	if start, ok := programs[name]; ok {
		return start()
	}
	if len(os.Args) > 1 {
		if start, ok := programs[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			return start()
		}
	}
	names := make([]string, 0, len(programs))
	for name := range programs {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprintf(os.Stderr, "kube: no such program; call it by one of these names, or give one first: %v\n", names)
	return 2
}
