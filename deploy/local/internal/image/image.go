// Package image writes container images from nothing: no base image, no daemon, no registry.
//
// The result is an OCI image layout in one tar file (https://github.com/opencontainers/image-spec), which
// `ctr images import`, skopeo and docker read. The same input gives the same bytes.
package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"time"
)

// Spec says what an image is.
type Spec struct {
	// Name with a tag, such as localhost/x:1.
	Name string
	// Files go into the one layer.
	Files []File
	// Entrypoint is the command that a container runs.
	Entrypoint []string
	// Env entries are NAME=value.
	Env []string
	// User is uid or uid:gid, by number: there is no /etc/passwd. Empty: root.
	User string
}

// File is one regular file of an image.
type File struct {
	// Source on this machine; links are followed.
	Source string
	// Target is the absolute path in the image.
	Target string
	// Content is used where there is no Source.
	Content []byte
	// Mode of Content; a Source keeps its own.
	Mode os.FileMode
}

const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	// Not compressed: it is read on this machine only, and nodes unpack it much faster.
	mediaLayer = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type config struct {
	platform
	Config struct {
		User       string   `json:"User,omitempty"`
		Env        []string `json:"Env,omitempty"`
		Entrypoint []string `json:"Entrypoint,omitempty"`
		WorkingDir string   `json:"WorkingDir"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// A name of an image with a tag: host or first part, further parts, a tag.
var nameForm = regexp.MustCompile(`^[a-z0-9]+([._:-][a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// user ids by number.
var userForm = regexp.MustCompile(`^([0-9]{1,10}(:[0-9]{1,10})?)?$`)

// Check refuses what would give an image that no node can run.
func (s *Spec) Check() error {
	switch {
	case len(s.Name) > 255 || !nameForm.MatchString(s.Name):
		return fmt.Errorf("image name %q: must be like localhost/name:tag", s.Name)
	case len(s.Entrypoint) == 0:
		return errors.New("image without an entrypoint")
	case !userForm.MatchString(s.User):
		return fmt.Errorf("user %q: must be a number, or two with ':' between", s.User)
	}
	targets := map[string]string{}
	for _, file := range s.Files {
		if !filepath.IsAbs(file.Target) || filepath.Clean(file.Target) != file.Target || file.Target == "/" {
			return fmt.Errorf("target %q: must be a clean absolute path", file.Target)
		}
		if other, taken := targets[file.Target]; taken && other != file.Source {
			return fmt.Errorf("target %s: both %q and %q go there", file.Target, other, file.Source)
		}
		targets[file.Target] = file.Source
	}
	return nil
}

// Write writes the image to the file, which appears only when it is whole.
func Write(spec Spec, path string) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	folder, err := os.MkdirTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	layer, err := writeLayer(spec.Files, filepath.Join(folder, "layer"))
	if err != nil {
		return err
	}
	whole := filepath.Join(folder, "image")
	if err := writeArchive(spec, layer, whole); err != nil {
		return err
	}
	return os.Rename(whole, path)
}

type layerFile struct {
	path       string
	descriptor descriptor
}

func writeLayer(files []File, path string) (layerFile, error) {
	file, err := os.Create(path)
	if err != nil {
		return layerFile{}, err
	}
	defer func() { _ = file.Close() }()
	hash := sha256.New()
	counted := &counter{to: io.MultiWriter(file, hash)}
	if err := writeTree(counted, files); err != nil {
		return layerFile{}, err
	}
	return layerFile{path, descriptor{MediaType: mediaLayer, Digest: "sha256:" + hex.EncodeToString(hash.Sum(nil)), Size: counted.size}}, nil
}

func writeArchive(spec Spec, layer layerFile, path string) error {
	here := platform{Architecture: runtime.GOARCH, OS: "linux"}
	var configuration config
	configuration.platform = here
	configuration.Config.User = spec.User
	configuration.Config.Env = spec.Env
	configuration.Config.Entrypoint = spec.Entrypoint
	configuration.Config.WorkingDir = "/"
	configuration.RootFS.Type = "layers"
	configuration.RootFS.DiffIDs = []string{layer.descriptor.Digest}
	configJSON, configAt, err := blob(mediaConfig, configuration)
	if err != nil {
		return err
	}
	manifestJSON, manifestAt, err := blob(mediaManifest, manifest{2, mediaManifest, configAt, []descriptor{layer.descriptor}})
	if err != nil {
		return err
	}
	manifestAt.Platform = &here
	manifestAt.Annotations = map[string]string{
		"io.containerd.image.name":          spec.Name,
		"org.opencontainers.image.ref.name": spec.Name,
	}
	indexJSON, err := json.Marshal(index{2, mediaIndex, []descriptor{manifestAt}})
	if err != nil {
		return err
	}

	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	archive := tar.NewWriter(file)
	for _, entry := range []struct {
		name    string
		content []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", indexJSON},
		{blobPath(configAt.Digest), configJSON},
		{blobPath(manifestAt.Digest), manifestJSON},
	} {
		if err := addContent(archive, entry.name, 0o644, entry.content); err != nil {
			return err
		}
	}
	if err := addFile(archive, blobPath(layer.descriptor.Digest), layer.path); err != nil {
		return err
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return file.Close()
}

func blob(mediaType string, value any) ([]byte, descriptor, error) {
	content, err := json.Marshal(value)
	digest := sha256.Sum256(content)
	return content, descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(digest[:]), Size: int64(len(content))}, err
}

func blobPath(digest string) string { return "blobs/sha256/" + digest[len("sha256:"):] }

// counter counts what passes.
type counter struct {
	to   io.Writer
	size int64
}

func (c *counter) Write(content []byte) (int, error) {
	written, err := c.to.Write(content)
	c.size += int64(written)
	return written, err
}

// epoch is every file's time: the time of the build would make each image a new one.
var epoch = time.Unix(0, 0).UTC()
