package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"whetstone.dev/local/internal/cluster"
)

func (s *shell) node() *cobra.Command {
	command := &cobra.Command{
		Use:   "node",
		Short: "Add, remove, crash, restart and disconnect worker nodes",
		Args:  unknownCommand,
		RunE: func(*cobra.Command, []string) error {
			return usageError{fmt.Errorf("node: name a command; see --help")}
		},
	}
	command.AddCommand(
		s.nodeAdd(),
		s.nodeVerb("remove NAME", "Switch a node off and take it out of the cluster", 1, func(command *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.RemoveNode(command.Context(), args[0])
		}),
		s.nodeVerb("crash NAME", "End everything of a node at once, as a power cut does", 1, func(_ *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.CrashNode(args[0])
		}),
		s.nodeVerb("restart NAME", "Switch a node off, if it is on, and on again; it keeps its disk", 1, func(command *cobra.Command, c *cluster.Cluster, args []string) error {
			return c.RestartNode(command.Context(), args[0])
		}),
		s.nodeVerb("link NAME up|down", "Plug in or pull a node's network cable", 2, func(_ *cobra.Command, c *cluster.Cluster, args []string) error {
			if args[1] != "up" && args[1] != "down" {
				return usageError{fmt.Errorf("link %q: must be up or down", args[1])}
			}
			return c.SetLink(args[0], args[1] == "up")
		}),
		s.nodeGPUs(),
	)
	return command
}

func (s *shell) nodeVerb(use, short string, count int, action func(*cobra.Command, *cluster.Cluster, []string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  arguments(cobra.ExactArgs(count)),
		RunE: func(command *cobra.Command, args []string) error {
			return s.with(func(c *cluster.Cluster) error { return action(command, c, args) })
		},
	}
}

func (s *shell) nodeAdd() *cobra.Command {
	flags := &nodeFlags{}
	command := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a node and wait until it is ready",
		Args:  arguments(cobra.ExactArgs(1)),
		RunE: func(command *cobra.Command, args []string) error {
			nodes, err := flags.options(args)
			if err != nil {
				return err
			}
			return s.with(func(c *cluster.Cluster) error { return c.AddNode(command.Context(), nodes[0]) })
		},
	}
	flags.add(command)
	return command
}

func (s *shell) nodeGPUs() *cobra.Command {
	var unhealthy string
	command := s.nodeVerb("gpus NAME", "Say which simulated GPUs of a node are not well", 1, func(_ *cobra.Command, c *cluster.Cluster, args []string) error {
		return c.SetUnhealthy(args[0], unhealthy)
	})
	command.Flags().StringVar(&unhealthy, "unhealthy", "", "indices from 0, separated by commas; empty: all are well")
	return command
}
