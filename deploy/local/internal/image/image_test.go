package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// readTar gives the regular files and folders of a tar stream, with their modes.
func readTar(t *testing.T, content []byte) (files map[string][]byte, modes map[string]int64) {
	t.Helper()
	files, modes = map[string][]byte{}, map[string]int64{}
	reader := tar.NewReader(bytes.NewReader(content))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return files, modes
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[header.Name]; twice {
			t.Errorf("%s is there twice", header.Name)
		}
		files[header.Name], modes[header.Name] = body, header.Mode
	}
}

func unmarshal(t *testing.T, content []byte, value any) {
	t.Helper()
	if err := json.Unmarshal(content, value); err != nil {
		t.Fatalf("%v in %s", err, content)
	}
}

func TestImageIsAnOCILayout(t *testing.T) {
	folder := t.TempDir()
	program := filepath.Join(folder, "program")
	if err := os.WriteFile(program, []byte("#!static\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := Spec{
		Name:       "localhost/x:1",
		Files:      []File{{Source: program, Target: "/opt/x/bin/program"}, {Target: "/etc/x.conf", Content: []byte("a=b\n"), Mode: 0o644}},
		Entrypoint: []string{"/opt/x/bin/program", "serve"},
		Env:        []string{"A=b"},
		User:       "65532:65532",
	}
	out := filepath.Join(folder, "images", "x.tar")
	if err := Write(spec, out); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := readTar(t, content)
	if string(files["oci-layout"]) != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s", files["oci-layout"])
	}
	// Every blob is named by what it is.
	for name, blob := range files {
		if digest, found := strings.CutPrefix(name, "blobs/sha256/"); found {
			if sum := sha256.Sum256(blob); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("%s holds something else", name)
			}
		}
	}
	var top index
	unmarshal(t, files["index.json"], &top)
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations["io.containerd.image.name"] != spec.Name {
		t.Fatalf("index %s", files["index.json"])
	}
	var listed manifest
	unmarshal(t, files[blobPath(top.Manifests[0].Digest)], &listed)
	var configuration config
	unmarshal(t, files[blobPath(listed.Config.Digest)], &configuration)
	if configuration.Config.User != spec.User || len(configuration.Config.Entrypoint) != 2 || configuration.OS != "linux" {
		t.Errorf("config %+v", configuration)
	}
	layer := files[blobPath(listed.Layers[0].Digest)]
	if len(listed.Layers) != 1 || int64(len(layer)) != listed.Layers[0].Size || configuration.RootFS.DiffIDs[0] != listed.Layers[0].Digest {
		t.Errorf("layers %+v, diff ids %v", listed.Layers, configuration.RootFS.DiffIDs)
	}
	tree, modes := readTar(t, layer)
	if string(tree["opt/x/bin/program"]) != "#!static\n" || modes["opt/x/bin/program"] != 0o755 || string(tree["etc/x.conf"]) != "a=b\n" {
		t.Errorf("tree %v, modes %v", tree, modes)
	}
	for folder, mode := range map[string]int64{"tmp/": 0o1777, "opt/": 0o755, "opt/x/": 0o755, "opt/x/bin/": 0o755} {
		if modes[folder] != mode {
			t.Errorf("folder %s has mode %o", folder, modes[folder])
		}
	}
	again := filepath.Join(folder, "again.tar")
	if err := Write(spec, again); err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(again); err != nil || !bytes.Equal(content, second) {
		t.Error("the same input gives other bytes")
	}
	if left, err := filepath.Glob(filepath.Join(folder, "images", ".image-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestBadImagesAreRefused(t *testing.T) {
	good := Spec{Name: "localhost/x:1", Entrypoint: []string{"/x"}, Files: []File{{Source: "/bin/x", Target: "/x"}}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(*Spec){
		"name without a host": func(s *Spec) { s.Name = "x:1" },
		"name without a tag":  func(s *Spec) { s.Name = "localhost/x" },
		"name that escapes":   func(s *Spec) { s.Name = "localhost/../x:1" },
		"no entrypoint":       func(s *Spec) { s.Entrypoint = nil },
		"user by name":        func(s *Spec) { s.User = "nobody" },
		"relative target":     func(s *Spec) { s.Files = []File{{Source: "/bin/x", Target: "x"}} },
		"target that escapes": func(s *Spec) { s.Files = []File{{Source: "/bin/x", Target: "/../x"}} },
		"two on one target":   func(s *Spec) { s.Files = append(s.Files, File{Source: "/bin/y", Target: "/x"}) },
	} {
		bad := good
		spoil(&bad)
		if err := bad.Check(); err == nil {
			t.Errorf("%s: accepted", what)
		}
		out := filepath.Join(t.TempDir(), "x.tar")
		if err := Write(bad, out); err == nil {
			t.Errorf("%s: written", what)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: a file is there", what)
		}
	}
}

func TestSharedLibrariesComeAlong(t *testing.T) {
	// This machine's own shell is a dynamic program.
	files, err := WithLibraries([]File{{Source: "/bin/sh", Target: "/bin/sh"}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		names = append(names, filepath.Base(file.Target))
	}
	all := strings.Join(names, " ")
	if !strings.Contains(all, "libc.so.6") || !strings.Contains(all, "ld-linux") {
		t.Errorf("only %s", all)
	}
	// A library that the image brings under the name that is needed is not replaced by the machine's.
	own := File{Source: "/bin/sh", Target: "/opt/sim/libc.so.6"}
	files, err = WithLibraries([]File{{Source: "/bin/sh", Target: "/bin/sh"}, own})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if filepath.Base(file.Target) == "libc.so.6" && file.Target != own.Target {
			t.Errorf("the machine's %s was added", file.Target)
		}
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if files, err := WithLibraries([]File{{Source: script, Target: "/script"}}); err != nil || len(files) != 1 {
		t.Errorf("a script needs %v (%v)", files, err)
	}
}

func TestFoldersAreExpanded(t *testing.T) {
	folder := t.TempDir()
	if _, err := Expand(folder, "/x"); err == nil {
		t.Error("an empty folder was accepted")
	}
	for _, name := range []string{"a", "sub/b"} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := Expand(folder, "/opt/x")
	if err != nil || len(files) != 2 || files[0].Target != "/opt/x/a" || files[1].Target != "/opt/x/sub/b" {
		t.Errorf("%v %v", files, err)
	}
	files, err = Expand(filepath.Join(folder, "a"), "/etc/a.conf")
	if err != nil || len(files) != 1 || files[0].Target != "/etc/a.conf" {
		t.Errorf("%v %v", files, err)
	}
	if _, err := Expand(filepath.Join(folder, "none"), "/x"); err == nil {
		t.Error("a missing file was accepted")
	}
}
