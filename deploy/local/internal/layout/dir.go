package layout

import "path/filepath"

// Dir is a cluster's folder: an absolute path. All that a cluster writes lies below it.
type Dir string

// ParseDir makes the path absolute, so that it means the same for every process.
func ParseDir(path string) (Dir, error) {
	absolute, err := filepath.Abs(path)
	return Dir(absolute), err
}

func (d Dir) join(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}

// State is the file that records what runs.
func (d Dir) State() string { return d.join("state.json") }

// Lock is the file that commands lock, so that two of them never change one cluster at once.
func (d Dir) Lock() string { return d.join("lock") }

// Kubeconfig is the administrator's.
func (d Dir) Kubeconfig() string { return d.join("admin.kubeconfig") }

// PKI is a file among the keys and certificates.
func (d Dir) PKI(name string) string { return d.join("pki", name) }

// Config is a component's kubeconfig or configuration file.
func (d Dir) Config(name string) string { return d.join("config", name) }

// Log is a component's log, or with a node's name a daemon's of that node.
func (d Dir) Log(name string) string { return d.join("log", name+".log") }

// Etcd is the database's folder.
func (d Dir) Etcd() string { return d.join("etcd") }

// Images is where built images lie.
func (d Dir) Images() string { return d.join("images") }

// Node is a file or folder of one node.
func (d Dir) Node(name string, parts ...string) string {
	return d.join(append([]string{"nodes", name}, parts...)...)
}
