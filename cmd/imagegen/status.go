package main

import (
	"cmp"
	"context"
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
	"imagegen/lab"
)

// timeoutFlag bounds a wait for nodes; what says what happens then.
func timeoutFlag(what string) cli.Flag {
	return &cli.DurationFlag{Name: "timeout", Value: 10 * time.Minute, Usage: what + " after `TIME`, such as 90s or 5m"}
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:     "status",
		Category: labCategory,
		Usage:    "show where each node stands, and what it waits for",
		Description: "Asks the agents of the nodes. States: off, silent (the agent does not answer, or not yet), then what the agent says:\n" +
			"waiting (for a peer), working, failed (and tried again), stopped (an operator must decide), ready.\n\n" +
			"--wait ends with 0 when all nodes are ready, and with 1 when they are not in time.\n" +
			"BUILD compares a node with what imagegen build made last: current; older, of an earlier image or seed (imagegen roll\n" +
			"renews it); or removed, when the spec no longer has the node and the lab still does.\n\n" +
			"--json prints [{\"node\", \"role\", \"address\", \"power\", \"state\", \"since\", \"detail\", \"components\", \"error\", \"build\"}]; since\n" +
			"is RFC 3339, by the node's clock; error says why an agent could not be asked.",
		Flags: []cli.Flag{
			specFlag(), outFlag(), jsonFlag("the nodes"),
			&cli.BoolFlag{Name: "wait", Usage: "wait until all nodes are ready"}, timeoutFlag("with --wait: give up"),
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			b := newBlock(c)
			defer b.clear()
			l, names, secrets, err := openWithSecrets(c, b, nil)
			if err != nil {
				return err
			}
			warnOfExpiry(c.App.ErrWriter, secrets)
			var nodes []lab.NodeStatus
			if c.Bool("wait") {
				nodes, err = wait(c, b, l, names)
			} else {
				nodes, err = l.Status(c.Context)
			}
			b.clear()
			if len(nodes) == 0 {
				return err
			}
			if c.Bool("json") {
				return errors.Join(printJSON(c.App.Writer, nodes), err)
			}
			return errors.Join(printTable(c.App.Writer, nodes, time.Now()), err)
		},
	}
}

func printTable(w io.Writer, nodes []lab.NodeStatus, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROLE\tADDRESS\tSTATE\tSINCE\tBUILD\tWAITS FOR")
	for _, n := range nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Node, cmp.Or(n.Role, "-"), cmp.Or(n.Address, "-"), n.State, age(n.Since, now), cmp.Or(n.Build, "-"), printable(cmp.Or(n.Detail, n.Error, "-")))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, line := range slices.Concat(removedNodes(nodes), undecided(nodes, now)) {
		fmt.Fprintf(w, "\n%s\n", printable(line))
	}
	return nil
}

// removedNodes says what can be done about nodes that the spec no longer has, a line each.
func removedNodes(nodes []lab.NodeStatus) []string {
	var lines []string
	for _, n := range nodes {
		if n.Build != lab.BuildRemoved {
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

// age shows how long ago something was, as coarse as people say it.
func age(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "-"
	case d < 0: // another clock
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

const askEvery = 500 * time.Millisecond

// wait asks until the named nodes are ready, and shows meanwhile what the others wait for. It returns the last answer, of
// all nodes, also when the time is over.
func wait(c *cli.Context, b *block, l *lab.Lab, names []string) ([]lab.NodeStatus, error) {
	return waitFor(c, b, l, names, nil)
}

// waitFor is wait that also ends when enough, if there is one, says so of the named nodes.
func waitFor(c *cli.Context, b *block, l *lab.Lab, names []string, enough func([]lab.NodeStatus) bool) ([]lab.NodeStatus, error) {
	timeout := c.Duration("timeout")
	ctx, cancel := context.WithTimeout(c.Context, timeout)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	start := time.Now()
	said := news{}
	var nodes []lab.NodeStatus
	for {
		if now, err := l.Status(ctx); err == nil {
			nodes = now
		} else if ctx.Err() == nil {
			return nil, err
		}
		var missing []lab.NodeStatus
		for _, n := range nodes {
			if !slices.Contains(names, n.Node) {
				continue
			}
			if n.State != string(facts.Ready) {
				missing = append(missing, n)
			}
			if line, fresh := said.of(n); fresh && !b.terminal {
				b.say("%s", line)
			}
		}
		if nodes != nil && (len(missing) == 0 || enough != nil && enough(among(nodes, names))) {
			return nodes, nil
		}
		if c.Context.Err() != nil {
			return nil, c.Context.Err()
		}
		if ctx.Err() != nil {
			var late []string
			for _, n := range missing {
				late = append(late, n.Node)
			}
			return nodes, fmt.Errorf("%d of %s not ready within %s: %s", len(missing), count(len(names), "node"), timeout, cmp.Or(strings.Join(late, ", "), "no answer"))
		}
		lines := []string{fmt.Sprintf("%d of %s ready after %s", len(names)-len(missing), count(len(names), "node"), age(start, time.Now()))}
		for _, n := range missing {
			lines = append(lines, "  "+describe(n))
		}
		b.show(lines)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// among returns the named ones of nodes.
func among(nodes []lab.NodeStatus, names []string) []lab.NodeStatus {
	var some []lab.NodeStatus
	for _, n := range nodes {
		if slices.Contains(names, n.Node) {
			some = append(some, n)
		}
	}
	return some
}

// describe says in a line where a node stands.
func describe(n lab.NodeStatus) string {
	if n.Detail == "" {
		return fmt.Sprintf("%s: %s", n.Node, n.State)
	}
	return fmt.Sprintf("%s: %s: %s", n.Node, n.State, n.Detail)
}

// news remembers what has been said of each node. Where there is no terminal, a line is said once until the node is
// ready: not again for a count or a time in it that goes on, nor each time that a step fails in the same way.
type news map[string]*saidOf

type saidOf struct {
	last string
	all  map[string]bool
}

// longestNews bounds a line, in characters; status shows all of it.
const longestNews = 160

// of returns the line that says where a node stands, and whether that is news.
func (said news) of(n lab.NodeStatus) (line string, fresh bool) {
	line = describe(n)
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

// changing matches what differs from one retry to the next: numbers, times and hexadecimal identifiers, but not the numbers
// in names of nodes.
var changing = regexp.MustCompile(`(^|[^0-9A-Za-z_-])([0-9][0-9A-Za-z.:,%µ+-]*|[0-9a-f]{8}[0-9a-f-]*\b)`)
