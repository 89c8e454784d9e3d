// Package proc starts processes that outlive the command that started them, and later stops exactly those.
//
// A number alone does not name a process: the kernel gives it to another one once the first is gone. So a process is
// recorded with the time at which it started, and a signal goes to it through a handle taken before that is checked.
package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ID names a process for as long as the machine is up.
type ID struct {
	PID int `json:"pid"`
	// Start is the kernel's clock when the process started, in ticks since boot: field 22 of /proc/PID/stat.
	Start uint64 `json:"start"`
}

// statFile bounds nothing by itself: the kernel writes less than one page there.
func readStat(pid int) (state byte, start uint64, err error) {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(string(content))
}

// parseStat reads the state and the start time. The name, in parentheses, may itself hold spaces and parentheses.
func parseStat(content string) (state byte, start uint64, err error) {
	end := strings.LastIndexByte(content, ')')
	if end < 0 {
		return 0, 0, errors.New("process status without a name")
	}
	// What follows begins with field 3, the state.
	fields := strings.Fields(content[end+1:])
	const startField = 22 - 3
	if len(fields) <= startField || len(fields[0]) != 1 {
		return 0, 0, errors.New("process status with too few fields")
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	return fields[0][0], start, err
}

// Identify names a process that runs now.
func Identify(pid int) (ID, error) {
	_, start, err := readStat(pid)
	return ID{PID: pid, Start: start}, err
}

// Alive says whether this very process still runs. One that has ended but was not yet collected does not.
func (id ID) Alive() bool {
	if id.PID <= 0 {
		return false
	}
	state, start, err := readStat(id.PID)
	return err == nil && start == id.Start && state != 'Z' && state != 'X'
}

// Signal sends a signal to this very process; one that has ended gets none, and that is no error.
func (id ID) Signal(signal syscall.Signal) error {
	if id.PID <= 0 {
		return nil
	}
	// The handle (a pidfd) stays with the process that has the number now; only then is it compared.
	handle, err := os.FindProcess(id.PID)
	if err != nil {
		return nil
	}
	defer func() { _ = handle.Release() }()
	if !id.Alive() {
		return nil
	}
	if err := handle.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("process %d: %w", id.PID, err)
	}
	return nil
}

// WaitGone waits until the process has ended and says whether it has.
func (id ID) WaitGone(limit time.Duration) bool {
	for deadline := time.Now().Add(limit); id.Alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Stop asks the process to end, and after the grace makes it.
func (id ID) Stop(grace time.Duration) error {
	if err := id.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if id.WaitGone(grace) {
		return nil
	}
	return id.Kill()
}

// killLimit is for the kernel to take a killed process apart: a whole PID namespace ends in well under a second.
const killLimit = 20 * time.Second

// Kill ends the process at once.
func (id ID) Kill() error {
	if err := id.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !id.WaitGone(killLimit) {
		return fmt.Errorf("process %d does not end", id.PID)
	}
	return nil
}

// Command is a process to start in the background.
type Command struct {
	Path string
	// Args begin with the name that the program sees as its own.
	Args []string
	Env  []string
	// Log is appended to.
	Log string
	// Namespaces are the clone flags of those it gets new.
	Namespaces uintptr
}

// Start starts a process in a session of its own, so that neither the end of this one nor a signal from its terminal
// reaches it.
func Start(command Command) (ID, error) {
	if err := os.MkdirAll(filepath.Dir(command.Log), 0o755); err != nil {
		return ID{}, err
	}
	log, err := os.OpenFile(command.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return ID{}, err
	}
	defer func() { _ = log.Close() }()
	started := exec.Cmd{
		Path:        command.Path,
		Args:        command.Args,
		Env:         append(os.Environ(), command.Env...),
		Dir:         "/",
		Stdout:      log,
		Stderr:      log,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Cloneflags: command.Namespaces},
	}
	if err := started.Start(); err != nil {
		return ID{}, fmt.Errorf("starting %s: %w", command.Args[0], err)
	}
	id, err := Identify(started.Process.Pid)
	// Collected when it ends before this command does; otherwise init collects it.
	go func() { _ = started.Wait() }()
	return id, err
}

// Marked finds the processes whose environment holds this entry (NAME=value), except this one.
func Marked(entry string) []ID {
	folders, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []ID
	for _, folder := range folders {
		pid, err := strconv.Atoi(folder.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		id, err := Identify(pid)
		if err != nil {
			continue
		}
		environment, err := os.ReadFile(filepath.Join("/proc", folder.Name(), "environ"))
		if err != nil || !strings.Contains("\x00"+string(environment)+"\x00", "\x00"+entry+"\x00") || !id.Alive() {
			continue
		}
		found = append(found, id)
	}
	return found
}
