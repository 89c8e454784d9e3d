package image

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// WithLibraries adds what the programs and libraries among the files need to be loaded: the loader and the shared
// libraries that they name, and those that these name. A static program needs none.
func WithLibraries(files []File) ([]File, error) {
	given := map[string]bool{}
	for _, file := range files {
		given[filepath.Base(file.Target)] = true
	}
	found := map[string]bool{}
	all := append([]File(nil), files...)
	for at := 0; at < len(all); at++ {
		if all[at].Source == "" {
			continue
		}
		loader, libraries, err := needs(all[at].Source)
		if err != nil {
			return nil, err
		}
		if loader != "" && !found[loader] {
			found[loader] = true
			all = append(all, File{Source: loader, Target: loader})
		}
		for _, library := range libraries {
			// One that the image brings itself is the one meant, such as a simulated driver library.
			// The loader, which libraries may name too, is placed where the program's header has it.
			if given[library] || found[library] || strings.HasPrefix(library, "ld-linux") {
				continue
			}
			found[library] = true
			path, err := findLibrary(library)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", all[at].Source, err)
			}
			all = append(all, File{Source: path, Target: path})
		}
	}
	if len(found) > 0 {
		// Without it the C library would look names up in DNS before /etc/hosts.
		all = append(all, File{Target: "/etc/nsswitch.conf", Content: []byte("passwd: files\ngroup: files\nhosts: files dns\n"), Mode: 0o644})
	}
	return all, nil
}

// needs reads the loader and the libraries that an ELF file names; other files need none.
func needs(path string) (loader string, libraries []string, err error) {
	file, err := elf.Open(path)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return "", nil, nil
		}
		return "", nil, err
	}
	defer func() { _ = file.Close() }()
	for _, program := range file.Progs {
		if program.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(io.LimitReader(program.Open(), 4096))
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", path, err)
		}
		loader = strings.TrimRight(string(name), "\x00")
	}
	libraries, err = file.ImportedLibraries()
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	return loader, libraries, nil
}

// libraryFolders are the loader's own defaults, which it also uses in an image without /etc/ld.so.cache.
var libraryFolders = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	"/lib64", "/usr/lib64", "/lib", "/usr/lib",
}

func findLibrary(name string) (string, error) {
	for _, folder := range libraryFolders {
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("needs %s, which is in none of %v", name, libraryFolders)
}
