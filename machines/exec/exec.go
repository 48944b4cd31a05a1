// Package exec is a provider that runs a program of the user with a verb and exchanges JSON with it. docs/exec.md is the reference of
// the protocol.
package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	osexec "os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"imagegen/machines"
)

// Protocol is the version of the protocol between imagegen and the program.
const Protocol = 1

// The verbs.
const (
	verbCheck   = "check"
	verbList    = "list"
	verbCreate  = "create"
	verbStart   = "start"
	verbStop    = "stop"
	verbRemove  = "remove"
	verbConsole = "console"
	verbPurge   = "purge"
)

// Exit codes of the program with a special meaning. All others except 0 are failures.
const (
	exitUnknownVerb = 2
	exitForeign     = 3
)

// Limits of a program's output.
const (
	maxAnswer  = 8 << 20  // bytes
	maxConsole = 64 << 20 // bytes, unless followed
	maxLine    = 500      // characters of a line on standard error
	maxLogged  = 1000     // lines of one run that are logged
	maxReason  = 10       // last lines on standard error that become the error
)

// grace is how long an interrupted program has to exit.
const grace = time.Second

// Config says which program makes the machines of which cluster.
type Config struct {
	Program   string // path, or a name on PATH
	Cluster   string // name
	ClusterID string // UUID: the mark
	Hosts     []string
	Network   string
	Storage   string
	// Record is the path of a file that keeps where nodes were placed, so that List can report machines on hosts that do not answer; empty:
	// it cannot.
	Record string
	// Log gets the program's standard error line by line; nil: it is only used in errors.
	Log func(line string)
}

// Provider makes machines with the program.
type Provider struct {
	config Config
	placed record
}

var _ machines.Provider = (*Provider)(nil)

// New returns a provider. It does not run the program.
func New(c Config) *Provider { return &Provider{config: c, placed: record{path: c.Record}} }

// request is the program's standard input.
type request struct {
	Protocol int         `json:"protocol"`
	Cluster  clusterData `json:"cluster"`
	Hosts    []string    `json:"hosts"`
	Network  string      `json:"network"`
	Storage  string      `json:"storage"`

	Machine *machineData `json:"machine,omitempty"` // create
	Node    string       `json:"node,omitempty"`    // start, stop, remove, console
	Data    *bool        `json:"data,omitempty"`    // remove
	Follow  *bool        `json:"follow,omitempty"`  // console
}

type clusterData struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

type machineData struct {
	Node   string   `json:"node"`
	Role   string   `json:"role"`
	Host   string   `json:"host"`
	CPUs   int      `json:"cpus"`
	Memory int64    `json:"memory"`
	Data   int64    `json:"data"`
	MAC    string   `json:"mac"`
	IP     string   `json:"ip"`
	Image  fileData `json:"image"`
	Seed   fileData `json:"seed"`
}

type fileData struct {
	Path     string `json:"path"`
	Identity string `json:"identity"`
}

// answer is the program's standard output.
type answer struct {
	Protocol int `json:"protocol"`
}

type listAnswer struct {
	Protocol    int            `json:"protocol"`
	Machines    *[]machineInfo `json:"machines"`
	Unreachable []string       `json:"unreachable"` // hosts
}

type machineInfo struct {
	Node  string     `json:"node"`
	Host  string     `json:"host"`
	Power string     `json:"power"`
	Since *time.Time `json:"since"`
	Image string     `json:"image"`
	Seed  string     `json:"seed"`
}

// Check asks the program whether something is missing.
func (p *Provider) Check(ctx context.Context) error {
	if _, err := osexec.LookPath(p.config.Program); err != nil {
		return fmt.Errorf("the program that makes the machines: %w: machines.program of the spec names it", err)
	}
	return p.do(ctx, verbCheck, request{})
}

// List returns the cluster's machines. Those placed on hosts that do not answer are [machines.Unknown].
func (p *Provider) List(ctx context.Context) ([]machines.State, error) {
	out, err := p.ask(ctx, verbList, request{})
	if err != nil {
		return nil, err
	}
	states, unreachable, err := parseList(out)
	if err != nil {
		return nil, fmt.Errorf("%s: its answer: %w", p.title(verbList, ""), err)
	}
	placed, err := p.placed.read()
	if err != nil {
		return nil, err
	}
	for node, host := range placed {
		isNode := func(s machines.State) bool { return s.Node == node }
		if slices.Contains(unreachable, host) && !slices.ContainsFunc(states, isNode) {
			states = append(states, machines.State{Node: node, Host: host, Power: machines.Unknown})
		}
	}
	slices.SortFunc(states, func(a, b machines.State) int { return strings.Compare(a.Node, b.Node) })
	return states, nil
}

// Create makes a machine.
func (p *Provider) Create(ctx context.Context, m machines.Machine) error {
	if err := p.placed.set(m.Node, m.Host); err != nil {
		return err
	}
	return p.do(ctx, verbCreate, request{Machine: &machineData{
		Node: m.Node, Role: m.Role, Host: m.Host, CPUs: m.CPUs, Memory: m.Memory, Data: m.Data, MAC: m.MAC, IP: m.IP,
		Image: fileData(m.Image), Seed: fileData(m.Seed),
	}})
}

// Start turns a machine on.
func (p *Provider) Start(ctx context.Context, node string) error {
	return p.do(ctx, verbStart, request{Node: node})
}

// Stop cuts a machine's power.
func (p *Provider) Stop(ctx context.Context, node string) error {
	return p.do(ctx, verbStop, request{Node: node})
}

// Remove removes a machine, and its data disk if data is set.
func (p *Provider) Remove(ctx context.Context, node string, data bool) error {
	if err := p.do(ctx, verbRemove, request{Node: node, Data: &data}); err != nil {
		return err
	}
	return p.placed.forget(node)
}

// Purge removes what the machines shared.
func (p *Provider) Purge(ctx context.Context) error { return p.do(ctx, verbPurge, request{}) }

// Console copies the program's output to w, without control characters.
func (p *Provider) Console(ctx context.Context, w io.Writer, node string, follow bool) error {
	limit := int64(maxConsole)
	if follow {
		limit = 0
	}
	err := p.run(ctx, verbConsole, request{Node: node, Follow: &follow}, &limited{w: &printableWriter{w: w}, limit: limit})
	var exit *osexec.ExitError
	switch {
	case follow && ctx.Err() != nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == exitUnknownVerb:
		return machines.ErrNoConsole
	}
	return err
}

// do runs a verb whose answer contains only the protocol's version.
func (p *Provider) do(ctx context.Context, verb string, r request) error {
	out, err := p.ask(ctx, verb, r)
	if err != nil {
		return err
	}
	var a answer
	if err := decode(out, &a); err != nil {
		return fmt.Errorf("%s: its answer: %w", p.title(verb, r.subject()), err)
	}
	return nil
}

func (p *Provider) ask(ctx context.Context, verb string, r request) ([]byte, error) {
	var out bytes.Buffer
	err := p.run(ctx, verb, r, &limited{w: &out, limit: maxAnswer})
	return out.Bytes(), err
}

// run runs the program until it exits, or at most a second after ctx ends.
func (p *Provider) run(ctx context.Context, verb string, r request, out *limited) error {
	title := p.title(verb, r.subject())
	r.Protocol = Protocol
	r.Cluster = clusterData{p.config.Cluster, p.config.ClusterID}
	r.Hosts = append([]string{}, p.config.Hosts...)
	r.Network, r.Storage = p.config.Network, p.config.Storage
	in, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	runs, cancel := context.WithCancel(ctx)
	defer cancel()
	out.exceeded = cancel
	said := &lines{log: p.config.Log}
	cmd := osexec.CommandContext(runs, p.config.Program, verb)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(in, '\n')), out, said
	cmd.WaitDelay = grace
	ownGroup(cmd)
	runtime.LockOSThread() // PDEATHSIG is sent when the thread that started the program exits
	err = cmd.Run()
	runtime.UnlockOSThread()
	if cmd.Process != nil && runs.Err() != nil {
		endGroup(cmd)
	}
	said.end()
	var exit *osexec.ExitError
	switch {
	case out.over:
		return fmt.Errorf("%s: it wrote more than %d MiB to standard output", title, out.limit>>20)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", title, ctx.Err())
	case errors.Is(err, osexec.ErrWaitDelay) && cmd.ProcessState.Success():
		return nil // a background process, such as a shared ssh connection, keeps its output open
	case errors.As(err, &exit) && exit.ExitCode() == exitForeign:
		return fmt.Errorf("%s: %w%s", title, machines.ErrForeign, said.reason())
	case errors.As(err, &exit) && exit.ExitCode() == exitUnknownVerb:
		return fmt.Errorf("%s: it does not know the verb, or was used wrongly (%w)%s", title, err, said.reason())
	case errors.As(err, &exit):
		return fmt.Errorf("%s: %w%s", title, err, said.reason())
	case err != nil && cmd.Process == nil:
		return fmt.Errorf("%s: the program cannot be run: %w", title, err)
	case err != nil:
		return fmt.Errorf("%s: %w", title, err)
	}
	return nil
}

// subject returns the node that a request is about.
func (r request) subject() string {
	if r.Machine != nil {
		return r.Machine.Node
	}
	return r.Node
}

// title names an invocation of the program in errors.
func (p *Provider) title(verb, node string) string {
	return strings.TrimSpace(printable(p.config.Program) + " " + verb + " " + node)
}

// decode reads exactly one JSON object in this version of the protocol.
func decode(out []byte, into any) error {
	if len(bytes.TrimSpace(out)) == 0 {
		return fmt.Errorf(`nothing on standard output: {"protocol": %d} is the least`, Protocol)
	}
	// The version first: another version may have other fields.
	var version struct {
		Protocol *int `json:"protocol"`
	}
	if err := json.Unmarshal(out, &version); err != nil {
		return fmt.Errorf("not one JSON object: %s, in %s", plain(err), excerpt(out))
	}
	if version.Protocol == nil {
		return fmt.Errorf("the field protocol is missing in %s", excerpt(out))
	}
	if *version.Protocol != Protocol {
		return fmt.Errorf("it is in version %d of the protocol, and this imagegen speaks version %d", *version.Protocol, Protocol)
	}
	d := json.NewDecoder(bytes.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s, in %s", plain(err), excerpt(out))
	}
	return nil
}

// plain describes a JSON error without the names of Go types.
func plain(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		if wrong.Field == "" {
			return "not an object but " + article(wrong.Value)
		}
		return fmt.Sprintf("%s must not be %s", wrong.Field, article(wrong.Value))
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

func article(jsonType string) string {
	kind, _, _ := strings.Cut(jsonType, " ") // "number 1.5"
	if kind == "array" || kind == "object" {
		return "an " + kind
	}
	return "a " + kind
}

func excerpt(out []byte) string {
	text := printable(strings.TrimSpace(string(out[:min(len(out), 4*maxLine)])))
	if r := []rune(text); len(r) > maxLine {
		return string(r[:maxLine]) + "…"
	}
	return text
}

func parseList(out []byte) (states []machines.State, unreachable []string, err error) {
	var a listAnswer
	if err := decode(out, &a); err != nil {
		return nil, nil, err
	}
	if a.Machines == nil {
		return nil, nil, errors.New("the field machines is missing")
	}
	seen := map[string]bool{}
	for i, m := range *a.Machines {
		power := machines.Power(m.Power)
		switch {
		case m.Node == "":
			return nil, nil, fmt.Errorf("machines[%d]: the field node is missing", i)
		case printable(m.Node) != m.Node || printable(m.Host) != m.Host || printable(m.Image) != m.Image || printable(m.Seed) != m.Seed:
			return nil, nil, fmt.Errorf("machines[%d]: control characters in %q", i, []string{m.Node, m.Host, m.Image, m.Seed})
		case seen[m.Node]:
			return nil, nil, fmt.Errorf("machines[%d]: node %s is there twice", i, m.Node)
		case !slices.Contains([]machines.Power{machines.On, machines.Off, machines.Unfinished, machines.Unknown}, power):
			return nil, nil, fmt.Errorf("machines[%d]: node %s: power is %q, not on, off, unfinished or unknown", i, m.Node, printable(m.Power))
		}
		seen[m.Node] = true
		s := machines.State{Node: m.Node, Host: m.Host, Power: power, Image: m.Image, Seed: m.Seed}
		if m.Since != nil {
			s.Since = *m.Since
		}
		states = append(states, s)
	}
	return states, a.Unreachable, nil
}
