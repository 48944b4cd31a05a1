// Package conformance is the test suite that every provider of machines passes.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"imagegen/internal/testkit"
	"imagegen/machines"
)

// Backend is what the suite needs of a provider under test, beside the provider itself: ways to act behind its back.
type Backend interface {
	// Provider returns a provider as a new process would have it: nothing is remembered but what the machines, their hosts and
	// the cluster's files say. It calls step before every step that changes something, and does not take it on an error.
	Provider(t *testing.T, step func() error) machines.Provider
	// Machine returns what the machine of a node is to be, from one of two pairs of image and seed (0 and 1).
	Machine(node string, version int) machines.Machine
	// Foreign makes something of somebody else's with the name that the node's machine would have.
	Foreign(t *testing.T, node string)
	// ForeignIntact fails the test unless what Foreign made is as it was.
	ForeignIntact(t *testing.T, node string)
	// Vanish removes a machine without the provider, as a person with the platform's own tool would; its data disk stays.
	Vanish(t *testing.T, node string)
	// WriteData and ReadData access the data disk of a machine that is off. ReadData returns "" for a disk that nobody wrote to.
	WriteData(t *testing.T, node, text string)
	ReadData(t *testing.T, node string) string
	// Leftovers lists everything of the cluster that is left, by the platform's own tools.
	Leftovers(t *testing.T) []string
}

// errDied is what a provider's steps end with after its process has "died".
var errDied = errors.New("the process has died")

// dying returns a step function that lets n steps happen, and tells whether it has refused one.
func dying(n int) (step func() error, died *atomic.Bool) {
	var taken atomic.Int64
	died = new(atomic.Bool)
	return func() error {
		if taken.Add(1) > int64(n) {
			died.Store(true)
			return errDied
		}
		return nil
	}, died
}

func forever() error { return nil }

// limit bounds the steps after which operations are interrupted, should a provider never come to an end.
const limit = 100

// Run runs the suite. New makes a backend without machines; the suite removes what it made.
func Run(t *testing.T, newBackend func(t *testing.T) Backend) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Backend)
	}{
		{"Idempotent", idempotent}, {"Interrupted", interrupted}, {"Foreign", foreign}, {"DataSurvives", dataSurvives},
		{"Vanished", vanished}, {"NothingIsLeft", nothingIsLeft}, {"Cancelled", cancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBackend(t)
			t.Cleanup(func() {
				if err := machines.RemoveAll(context.Background(), b.Provider(t, forever), []string{"node1", "node2"}); err != nil {
					t.Errorf("clean up: %v", err)
				}
			})
			c.test(t, b)
		})
	}
}

// expect compares the listed machines with "NODE POWER IMAGE SEED".
func expect(t *testing.T, p machines.Provider, want ...string) {
	t.Helper()
	list, err := p.List(t.Context())
	testkit.OK(t, err)
	got := []string{}
	for _, s := range list {
		got = append(got, fmt.Sprint(s.Node, " ", s.Power, " ", s.Image, " ", s.Seed))
	}
	if !slices.Equal(got, want) && len(got)+len(want) > 0 {
		t.Fatalf("listed %q, want %q", got, want)
	}
}

func line(m machines.Machine, power machines.Power) string {
	return fmt.Sprint(m.Node, " ", power, " ", m.Image.Identity, " ", m.Seed.Identity)
}

// Whatever is done twice is as if it were done once, and what is not there is no error.
func idempotent(t *testing.T, b Backend) {
	ctx, p := t.Context(), b.Provider(t, forever)
	testkit.OK(t, p.Check(ctx))
	testkit.OK(t, p.Stop(ctx, "node1"))
	testkit.OK(t, p.Remove(ctx, "node1", true))
	expect(t, p)
	one, two := b.Machine("node1", 0), b.Machine("node2", 0)
	for range 2 {
		testkit.OK(t, p.Create(ctx, one))
		expect(t, p, line(one, machines.Off))
	}
	testkit.OK(t, p.Create(ctx, two))
	for range 2 {
		testkit.OK(t, p.Start(ctx, "node1"))
		expect(t, p, line(one, machines.On), line(two, machines.Off))
	}
	// A finished machine is not changed by another image or seed.
	testkit.OK(t, p.Create(ctx, b.Machine("node1", 1)))
	expect(t, b.Provider(t, forever), line(one, machines.On), line(two, machines.Off))
	for range 2 {
		testkit.OK(t, p.Stop(ctx, "node1"))
		expect(t, p, line(one, machines.Off), line(two, machines.Off))
	}
	testkit.OK(t, machines.Replace(ctx, p, b.Machine("node1", 1), false))
	expect(t, p, line(b.Machine("node1", 1), machines.On), line(two, machines.Off))
	for range 2 {
		testkit.OK(t, p.Remove(ctx, "node1", true))
		expect(t, p, line(two, machines.Off))
	}
	if err := p.Start(ctx, "node1"); err == nil {
		t.Error("a machine that is not there was started")
	}
}

// An operation that dies between any two of its steps is finished by the next process that tries it. Each attempt starts from what the
// last one left, because providers may take seconds for an operation.
func interrupted(t *testing.T, b Backend) {
	ctx := t.Context()
	version := func(n int) machines.Machine { return b.Machine("node1", n%2) }
	for _, op := range []struct {
		name  string
		setUp func(machines.Provider, int) error
		do    func(machines.Provider, int) error
		want  func(int) []string
	}{
		{"create", func(p machines.Provider, _ int) error { return p.Remove(ctx, "node1", true) },
			func(p machines.Provider, n int) error { return p.Create(ctx, version(n)) },
			func(n int) []string { return []string{line(version(n), machines.Off)} }},
		{"start", func(p machines.Provider, n int) error {
			if n == 0 {
				return errors.Join(p.Remove(ctx, "node1", true), p.Create(ctx, version(0)))
			}
			return p.Stop(ctx, "node1")
		},
			func(p machines.Provider, _ int) error { return p.Start(ctx, "node1") },
			func(int) []string { return []string{line(version(0), machines.On)} }},
		// A finished replacement is what the next one starts from: one of the other version.
		{"replace", func(machines.Provider, int) error { return nil },
			func(p machines.Provider, n int) error { return machines.Replace(ctx, p, version(n+1), false) },
			func(n int) []string { return []string{line(version(n+1), machines.On)} }},
		{"remove", func(p machines.Provider, _ int) error {
			return errors.Join(p.Create(ctx, version(0)), p.Start(ctx, "node1"))
		},
			func(p machines.Provider, _ int) error { return p.Remove(ctx, "node1", true) },
			func(int) []string { return nil }},
	} {
		for n := 0; ; n++ {
			if n == limit {
				t.Fatalf("%s has more than %d steps, or never ends", op.name, limit)
			}
			testkit.OK(t, op.setUp(b.Provider(t, forever), n))
			step, died := dying(n)
			err := op.do(b.Provider(t, step), n)
			if !died.Load() {
				testkit.OK(t, err)
				break
			}
			if err == nil {
				t.Fatalf("%s: died after %d steps, and called it done", op.name, n)
			}
			next := b.Provider(t, forever)
			if _, err := next.List(ctx); err != nil {
				t.Fatalf("%s, died after %d steps: %v", op.name, n, err)
			}
			if err := op.do(next, n); err != nil {
				t.Fatalf("%s, died after %d steps, again: %v", op.name, n, err)
			}
			expect(t, next, op.want(n)...)
			if op.name == "create" { // a machine that is called finished can be turned on
				testkit.OK(t, next.Start(ctx, "node1"))
			}
		}
	}
}

// What belongs to somebody else is left alone, and said.
func foreign(t *testing.T, b Backend) {
	ctx, p := t.Context(), b.Provider(t, forever)
	b.Foreign(t, "node1")
	expect(t, p)
	if err := p.Create(ctx, b.Machine("node1", 0)); !errors.Is(err, machines.ErrForeign) {
		t.Errorf("create: %v", err)
	}
	for name, do := range map[string]func() error{
		"start":  func() error { return p.Start(ctx, "node1") },
		"stop":   func() error { return p.Stop(ctx, "node1") },
		"remove": func() error { return p.Remove(ctx, "node1", true) },
	} {
		if err := do(); err != nil && !errors.Is(err, machines.ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
		b.ForeignIntact(t, "node1")
	}
	testkit.OK(t, p.Create(ctx, b.Machine("node2", 0)))
	testkit.OK(t, machines.RemoveAll(ctx, p, []string{"node2"}))
	b.ForeignIntact(t, "node1")
}

// The data disk survives its machine, however often that is replaced, and is gone when a blank one is asked for.
func dataSurvives(t *testing.T, b Backend) {
	ctx, p := t.Context(), b.Provider(t, forever)
	testkit.OK(t, p.Create(ctx, b.Machine("node1", 0)))
	b.WriteData(t, "node1", "precious")
	for version := range 2 {
		testkit.OK(t, machines.Replace(ctx, p, b.Machine("node1", version), false))
		testkit.OK(t, p.Stop(ctx, "node1"))
		if got := b.ReadData(t, "node1"); got != "precious" {
			t.Fatalf("after a replacement the data disk holds %q", got)
		}
	}
	testkit.OK(t, p.Remove(ctx, "node1", false))
	testkit.OK(t, p.Create(ctx, b.Machine("node1", 0)))
	if got := b.ReadData(t, "node1"); got != "precious" {
		t.Fatalf("after its removal the data disk holds %q", got)
	}
	testkit.OK(t, machines.Replace(ctx, p, b.Machine("node1", 1), true))
	testkit.OK(t, p.Stop(ctx, "node1"))
	if got := b.ReadData(t, "node1"); got != "" {
		t.Fatalf("a blank data disk holds %q", got)
	}
}

// A machine that somebody removed is seen as gone, and can be made again, with its data.
func vanished(t *testing.T, b Backend) {
	ctx, p := t.Context(), b.Provider(t, forever)
	m := b.Machine("node1", 0)
	testkit.OK(t, p.Create(ctx, m))
	b.WriteData(t, "node1", "precious")
	testkit.OK(t, p.Start(ctx, "node1"))
	b.Vanish(t, "node1")
	expect(t, p)
	testkit.OK(t, p.Stop(ctx, "node1"))
	testkit.OK(t, p.Create(ctx, m))
	expect(t, p, line(m, machines.Off))
	if got := b.ReadData(t, "node1"); got != "precious" {
		t.Errorf("the data disk holds %q", got)
	}
}

// After everything is removed nothing is left, nodes that only have a data disk included.
func nothingIsLeft(t *testing.T, b Backend) {
	ctx, p := t.Context(), b.Provider(t, forever)
	testkit.OK(t, p.Create(ctx, b.Machine("node1", 0)))
	testkit.OK(t, p.Create(ctx, b.Machine("node2", 0)))
	testkit.OK(t, p.Start(ctx, "node2"))
	testkit.OK(t, p.Remove(ctx, "node1", false))
	for range 2 {
		testkit.OK(t, machines.RemoveAll(ctx, p, []string{"node1"})) // node2 is no longer in the spec
		if left := b.Leftovers(t); len(left) > 0 {
			t.Fatalf("left: %q", left)
		}
	}
}

// A cancelled operation ends within two seconds, and does no harm.
func cancelled(t *testing.T, b Backend) {
	m := b.Machine("node1", 0)
	for _, op := range []struct {
		name string
		do   func(context.Context, machines.Provider) error
	}{
		{"create", func(ctx context.Context, p machines.Provider) error { return p.Create(ctx, m) }},
		{"start", func(ctx context.Context, p machines.Provider) error { return p.Start(ctx, "node1") }},
	} {
		name, do := op.name, op.do
		ctx, cancel := context.WithCancel(t.Context())
		began := make(chan struct{}, limit)
		done := make(chan error, 1)
		p := b.Provider(t, func() error {
			began <- struct{}{}
			return nil
		})
		go func() { done <- do(ctx, p) }()
		select {
		case <-began:
		case err := <-done:
			if done <- err; len(began) == 0 {
				t.Fatalf("%s ended before its first step: %v", name, err)
			}
		}
		cancelled := time.Now()
		cancel()
		select {
		case <-done:
			t.Logf("%s ended %s after its cancellation", name, time.Since(cancelled).Round(time.Millisecond))
		case <-time.After(2 * time.Second): // it takes milliseconds, on a busy machine too
			t.Fatalf("%s did not end within 2 s of its cancellation", name)
		}
		testkit.OK(t, do(t.Context(), b.Provider(t, forever)))
	}
	expect(t, b.Provider(t, forever), line(m, machines.On))
}
