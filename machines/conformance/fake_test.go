package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/internal/testkit"
	"imagegen/machines"
)

// fake is a provider whose machines are folders. It shows that the suite can pass and, with deliberate bugs, that it
// can fail.
type fake struct {
	dir    string
	step   func() error
	broken string
}

type record struct {
	Mark  string
	State machines.State
}

const mark = "cluster-a"

func (f *fake) path(node, part string) string { return filepath.Join(f.dir, node, part) }

func (f *fake) read(node string) (r record, there bool, err error) {
	data, err := os.ReadFile(f.path(node, "machine"))
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err != nil {
		return r, false, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, false, err
	}
	if r.Mark != mark && f.broken != "takes foreign machines" {
		return r, false, machines.Foreign("folder " + node)
	}
	return r, true, nil
}

func (f *fake) write(ctx context.Context, node string, r record) error {
	if err := errors.Join(ctx.Err(), f.step()); err != nil {
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(f.dir, node), 0o755); err != nil {
		return err
	}
	return os.WriteFile(f.path(node, "machine"), data, 0o644)
}

func (f *fake) Check(context.Context) error { return nil }

func (f *fake) List(context.Context) ([]machines.State, error) {
	var list []machines.State
	entries, err := os.ReadDir(f.dir)
	for _, e := range entries {
		r, there, err := f.read(e.Name())
		if errors.Is(err, machines.ErrForeign) || err == nil && !there {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, r.State)
	}
	return list, err
}

func (f *fake) Create(ctx context.Context, m machines.Machine) error {
	r, there, err := f.read(m.Node)
	if err != nil {
		return err
	}
	if there && r.State.Power != machines.Unfinished {
		return nil
	}
	r = record{mark, machines.State{Node: m.Node, Power: machines.Unfinished, Image: m.Image.Identity, Seed: m.Seed.Identity}}
	if f.broken == "finished before its disk" {
		r.State.Power = machines.Off
	}
	if err := f.write(ctx, m.Node, r); err != nil {
		return err
	}
	if _, err := os.Stat(f.path(m.Node, "data")); errors.Is(err, fs.ErrNotExist) {
		if err := f.step(); err != nil {
			return err
		}
		if err := os.WriteFile(f.path(m.Node, "data"), nil, 0o644); err != nil {
			return err
		}
	}
	r.State.Power = machines.Off
	return f.write(ctx, m.Node, r)
}

func (f *fake) power(ctx context.Context, node string, to machines.Power) error {
	r, there, err := f.read(node)
	if err != nil {
		return err
	}
	if !there {
		if to == machines.On {
			return errors.New(node + " is not there")
		}
		return nil
	}
	if to == machines.On {
		if _, err := os.Stat(f.path(node, "data")); err != nil {
			return err
		}
	}
	if r.State.Power == to {
		return nil
	}
	r.State.Power = to
	return f.write(ctx, node, r)
}

func (f *fake) Start(ctx context.Context, node string) error { return f.power(ctx, node, machines.On) }
func (f *fake) Stop(ctx context.Context, node string) error  { return f.power(ctx, node, machines.Off) }

func (f *fake) Remove(ctx context.Context, node string, data bool) error {
	_, there, err := f.read(node)
	if err != nil {
		return err
	}
	if there {
		if err := errors.Join(ctx.Err(), f.step()); err != nil {
			return err
		}
		if err := os.Remove(f.path(node, "machine")); err != nil {
			return err
		}
	}
	if (data || f.broken == "removes data") && f.broken != "leaves data" {
		if err := f.step(); err != nil {
			return err
		}
		return os.RemoveAll(filepath.Join(f.dir, node))
	}
	return nil
}

func (f *fake) Console(context.Context, io.Writer, string, bool) error { return machines.ErrNoConsole }
func (f *fake) Purge(context.Context) error                            { return nil }

type fakeBackend struct {
	dir, broken string
}

func (b fakeBackend) Provider(_ *testing.T, step func() error) machines.Provider {
	return &fake{b.dir, step, b.broken}
}

func (b fakeBackend) Machine(node string, version int) machines.Machine {
	v := string(rune('0' + version))
	return machines.Machine{Node: node, Data: 1, Image: machines.File{Identity: "image" + v}, Seed: machines.File{Identity: "seed" + v}}
}

func (b fakeBackend) foreign(node string) string { return filepath.Join(b.dir, node, "machine") }

func (b fakeBackend) Foreign(t *testing.T, node string) {
	testkit.Write(t, b.foreign(node), `{"Mark": "somebody"}`)
}

func (b fakeBackend) ForeignIntact(t *testing.T, node string) {
	data, err := os.ReadFile(b.foreign(node))
	if err != nil || !strings.Contains(string(data), "somebody") {
		t.Errorf("the foreign machine: %q, %v", data, err)
	}
}

func (b fakeBackend) Vanish(t *testing.T, node string) { testkit.OK(t, os.Remove(b.foreign(node))) }

func (b fakeBackend) WriteData(t *testing.T, node, text string) {
	testkit.OK(t, os.WriteFile(filepath.Join(b.dir, node, "data"), []byte(text), 0o644))
}

func (b fakeBackend) ReadData(t *testing.T, node string) string {
	data, err := os.ReadFile(filepath.Join(b.dir, node, "data"))
	testkit.OK(t, err)
	return string(data)
}

func (b fakeBackend) Leftovers(*testing.T) []string {
	left, _ := filepath.Glob(filepath.Join(b.dir, "*", "*"))
	return left
}

// brokenFake names the fake's bug in a test process.
const brokenFake = "IMAGEGEN_BROKEN_FAKE"

func TestFake(t *testing.T) {
	Run(t, func(t *testing.T) Backend { return fakeBackend{t.TempDir(), os.Getenv(brokenFake)} })
}

// The suite detects providers that break its rules.
func TestBrokenFakesFail(t *testing.T) {
	for broken, test := range map[string]string{
		"takes foreign machines":   "TestFake/Foreign",
		"finished before its disk": "TestFake/Interrupted",
		"removes data":             "TestFake/DataSurvives",
		"leaves data":              "TestFake/NothingIsLeft",
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFake$")
		cmd.Env = append(os.Environ(), brokenFake+"="+broken)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: "+test) {
			t.Errorf("a fake that %s passes %s:\n%s", broken, test, out)
		}
	}
}
