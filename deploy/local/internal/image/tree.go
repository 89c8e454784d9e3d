package image

import (
	"archive/tar"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// writeTree writes the files and the folders that they lie in as a tar stream.
func writeTree(to io.Writer, files []File) error {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Target, b.Target) })
	archive := tar.NewWriter(to)
	folders := map[string]bool{"/": true}
	// A place for temporary files, as programs expect one.
	if err := addFolder(archive, folders, "/tmp", 0o1777); err != nil {
		return err
	}
	last := ""
	for _, file := range files {
		if file.Target == last {
			continue
		}
		last = file.Target
		if err := addParents(archive, folders, file.Target); err != nil {
			return err
		}
		name := file.Target[1:]
		var err error
		if file.Source == "" {
			err = addContent(archive, name, file.Mode, file.Content)
		} else {
			err = addFile(archive, name, file.Source)
		}
		if err != nil {
			return err
		}
	}
	return archive.Close()
}

func addParents(archive *tar.Writer, folders map[string]bool, target string) error {
	parent := path.Dir(target)
	if folders[parent] {
		return nil
	}
	if err := addParents(archive, folders, parent); err != nil {
		return err
	}
	return addFolder(archive, folders, parent, 0o755)
}

func addFolder(archive *tar.Writer, folders map[string]bool, folder string, mode int64) error {
	folders[folder] = true
	return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder[1:] + "/", Mode: mode, ModTime: epoch, Format: tar.FormatPAX})
}

func addContent(archive *tar.Writer, name string, mode os.FileMode, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode.Perm()), Size: int64(len(content)), ModTime: epoch, Format: tar.FormatPAX}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

func addFile(archive *tar.Writer, name, source string) error {
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", source)
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: epoch, Format: tar.FormatPAX}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	if _, err := io.Copy(archive, file); err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	return nil
}

// maxFiles bounds a folder given by mistake, such as a whole file system.
const maxFiles = 10_000

// Expand turns a file or folder on this machine into the files of an image at the target.
func Expand(source, target string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// Links are followed, to files only; a link to a folder could lead anywhere.
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return nil
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s: neither a file nor a folder", path)
		}
		below, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		if len(files) == maxFiles {
			return fmt.Errorf("%s: more than %d files", source, maxFiles)
		}
		files = append(files, File{Source: path, Target: filepath.Join(target, below)})
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s: an empty folder", source)
	}
	return files, err
}
