// Package cluster brings a whole Kubernetes up on this machine, changes it and takes it down again.
package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/proc"
	"whetstone.dev/local/internal/state"
)

// InputError is an error of the caller's: a wrong argument, a taken port. Nothing was changed.
type InputError struct{ cause error }

func (e *InputError) Error() string { return e.cause.Error() }

// Unwrap gives what is wrong.
func (e *InputError) Unwrap() error { return e.cause }

// input says what is wrong with what was asked for.
func input(format string, values ...any) error {
	return &InputError{fmt.Errorf(format, values...)}
}

// Progress tells a person what has been done and how long it took.
type Progress struct {
	mutex   sync.Mutex
	to      io.Writer
	started time.Time
}

// NewProgress writes one line a step; to may be io.Discard.
func NewProgress(to io.Writer) *Progress {
	return &Progress{to: to, started: time.Now()}
}

// Step says that something is done, with the seconds since the start.
func (p *Progress) Step(format string, values ...any) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	// To a terminal that is gone there is nobody to tell.
	_, _ = fmt.Fprintf(p.to, "%6.1f s  %s\n", p.Seconds(), fmt.Sprintf(format, values...))
}

// Seconds since the start.
func (p *Progress) Seconds() float64 { return time.Since(p.started).Seconds() }

// Cluster is one that exists, or is about to.
type Cluster struct {
	record   *state.Recorder
	progress *Progress
	dir      layout.Dir
	instance layout.Instance
	binaries string
}

func newCluster(recorded *state.State, progress *Progress) *Cluster {
	return &Cluster{
		record:   state.NewRecorder(recorded),
		progress: progress,
		dir:      recorded.Dir,
		instance: recorded.Instance,
		binaries: recorded.Binaries,
	}
}

// Open takes hold of an existing cluster; release lets other commands at it again.
func Open(dir layout.Dir, progress *Progress) (cluster *Cluster, release func(), err error) {
	// Before the lock, which would make the folder.
	if _, err := state.Load(dir); err != nil {
		if errors.Is(err, state.ErrNone) {
			return nil, nil, input("%w", err)
		}
		return nil, nil, err
	}
	release, err = state.Lock(dir, lockPatience)
	if err != nil {
		return nil, nil, err
	}
	recorded, err := state.Load(dir)
	if err != nil {
		release()
		return nil, nil, err
	}
	return newCluster(recorded, progress), release, nil
}

// lockPatience is for another command to finish: starting a node takes seconds, many nodes a minute.
const lockPatience = 2 * time.Minute

// BinariesFolder is where this program and its other names lie.
func BinariesFolder() (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	own, err = filepath.EvalSymlinks(own)
	return filepath.Dir(own), err
}

// program is one of our programs by name. Most are one file, which goes by the name that it is called by.
func (c *Cluster) program(name string) string { return filepath.Join(c.binaries, name) }

// markers are in the environment of everything that is started, so that what no record names can still be found.
func (c *Cluster) markers() []string {
	return []string{dirMarker(c.dir), instanceMarker(c.instance)}
}

func dirMarker(dir layout.Dir) string { return "WHETSTONE_LOCAL_DIR=" + string(dir) }

func instanceMarker(instance layout.Instance) string {
	return "WHETSTONE_LOCAL_INSTANCE=" + strconv.Itoa(int(instance))
}

// start starts one of the programs in the background.
func (c *Cluster) start(name string, args, env []string, log string) (proc.ID, error) {
	return proc.Start(proc.Command{
		Path: c.program(name),
		Args: append([]string{name}, args...),
		Env:  append(c.markers(), env...),
		Log:  log,
	})
}

// writeFile writes a file that only its owner reads, and the folders above it.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

// Record is what the cluster consists of now.
func (c *Cluster) Record() state.State { return c.record.Snapshot() }
