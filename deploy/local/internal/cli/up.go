package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"whetstone.dev/local/internal/cluster"
	"whetstone.dev/local/internal/layout"
)

// nodeFlags are the same for the first nodes and for one that is added.
type nodeFlags struct {
	gpus   int
	labels []string
	taints []string
}

func (f *nodeFlags) add(command *cobra.Command) {
	command.Flags().IntVar(&f.gpus, "gpus", 8, "simulated GPUs of each node, as nvidia.com/gpu")
	command.Flags().StringArrayVar(&f.labels, "label", nil, "KEY=VALUE that the node registers with; may be repeated")
	command.Flags().StringArrayVar(&f.taints, "taint", nil, "KEY[=VALUE]:EFFECT that the node registers with; may be repeated")
}

// options turns names into nodes, or says what is wrong.
func (f *nodeFlags) options(names []string) ([]cluster.NodeOptions, error) {
	if f.gpus < 0 || f.gpus > layout.MaxGPUs {
		return nil, usageError{fmt.Errorf("--gpus %d: must be 0 to %d", f.gpus, layout.MaxGPUs)}
	}
	labels, err := cluster.ParseLabels(f.labels)
	if err != nil {
		return nil, err
	}
	if err := cluster.CheckTaints(f.taints); err != nil {
		return nil, err
	}
	var nodes []cluster.NodeOptions
	for _, name := range names {
		parsed, err := layout.ParseNodeName(name)
		if err != nil {
			return nil, usageError{err}
		}
		nodes = append(nodes, cluster.NodeOptions{Name: parsed, GPUs: f.gpus, Labels: labels, Taints: f.taints})
	}
	return nodes, nil
}

// upFlags are what `up` is told.
type upFlags struct {
	nodeFlags
	instance int
	nodes    int
	names    string
	network  bool
	grace    time.Duration
}

// minGrace is four signs of life of a node, one a second.
const minGrace = 4 * time.Second

func (f *upFlags) parse(dir layout.Dir) (cluster.Options, error) {
	instance, err := layout.ParseInstance(f.instance)
	if err != nil {
		return cluster.Options{}, usageError{fmt.Errorf("--instance: %w", err)}
	}
	names, err := f.nodeNames()
	if err != nil {
		return cluster.Options{}, usageError{err}
	}
	nodes, err := f.options(names)
	if err != nil {
		return cluster.Options{}, err
	}
	if f.grace < minGrace {
		return cluster.Options{}, usageError{fmt.Errorf("--node-grace %v: must be at least %v", f.grace, minGrace)}
	}
	return cluster.Options{Dir: dir, Instance: instance, Nodes: nodes, Network: f.network, NodeGrace: f.grace}, nil
}

func (f *upFlags) nodeNames() ([]string, error) {
	var names []string
	if f.names != "" {
		names = strings.Split(f.names, ",")
		if f.nodes != 0 && f.nodes != len(names) {
			return nil, fmt.Errorf("--nodes %d, but --node-names names %d", f.nodes, len(names))
		}
	}
	if f.nodes < 0 || f.nodes > layout.MaxNodes || len(names) > layout.MaxNodes {
		return nil, fmt.Errorf("--nodes %d: must be 0 to %d", max(f.nodes, len(names)), layout.MaxNodes)
	}
	if len(names) > 0 {
		return names, nil
	}
	for number := 1; number <= f.nodes; number++ {
		names = append(names, fmt.Sprintf("node%d", number))
	}
	return names, nil
}

func (s *shell) up() *cobra.Command {
	flags := &upFlags{}
	command := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster and wait until it is ready; nothing is left where it fails",
		Args:  arguments(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			dir, err := s.folder()
			if err != nil {
				return err
			}
			options, err := flags.parse(dir)
			if err != nil {
				return err
			}
			report, err := cluster.Up(command.Context(), options, s.progress)
			if err != nil {
				return err
			}
			if s.json {
				return s.print(report)
			}
			_, err = fmt.Fprintf(s.stdout, "export KUBECONFIG=%s\n", report.Kubeconfig)
			return err
		},
	}
	flags.add(command)
	command.Flags().IntVar(&flags.instance, "instance", 0, "which of the clusters side by side (0 to 9): its ports, addresses and names")
	command.Flags().IntVar(&flags.nodes, "nodes", 0, "worker nodes; they need root, a control plane alone does not")
	command.Flags().StringVar(&flags.names, "node-names", "", "their names, separated by commas (default node1, node2, …)")
	command.Flags().BoolVar(&flags.network, "network", false, "be ready for nodes even if there are none yet")
	command.Flags().DurationVar(&flags.grace, "node-grace", 20*time.Second, "how long a node may be silent before it is NotReady")
	return command
}
