// Command pause does nothing, and collects processes that have lost their parent. It is process 1 of each simulated
// node, and the container that holds a pod's namespaces.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		// Before the first wait too: a process may have ended before the signal was asked for.
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err != nil && err != syscall.EINTR || err == nil && pid <= 0 {
				break
			}
		}
		select {
		case <-ended:
			return
		case <-children:
		}
	}
}
