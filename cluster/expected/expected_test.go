package expected

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestReadBack(t *testing.T) {
	path := Path(t.TempDir())
	want := Expected{Version: Version, Cluster: "c", ClusterID: "id", Nodes: []Node{
		{Node: "web1", Role: "web", Address: "10.0.0.1", Image: "abc", Seed: "sha256:def"}, {Node: "web2", Role: "web", Address: "10.0.0.2"}}}
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the same content was written again (%v)", err)
	}
	got, err := Read(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v", got, err)
	}
	if n, ok := got.Node("web1"); !ok || n.Image != "abc" {
		t.Errorf("web1 is %+v", n)
	}
	if _, ok := got.Node("web3"); ok {
		t.Error("there is a node that was not written")
	}
}

func TestUnreadable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "expected.json")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "imagegen seed") {
		t.Errorf("no file: %v", err)
	}
	for _, text := range []string{"", "{", `{"version": 2}`, `[]`} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "imagegen seed") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
