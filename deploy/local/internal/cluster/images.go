package cluster

import (
	"os"
	"path/filepath"
	"strings"

	"whetstone.dev/local/internal/image"
	"whetstone.dev/local/internal/layout"
)

// ImageFile is where an image of this name is put.
func ImageFile(dir layout.Dir, name string) string {
	last := name[strings.LastIndexByte(name, '/')+1:]
	return filepath.Join(dir.Images(), strings.ReplaceAll(last, ":", "-")+".tar")
}

// systemImages makes the images that every node needs, once.
func (c *Cluster) systemImages() ([]string, error) {
	file := ImageFile(c.dir, pauseImage)
	if _, err := os.Stat(file); err == nil {
		return []string{file}, nil
	}
	return []string{file}, image.Write(image.Spec{
		Name:       pauseImage,
		Files:      []image.File{{Source: c.program("pause"), Target: "/bin/pause"}},
		Entrypoint: []string{"/bin/pause"},
	}, file)
}

// LoadImages gives images to every node that runs.
func (c *Cluster) LoadImages(files []string) error {
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
			return input("image %s: not a file that can be read", file)
		}
	}
	loaded := 0
	for _, node := range c.record.Snapshot().Nodes {
		if !node.Init.Alive() {
			c.progress.Step("node %s is off: it gets no images", node.Name)
			continue
		}
		if err := c.importImages(node, files); err != nil {
			return err
		}
		loaded++
	}
	c.progress.Step("%d images on %d nodes", len(files), loaded)
	return nil
}
