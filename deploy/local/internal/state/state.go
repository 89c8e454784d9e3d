// Package state records what a cluster consists of, so that a later command can act on exactly that.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/proc"
)

// version of the file; a command refuses one that it does not know.
const version = 1

// maxFile bounds what is read: a hundred nodes take some 50 KiB.
const maxFile = 4 << 20

// State is a cluster as recorded.
type State struct {
	Version  int             `json:"version"`
	Dir      layout.Dir      `json:"dir"`
	Instance layout.Instance `json:"instance"`
	// Binaries is the folder that the programs were started from.
	Binaries string `json:"binaries"`
	// Server is the apiserver's URL.
	Server     string `json:"server"`
	Kubeconfig string `json:"kubeconfig"`
	// Networked says that there is a bridge, so that there can be nodes.
	Networked bool `json:"networked"`
	// NodeGrace is how long a node may be silent before it counts as not ready.
	NodeGrace  time.Duration `json:"node_grace_ns"`
	Components []Component   `json:"components"`
	Nodes      []Node        `json:"nodes"`
	// Ready says that it once came up as a whole.
	Ready bool `json:"ready"`
}

// Component is a process of the control plane.
type Component struct {
	Name    string  `json:"name"`
	Process proc.ID `json:"process"`
	// Args and Env start it again.
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
}

// Node is a worker node.
type Node struct {
	Name   string `json:"name"`
	Number int    `json:"number"`
	// Address is its IP address on the bridge.
	Address string `json:"address"`
	// Init is process 1 of its namespaces, by its number on this machine: when it ends, all of the node ends.
	Init   proc.ID           `json:"init"`
	GPUs   int               `json:"gpus"`
	Labels map[string]string `json:"labels,omitempty"`
	Taints []string          `json:"taints,omitempty"`
}

// ErrNone says that there is no cluster in the folder.
var ErrNone = errors.New("no cluster here")

// Load reads what is recorded.
func Load(dir layout.Dir) (*State, error) {
	file, err := os.Open(dir.State())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%s: longer than %d bytes", dir.State(), maxFile)
	}
	var state State
	if err := json.Unmarshal(content, &state); err != nil {
		return nil, fmt.Errorf("%s: %w", dir.State(), err)
	}
	if state.Version != version {
		return nil, fmt.Errorf("%s: version %d, this program knows version %d", dir.State(), state.Version, version)
	}
	if state.Dir != dir {
		return nil, fmt.Errorf("%s: is of a cluster in %s", dir.State(), state.Dir)
	}
	if _, err := layout.ParseInstance(int(state.Instance)); err != nil {
		return nil, fmt.Errorf("%s: %w", dir.State(), err)
	}
	return &state, nil
}

// Component finds a process of the control plane by name; nil if there is none.
func (s *State) Component(name string) *Component {
	for i := range s.Components {
		if s.Components[i].Name == name {
			return &s.Components[i]
		}
	}
	return nil
}

// Node finds a node by name; nil if there is none.
func (s *State) Node(name string) *Node {
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return &s.Nodes[i]
		}
	}
	return nil
}

// FreeNumber is the lowest number that no node has; 0 if all are taken.
func (s *State) FreeNumber() int {
	taken := map[int]bool{}
	for _, node := range s.Nodes {
		taken[node.Number] = true
	}
	for number := 1; number <= layout.MaxNodes; number++ {
		if !taken[number] {
			return number
		}
	}
	return 0
}

// Recorder changes the record and its file together. It may be used from several goroutines.
type Recorder struct {
	mutex sync.Mutex
	state *State
}

// NewRecorder records into the state's folder from now on.
func NewRecorder(state *State) *Recorder {
	state.Version = version
	return &Recorder{state: state}
}

// Change applies the change and writes the file. Read under Change too, where others may write.
func (r *Recorder) Change(change func(*State)) error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	change(r.state)
	content, err := json.MarshalIndent(r.state, "", "  ")
	if err != nil {
		return err
	}
	// Renamed into place: a command that is killed leaves the old record or the new one.
	temporary := r.state.Dir.State() + ".new"
	if err := os.WriteFile(temporary, append(content, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, r.state.Dir.State())
}

// Snapshot is a copy of the record.
func (r *Recorder) Snapshot() State {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.state.Clone()
}

// Clone is a copy whose lists are its own.
func (s *State) Clone() State {
	copied := *s
	copied.Components = append([]Component(nil), s.Components...)
	copied.Nodes = append([]Node(nil), s.Nodes...)
	return copied
}

// ErrBusy says that another command changes the cluster.
var ErrBusy = errors.New("another whet-local command is changing this cluster")

// Lock keeps other commands from changing the cluster until released (or until this process ends). It waits as long
// as patience says for one that is at it.
func Lock(dir layout.Dir, patience time.Duration) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(dir.Lock()), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(dir.Lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			_ = file.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				err = ErrBusy
			}
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
	}
}
