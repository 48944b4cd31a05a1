package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"

	"imagegen/cluster"
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
			"--json prints [{\"node\", \"role\", \"address\", \"power\", \"state\", \"since\", \"detail\", \"components\", \"error\"}]; since is\n" +
			"RFC 3339, by the node's clock; error says why an agent could not be asked.",
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
	fmt.Fprintln(t, "NODE\tROLE\tADDRESS\tSTATE\tSINCE\tWAITS FOR")
	for _, n := range nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Node, n.Role, n.Address, n.State, age(n.Since, now), cmp.Or(n.Detail, n.Error, "-"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, line := range undecided(nodes, now) {
		fmt.Fprintf(w, "\n%s\n", line)
	}
	return nil
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

// wait asks until the named nodes are ready, and shows meanwhile what the others wait for. It returns the last answer
// also when the time is over.
func wait(c *cli.Context, b *block, l *lab.Lab, names []string) ([]lab.NodeStatus, error) {
	timeout := c.Duration("timeout")
	ctx, cancel := context.WithTimeout(c.Context, timeout)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	start := time.Now()
	said := map[string]string{}
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
			if n.State != string(cluster.Ready) {
				missing = append(missing, n)
			}
			// Without a terminal, a count that goes on is no line of its own.
			if line := describe(n); !b.terminal && said[n.Node] != withoutDigits(line) {
				said[n.Node] = withoutDigits(line)
				b.say("%s", line)
			}
		}
		if nodes != nil && len(missing) == 0 {
			return nodes, nil
		}
		if c.Context.Err() != nil {
			return nil, c.Context.Err()
		}
		if ctx.Err() != nil {
			return nodes, fmt.Errorf("%d of %s not ready within %s", len(missing), count(len(names), "node"), timeout)
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

// describe says in a line where a node stands.
func describe(n lab.NodeStatus) string {
	if n.Detail == "" {
		return fmt.Sprintf("%s: %s", n.Node, n.State)
	}
	return fmt.Sprintf("%s: %s: %s", n.Node, n.State, n.Detail)
}

func withoutDigits(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, s)
}
