package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/cluster/facts"
	"imagegen/operate"
)

// timeoutFlag limits a wait for nodes; what says what happens at the timeout.
func timeoutFlag(what string) cli.Flag {
	return &cli.DurationFlag{Name: "timeout", Value: 10 * time.Minute, Usage: what + " after `TIME`, such as 90s or 5m"}
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:     "status",
		Category: operateCategory,
		Usage:    "show the state of each node, and what it waits for",
		Description: "Asks the nodes' agents. States: off (only if the provider of the machines says so), silent (the agent does not answer),\n" +
			"or the agent's: waiting (for a peer), working, failed (and retrying), stopped (an operator must decide), ready.\n\n" +
			"Agents are reached through the lab if the nodes run there, and otherwise at their addresses, port 7373; this needs only the spec\n" +
			"and secrets/ca.crt, operator.crt and operator.key, and no root. If no node can be asked, that is an error.\n\n" +
			"--wait exits with 0 when all nodes are ready, and with 1 at the timeout.\n" +
			"IS shows the node's part in its role: the virtual address that it holds, whether its Redis is the master or a replica,\n" +
			"the size of the primary component that its database is in, or the servers that a data balancer sends to.\n" +
			"BUILD compares a node with the last imagegen build: current; older (an earlier image or seed; imagegen roll\n" +
			"replaces it); removed (no longer in the spec, but its machine is there); or unknown.\n" +
			"Without a provider, the agent's report is compared with DIR/expected.json, which build and seed write; images of older\n" +
			"imagegen versions do not contain their identity and are not compared.\n\n" +
			"--json prints {\"version\": 1, \"cluster\", \"nodes\": [{\"node\", \"role\", \"address\", \"host\", \"power\", \"state\", \"since\", \"is\",\n" +
			"\"warnings\", \"detail\", \"components\", \"error\", \"generation\", \"build\"}]}; fields may be added without a new version. power is on, off or unknown;\n" +
			"since is RFC 3339, by this computer's clock; error says why an agent could not be asked; generation is the number of the one that the node\n" +
			"conforms to. --watch prints one such object after another.",
		Flags: []cli.Flag{
			specFlag(), outFlag(), viaFlag(), providerFlag(), jsonFlag("the nodes"),
			&cli.BoolFlag{Name: "watch", Usage: "refresh every two seconds, until Ctrl-C"},
			&cli.BoolFlag{Name: "wait", Usage: "wait until all nodes are ready"}, timeoutFlag("with --wait: give up"),
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			if c.Bool("wait") && c.Bool("watch") {
				return wrongf("--wait and --watch cannot be combined")
			}
			b := newBlock(c)
			defer b.clear()
			p, cl, err := openCluster(c, b)
			if err != nil {
				return err
			}
			var nodes []operate.NodeStatus
			if c.Bool("watch") {
				return watch(c, p, cl)
			}
			if c.Bool("wait") {
				nodes, err = cl.WaitReady(c.Context, waiting(c, b), nodeNames(p.spec.Nodes()))
			} else {
				nodes, err = cl.Status(c.Context)
			}
			b.clear()
			if len(nodes) == 0 {
				return err
			}
			return errors.Join(printStatus(c, p, nodes), err)
		},
	}
}

// statusVersion is the version of status --json. It does not change when fields are added.
const statusVersion = 1

// statusJSON is the output of status --json.
type statusJSON struct {
	Version int                  `json:"version"`
	Cluster string               `json:"cluster"`
	Nodes   []operate.NodeStatus `json:"nodes"`
}

func printStatus(c *cli.Context, p *project, nodes []operate.NodeStatus) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, statusJSON{statusVersion, p.spec.Cluster, nodes})
	}
	return printTable(c.App.Writer, nodes, time.Now())
}

// watchEvery is the interval of status --watch.
const watchEvery = 2 * time.Second

// watch prints the nodes until Ctrl-C; on a terminal, it redraws them.
func watch(c *cli.Context, p *project, cl *operate.Cluster) error {
	for {
		nodes, err := cl.Status(c.Context)
		if c.Context.Err() != nil {
			return nil // Ctrl-C is the normal way to stop watching
		}
		if isTerminal(c.App.Writer) && !c.Bool("json") {
			fmt.Fprint(c.App.Writer, "\x1b[H\x1b[2J")
		}
		if err != nil { // it may be temporary
			fmt.Fprintf(c.App.ErrWriter, "imagegen: %s\n", printable(err.Error()))
		} else if err := printStatus(c, p, nodes); err != nil {
			return err
		}
		select {
		case <-c.Context.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

func printTable(w io.Writer, nodes []operate.NodeStatus, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	hosts := slices.ContainsFunc(nodes, func(n operate.NodeStatus) bool { return n.Host != "" })
	row := func(host string, cells ...string) {
		if hosts {
			cells = slices.Insert(cells, 3, host)
		}
		fmt.Fprintln(t, printable(strings.Join(cells, "\t")))
	}
	row("HOST", "NODE", "ROLE", "ADDRESS", "STATE", "SINCE", "BUILD", "IS", "WAITS FOR")
	for _, n := range nodes {
		row(cmp.Or(n.Host, "-"), n.Node, cmp.Or(n.Role, "-"), cmp.Or(n.Address, "-"), n.State, age(n.Since, now), cmp.Or(n.Build, "-"), cmp.Or(n.Is, "-"), cmp.Or(n.Detail, n.Error, "-"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, line := range slices.Concat(removedNodes(nodes), warnings(nodes), operate.Undecided(nodes, now)) {
		fmt.Fprintf(w, "\n%s\n", printable(line))
	}
	return nil
}

// warnings returns the nodes' warnings, one line each.
func warnings(nodes []operate.NodeStatus) []string {
	var lines []string
	for _, n := range nodes {
		for _, w := range n.Warnings {
			lines = append(lines, n.Node+": "+w)
		}
	}
	return lines
}

// removedNodes says what to do about nodes that the spec no longer has, one line each.
func removedNodes(nodes []operate.NodeStatus) []string {
	var lines []string
	for _, n := range nodes {
		if n.Build != operate.BuildRemoved {
			continue
		}
		line := n.Node + " is not in the spec any more: "
		if n.Power == "on" {
			line += "imagegen kill " + n.Node + " turns it off; imagegen down " + n.Node + " also removes its disks, seed and key."
		} else {
			line += "imagegen down " + n.Node + " removes its disks, seed and key."
		}
		lines = append(lines, line)
	}
	return lines
}

// age formats the time since t, rounded like people would.
func age(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "-"
	case d < 0: // clocks differ
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// waiting returns how a command waits for nodes: it shows what nodes that are not ready wait for.
func waiting(c *cli.Context, b *block) operate.Wait {
	start := time.Now()
	said := news{}
	return operate.Wait{Timeout: c.Duration("timeout"), Say: b.say, Progress: func(nodes []operate.NodeStatus) {
		var missing []string
		for _, n := range nodes {
			if !n.Ready() {
				missing = append(missing, "  "+operate.Describe(n))
			}
			if line, fresh := said.of(n); fresh && !b.terminal {
				b.say("%s", line)
			}
		}
		if missing != nil {
			head := fmt.Sprintf("%d of %s ready after %s", len(nodes)-len(missing), count(len(nodes), "node"), age(start, time.Now()))
			b.show(append([]string{head}, missing...))
		}
	}}
}

// news remembers what was printed about each node. Without a terminal, a line is printed once until the node is ready:
// not again when only a counter or a time in it changes, or when a step fails repeatedly in the same way.
type news map[string]*saidOf

type saidOf struct {
	last string
	all  map[string]bool
}

// longestNews limits a line, in characters; status shows all of it.
const longestNews = 160

// of returns the line for a node's state, and whether it is new.
func (said news) of(n operate.NodeStatus) (line string, fresh bool) {
	line = operate.Describe(n)
	before := said[n.Node]
	if before == nil {
		before = &saidOf{all: map[string]bool{}}
		said[n.Node] = before
	}
	key := changing.ReplaceAllString(line, "$1#")
	fresh = key != before.last && !before.all[key]
	before.last = key
	if n.State == string(facts.Ready) {
		before.all = map[string]bool{}
	} else {
		before.all[key] = true
	}
	if runes := []rune(line); len(runes) > longestNews {
		line = string(runes[:longestNews-1]) + "…"
	}
	return line, fresh
}

// changing matches what differs between retries: numbers, times and hexadecimal identifiers, but not the numbers in
// node names.
var changing = regexp.MustCompile(`(^|[^0-9A-Za-z_-])([0-9][0-9A-Za-z.:,%µ+-]*|[0-9a-f]{8}[0-9a-f-]*\b)`)
