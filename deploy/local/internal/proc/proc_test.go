package proc

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func sleeper(t *testing.T, env ...string) ID {
	t.Helper()
	path, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	id, err := Start(Command{Path: path, Args: []string{"sleep", "60"}, Env: env, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = id.Kill() })
	return id
}

func TestRecycledNumberIsNotKilled(t *testing.T) {
	id := sleeper(t)
	// The record of an earlier process that had the same number.
	earlier := ID{PID: id.PID, Start: id.Start - 1}
	if earlier.Alive() {
		t.Error("another process counts as the recorded one")
	}
	if err := earlier.Kill(); err != nil {
		t.Error(err)
	}
	if err := earlier.Stop(time.Second); err != nil {
		t.Error(err)
	}
	if !id.Alive() {
		t.Fatal("a process that only has the recorded number was killed")
	}
	if err := id.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if id.Alive() {
		t.Error("the process itself still runs")
	}
	// Again, on what is gone: fine.
	if err := id.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

func TestStatusOfAnAwkwardNameIsRead(t *testing.T) {
	state, start, err := parseStat("12 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21")
	if err != nil || state != 'S' || start != 4711 {
		t.Errorf("%c %d %v", state, start, err)
	}
	for _, bad := range []string{"", "12 (a", "12 (a) S 1 2", "12 (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestMarkedProcessesAreFound(t *testing.T) {
	mark := "WHETSTONE_PROC_TEST=" + t.TempDir()
	id := sleeper(t, mark)
	other := sleeper(t, mark+"/longer")
	found := Marked(mark)
	if len(found) != 1 || found[0] != id || found[0] == other {
		t.Errorf("found %v, not only %v", found, id)
	}
}

func TestChildIsInASessionOfItsOwn(t *testing.T) {
	id := sleeper(t)
	session, err := syscall.Getpgid(id.PID)
	if err != nil {
		t.Fatal(err)
	}
	if own, err := syscall.Getpgid(os.Getpid()); err != nil || own == session {
		t.Errorf("process group %d is also this test's (%v)", session, err)
	}
}
