package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"whetstone.dev/local/internal/cluster"
	"whetstone.dev/local/internal/image"
)

func (s *shell) image() *cobra.Command {
	command := &cobra.Command{
		Use:   "image",
		Short: "Build container images without a daemon, and give them to the nodes",
		Args:  unknownCommand,
		RunE: func(*cobra.Command, []string) error {
			return usageError{fmt.Errorf("image: name a command; see --help")}
		},
	}
	command.AddCommand(s.imageBuild(), &cobra.Command{
		Use:   "load FILE...",
		Short: "Give images to every node that runs",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return s.with(func(c *cluster.Cluster) error { return c.LoadImages(args) })
		},
	})
	return command
}

// imageFlags are what `image build` is told.
type imageFlags struct {
	name, user, out                  string
	binaries, files, entrypoint, env []string
}

// spec gathers the image's files.
func (f *imageFlags) spec() (image.Spec, error) {
	var files []image.File
	for _, binary := range f.binaries {
		files = append(files, image.File{Source: binary, Target: "/bin/" + filepath.Base(binary)})
	}
	for _, entry := range f.files {
		source, target, found := strings.Cut(entry, ":")
		if !found || !filepath.IsAbs(target) {
			return image.Spec{}, usageError{fmt.Errorf("--file %q: must be SOURCE:TARGET, the target an absolute path", entry)}
		}
		expanded, err := image.Expand(source, filepath.Clean(target))
		if err != nil {
			return image.Spec{}, usageError{fmt.Errorf("--file: %w", err)}
		}
		files = append(files, expanded...)
	}
	for _, file := range files {
		if info, err := os.Stat(file.Source); err != nil || !info.Mode().IsRegular() {
			return image.Spec{}, usageError{fmt.Errorf("%s: not a file that can be read", file.Source)}
		}
	}
	for _, entry := range f.env {
		if name, _, found := strings.Cut(entry, "="); !found || name == "" {
			return image.Spec{}, usageError{fmt.Errorf("--env %q: must be NAME=VALUE", entry)}
		}
	}
	files, err := image.WithLibraries(files)
	if err != nil {
		return image.Spec{}, usageError{err}
	}
	entrypoint := f.entrypoint
	if len(entrypoint) == 0 && len(f.binaries) == 1 {
		entrypoint = []string{"/bin/" + filepath.Base(f.binaries[0])}
	}
	spec := image.Spec{Name: f.name, Files: files, Entrypoint: entrypoint, Env: f.env, User: f.user}
	if err := spec.Check(); err != nil {
		return image.Spec{}, usageError{err}
	}
	return spec, nil
}

func (s *shell) imageBuild() *cobra.Command {
	flags := &imageFlags{}
	command := &cobra.Command{
		Use:   "build --name localhost/NAME:TAG --bin PATH...",
		Short: "Build an image from nothing but these files and the shared libraries that they need",
		Args:  arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			spec, err := flags.spec()
			if err != nil {
				return err
			}
			out := flags.out
			if out == "" {
				dir, err := s.folder()
				if err != nil {
					return err
				}
				out = cluster.ImageFile(dir, spec.Name)
			}
			if err := image.Write(spec, out); err != nil {
				return err
			}
			info, err := os.Stat(out)
			if err != nil {
				return err
			}
			s.progress.Step("image %s: %d files, %.1f MiB", spec.Name, len(spec.Files), float64(info.Size())/(1<<20))
			if s.json {
				return s.print(struct {
					Name  string `json:"name"`
					File  string `json:"file"`
					Bytes int64  `json:"bytes"`
				}{spec.Name, out, info.Size()})
			}
			_, err = fmt.Fprintln(s.stdout, out)
			return err
		},
	}
	command.Flags().StringVar(&flags.name, "name", "", "localhost/NAME:TAG")
	command.Flags().StringArrayVar(&flags.binaries, "bin", nil, "program, put into /bin; may be repeated")
	command.Flags().StringArrayVar(&flags.files, "file", nil, "SOURCE:TARGET, a file or a folder; may be repeated")
	command.Flags().StringArrayVar(&flags.entrypoint, "entrypoint", nil, "the command, one word each time (default: the program, if there is one)")
	command.Flags().StringArrayVar(&flags.env, "env", nil, "NAME=VALUE in the container's environment; may be repeated")
	command.Flags().StringVar(&flags.user, "user", "", "uid or uid:gid that the container runs as, by number (default root)")
	command.Flags().StringVar(&flags.out, "out", "", "file to write (default DIR/images/NAME-TAG.tar)")
	return command
}
