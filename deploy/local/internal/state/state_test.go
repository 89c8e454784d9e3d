package state

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"whetstone.dev/local/internal/layout"
	"whetstone.dev/local/internal/proc"
)

func TestRecordIsReadBack(t *testing.T) {
	dir := layout.Dir(t.TempDir())
	if _, err := Load(dir); !errors.Is(err, ErrNone) {
		t.Fatalf("an empty folder: %v", err)
	}
	recorder := NewRecorder(&State{Dir: dir, Instance: 3})
	if err := recorder.Change(func(s *State) {
		s.Components = append(s.Components, Component{Name: "etcd", Process: proc.ID{PID: 7, Start: 99}})
		s.Nodes = append(s.Nodes, Node{Name: "b-1", Number: 1}, Node{Name: "b-3", Number: 3})
	}); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if etcd := loaded.Component("etcd"); etcd == nil || etcd.Process != (proc.ID{PID: 7, Start: 99}) {
		t.Errorf("etcd is recorded as %v", etcd)
	}
	if loaded.Component("kubelet") != nil || loaded.Node("b-2") != nil {
		t.Error("something is found that was not recorded")
	}
	if free := loaded.FreeNumber(); free != 2 {
		t.Errorf("free number %d", free)
	}
	if info, err := os.Stat(dir.State()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

func TestBadRecordsAreRefusedWithTheFilesName(t *testing.T) {
	dir := layout.Dir(t.TempDir())
	for _, content := range []string{
		`{`,
		`{"version": 99}`,
		`{"version": 1, "dir": "/elsewhere"}`,
		`{"version": 1, "dir": "` + string(dir) + `", "instance": 12}`,
		strings.Repeat(" ", maxFile+1),
	} {
		if err := os.WriteFile(dir.State(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), dir.State()) {
			t.Errorf("%.40q: %v", content, err)
		}
	}
}

func TestOneCommandAtATime(t *testing.T) {
	dir := layout.Dir(t.TempDir())
	release, err := Lock(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir, 30*time.Millisecond); !errors.Is(err, ErrBusy) {
		t.Errorf("a second command got the lock: %v", err)
	}
	release()
	release, err = Lock(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	release()
}
