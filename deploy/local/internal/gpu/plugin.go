// Package gpu is a device plugin that offers GPUs that are not there, as `nvidia.com/gpu`, so that pods which ask for
// some are placed, counted and started as on a real node. It speaks the kubelet's own protocol
// (k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1).
package gpu

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Resource is what pods ask for.
const Resource = "nvidia.com/gpu"

// poll is how often the file of unhealthy devices and the kubelet's socket are looked at.
const poll = time.Second

// Main is the program.
func Main() int {
	flags := flag.NewFlagSet("whet-gpu-plugin", flag.ContinueOnError)
	node := flags.String("node", "", "name of the node, part of each device's id")
	count := flags.Int("count", 8, "number of GPUs")
	unhealthy := flags.String("unhealthy-file", "", "file with the indices of GPUs that are not well, separated by commas")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	for ctx.Err() == nil {
		served := &server{node: *node, count: *count, unhealthyFile: *unhealthy}
		if err := served.serveUntilKubeletRestarts(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "whet-gpu-plugin:", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return 0
}

// UUID is the stable id of a simulated GPU, in the form that the NVIDIA driver gives.
func UUID(node string, index int) string {
	sum := sha256.Sum256([]byte("whetstone-sim/" + node + "/" + strconv.Itoa(index)))
	return fmt.Sprintf("GPU-%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// ParseIndices reads indices of GPUs separated by commas; none is fine.
func ParseIndices(text string, count int) ([]int, error) {
	var indices []int
	for _, field := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
		index, err := strconv.Atoi(field)
		if err != nil || index < 0 || index >= count {
			return nil, fmt.Errorf("GPU index %q: must be 0 to %d", field, count-1)
		}
		if !slices.Contains(indices, index) {
			indices = append(indices, index)
		}
	}
	slices.Sort(indices)
	return indices, nil
}

type server struct {
	plugin.UnimplementedDevicePluginServer
	node          string
	count         int
	unhealthyFile string
	stopped       context.Context
}

// serveUntilKubeletRestarts serves and registers. A kubelet that starts empties the folder of sockets: then it is time
// to begin again.
func (s *server) serveUntilKubeletRestarts(ctx context.Context) error {
	socket := filepath.Join(plugin.DevicePluginPath, "whetstone-gpu.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(plugin.KubeletSocket); err != nil {
		// Not yet up; no need to say so five times a second.
		return nil
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	s.stopped = serving
	served := grpc.NewServer()
	plugin.RegisterDevicePluginServer(served, s)
	ended := make(chan error, 1)
	go func() { ended <- served.Serve(listener) }()
	defer served.Stop()
	if err := register(ctx, filepath.Base(socket)); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "whet-gpu-plugin: registered %d x %s (sim)\n", s.count, Resource)
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case <-ticker.C:
			if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
				return nil
			}
		}
	}
}

func register(ctx context.Context, endpoint string) error {
	connection, err := grpc.NewClient("unix://"+plugin.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = plugin.NewRegistrationClient(connection).Register(ctx, &plugin.RegisterRequest{
		Version: plugin.Version, Endpoint: endpoint, ResourceName: Resource, Options: &plugin.DevicePluginOptions{},
	})
	return err
}

func (s *server) GetDevicePluginOptions(context.Context, *plugin.Empty) (*plugin.DevicePluginOptions, error) {
	return &plugin.DevicePluginOptions{}, nil
}

// ListAndWatch sends the devices, and again whenever one's health changes.
func (s *server) ListAndWatch(_ *plugin.Empty, stream grpc.ServerStreamingServer[plugin.ListAndWatchResponse]) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	var sent []int
	for first := true; ; first = false {
		unhealthy, err := s.unhealthy()
		if err != nil {
			fmt.Fprintln(os.Stderr, "whet-gpu-plugin:", err)
			unhealthy = sent
		}
		if first || !slices.Equal(unhealthy, sent) {
			if err := stream.Send(&plugin.ListAndWatchResponse{Devices: s.devices(unhealthy)}); err != nil {
				return err
			}
			sent = unhealthy
		}
		select {
		case <-s.stopped.Done():
			return nil
		case <-stream.Context().Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (s *server) unhealthy() ([]int, error) {
	if s.unhealthyFile == "" {
		return nil, nil
	}
	content, err := os.ReadFile(s.unhealthyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return ParseIndices(string(content), s.count)
}

func (s *server) devices(unhealthy []int) []*plugin.Device {
	devices := make([]*plugin.Device, s.count)
	for index := range devices {
		health := plugin.Healthy
		if slices.Contains(unhealthy, index) {
			health = plugin.Unhealthy
		}
		devices[index] = &plugin.Device{ID: UUID(s.node, index), Health: health}
	}
	return devices
}

// Allocate tells the container which GPUs it has, in the variable that NVIDIA's own plugin uses.
func (s *server) Allocate(_ context.Context, request *plugin.AllocateRequest) (*plugin.AllocateResponse, error) {
	response := &plugin.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &plugin.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")},
		})
	}
	return response, nil
}
