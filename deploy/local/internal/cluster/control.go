package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"whetstone.dev/local/internal/proc"
	"whetstone.dev/local/internal/state"
)

const (
	// readyLimit is generous: on a machine that builds something at the same time the apiserver has taken half a minute.
	readyLimit = 2 * time.Minute
	// stopGrace is for a process to end by itself. The apiserver takes no new requests at once and ends those it has; then
	// it would wait a minute for those who watch.
	stopGrace = 3 * time.Second
)

// startComponent starts a process of the control plane and records it.
func (c *Cluster) startComponent(component component) error {
	id, err := c.start(component.name, component.args, component.env, c.dir.Log(component.name))
	if err != nil {
		return err
	}
	return c.record.Change(func(s *state.State) {
		s.Components = append(s.Components, state.Component{
			Name: component.name, Process: id, Args: component.args, Env: component.env,
		})
	})
}

// errInterrupted says that the caller wants no more of it.
var errInterrupted = errors.New("interrupted")

// awaitComponent waits until a started component answers that it is ready.
func (c *Cluster) awaitComponent(ctx context.Context, name string, health health) error {
	snapshot := c.record.Snapshot()
	recorded := snapshot.Component(name)
	if recorded == nil {
		return fmt.Errorf("%s is not recorded", name)
	}
	client, err := health.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	limited, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	var last error
	for {
		if last = ask(limited, client, health.url); last == nil {
			return nil
		}
		if !recorded.Process.Alive() {
			return fmt.Errorf("%s ended at once; its log's last line: %s", name, lastLine(c.dir.Log(name)))
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return errInterrupted
			}
			return fmt.Errorf("%s is not ready after %v: %w; its log: %s", name, readyLimit, last, c.dir.Log(name))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (h health) client() (*http.Client, error) {
	if h.authority == "" {
		return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}, nil
	}
	authority, err := os.ReadFile(h.authority)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s: no certificate", h.authority)
	}
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if h.certificate != "" {
		pair, err := tls.LoadX509KeyPair(h.certificate, h.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}, nil
}

func ask(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", url, response.Status, strings.TrimSpace(firstLine(string(body))))
	}
	return nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// lastLine of a log, for an error that a person reads.
func lastLine(path string) string {
	const tail = 4096
	file, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err == nil && info.Size() > tail {
		_, _ = file.Seek(-tail, io.SeekEnd)
	}
	content, err := io.ReadAll(io.LimitReader(file, tail))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return lines[len(lines)-1]
}

// FullName resolves the name of a component that a person typed.
func FullName(name string) (string, error) {
	if full, ok := componentNames[name]; ok {
		return full, nil
	}
	return "", input("component %q: must be etcd, apiserver, controller-manager, scheduler or coredns", name)
}

// StopComponent stops a process of the control plane: it may end in order, or is killed.
func (c *Cluster) StopComponent(name string, kill bool) error {
	recorded, err := c.recorded(name)
	if err != nil {
		return err
	}
	if !recorded.Process.Alive() {
		c.progress.Step("%s was not running", recorded.Name)
		return nil
	}
	if kill {
		err = recorded.Process.Kill()
	} else {
		err = recorded.Process.Stop(stopGrace)
	}
	if err == nil {
		c.progress.Step("%s stopped", recorded.Name)
	}
	return err
}

// StartComponent starts a process of the control plane again as it was, and waits until it is ready.
func (c *Cluster) StartComponent(ctx context.Context, name string) error {
	recorded, err := c.recorded(name)
	if err != nil {
		return err
	}
	if recorded.Process.Alive() {
		c.progress.Step("%s runs already", recorded.Name)
		return nil
	}
	id, err := c.start(recorded.Name, recorded.Args, recorded.Env, c.dir.Log(recorded.Name))
	if err != nil {
		return err
	}
	networked := false
	if err := c.record.Change(func(s *state.State) {
		s.Component(recorded.Name).Process = id
		networked = s.Networked
	}); err != nil {
		return errors.Join(err, id.Kill())
	}
	health, err := c.healthOf(recorded.Name, networked)
	if err != nil {
		return err
	}
	if err := c.awaitComponent(ctx, recorded.Name, health); err != nil {
		return err
	}
	c.progress.Step("%s ready", recorded.Name)
	return nil
}

func (c *Cluster) recorded(name string) (*state.Component, error) {
	full, err := FullName(name)
	if err != nil {
		return nil, err
	}
	snapshot := c.record.Snapshot()
	recorded := snapshot.Component(full)
	if recorded == nil {
		return nil, input("this cluster has no %s", full)
	}
	return recorded, nil
}

// stopAll ends the recorded processes, the apiserver before etcd, and says what did not end.
func stopAll(components []state.Component) error {
	var failed []error
	for i := len(components) - 1; i >= 0; i-- {
		// Nothing is kept, so nobody need end in order.
		if err := components[i].Process.Kill(); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", components[i].Name, err))
		}
	}
	return errors.Join(failed...)
}

// killMarked ends what the cluster started and no record names, such as a process begun just before a crash.
func killMarked(entry string) error {
	var failed []error
	for _, id := range proc.Marked(entry) {
		failed = append(failed, id.Kill())
	}
	return errors.Join(failed...)
}
