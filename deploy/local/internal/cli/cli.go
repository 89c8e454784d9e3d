// Package cli is the command line of `whet-local`.
//
// Exit codes: 0 fine, 2 wrong usage or input with nothing changed, 1 anything else.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"whetstone.dev/local/internal/cluster"
	"whetstone.dev/local/internal/layout"
)

// Main is the program.
func Main() int {
	// What was begun is taken back or finished before the program ends.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, "whet-local:", err)
	var usage usageError
	var input *cluster.InputError
	if errors.As(err, &usage) || errors.As(err, &input) {
		return 2
	}
	return 1
}

// shell is what all commands share.
type shell struct {
	stdout   io.Writer
	progress *cluster.Progress
	dir      string
	json     bool
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	s := &shell{stdout: stdout, progress: cluster.NewProgress(stderr)}
	root := &cobra.Command{
		Use:           "whet-local",
		Short:         "A whole real Kubernetes on this machine: control plane, worker nodes, simulated GPUs",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(*cobra.Command, []string) error { return usageError{errors.New("name a command; see --help")} },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&s.dir, "dir", "", "folder of the cluster: made by up, deleted by down")
	root.PersistentFlags().BoolVar(&s.json, "json", false, "one JSON document on standard output")
	root.AddCommand(
		s.up(), s.down(), s.status(),
		s.component("stop", "Stop a process of the control plane, in order"),
		s.component("kill", "Kill a process of the control plane"),
		s.component("start", "Start a stopped process of the control plane and wait until it is ready"),
		s.node(), s.image(),
	)
	return root
}

func unknownCommand(command *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q of %q", args[0], command.CommandPath())}
	}
	return nil
}

// arguments checks their number as cobra does, with our exit code.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		if err := check(command, args); err != nil {
			return usageError{fmt.Errorf("%s: %w", command.CommandPath(), err)}
		}
		return nil
	}
}

func (s *shell) folder() (layout.Dir, error) {
	if s.dir == "" {
		return "", usageError{errors.New("--dir is missing")}
	}
	dir, err := layout.ParseDir(s.dir)
	if err != nil {
		return "", usageError{err}
	}
	return dir, nil
}

// with runs an action on the cluster in --dir.
func (s *shell) with(action func(*cluster.Cluster) error) error {
	dir, err := s.folder()
	if err != nil {
		return err
	}
	opened, release, err := cluster.Open(dir, s.progress)
	if err != nil {
		return err
	}
	defer release()
	if err := action(opened); err != nil {
		return err
	}
	if s.json {
		return s.print(opened.Record())
	}
	return nil
}

func (s *shell) print(document any) error {
	encoder := json.NewEncoder(s.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(document)
}

func (s *shell) component(verb, short string) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " etcd|apiserver|controller-manager|scheduler|coredns",
		Short: short,
		Args:  arguments(cobra.ExactArgs(1)),
		RunE: func(command *cobra.Command, args []string) error {
			if _, err := cluster.FullName(args[0]); err != nil {
				return err
			}
			return s.with(func(c *cluster.Cluster) error {
				if verb == "start" {
					return c.StartComponent(command.Context(), args[0])
				}
				return c.StopComponent(args[0], verb == "kill")
			})
		},
	}
}

func (s *shell) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "What runs, how it is and how much memory it takes",
		Args:  arguments(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			dir, err := s.folder()
			if err != nil {
				return err
			}
			status, err := cluster.GetStatus(command.Context(), dir)
			if err != nil {
				return err
			}
			if s.json {
				return s.print(status)
			}
			_, err = io.WriteString(s.stdout, status.Text())
			return err
		},
	}
}

func (s *shell) down() *cobra.Command {
	var number int
	command := &cobra.Command{
		Use:   "down",
		Short: "Take the cluster down and leave nothing of it; fine where there is none",
		Args:  arguments(cobra.NoArgs),
	}
	command.Flags().IntVar(&number, "instance", 0, "also remove links and cgroups of this instance, where the folder is lost")
	command.RunE = func(command *cobra.Command, _ []string) error {
		dir, err := s.folder()
		if err != nil {
			return err
		}
		var instance *layout.Instance
		if command.Flags().Changed("instance") {
			parsed, err := layout.ParseInstance(number)
			if err != nil {
				return usageError{err}
			}
			instance = &parsed
		}
		if err := cluster.Down(dir, instance, s.progress); err != nil {
			return err
		}
		if s.json {
			return s.print(struct {
				Dir  layout.Dir `json:"dir"`
				Left []string   `json:"left"`
			}{dir, []string{}})
		}
		return nil
	}
	return command
}
