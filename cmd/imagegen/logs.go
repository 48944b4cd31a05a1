package main

import (
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"imagegen/lab"
)

// sinceFlag limits how far back a command looks; what is its default.
func sinceFlag(what string) cli.Flag {
	return &cli.DurationFlag{Name: "since", DefaultText: what, Usage: "show only the last `TIME`, such as 15m or 24h"}
}

func logsCommand() *cli.Command {
	return &cli.Command{
		Name:      "logs",
		Category:  operateCategory,
		Usage:     "show a node's journal: the logs of its daemons and its agent",
		ArgsUsage: "NODE",
		Description: "The journal comes from the node's agent. If that does not answer, or with --console, the provider shows the machine's console\n" +
			"instead: its boot and the agent's messages, even if the node is off. Times are the node's.",
		Flags: []cli.Flag{
			specFlag(), outFlag(), viaFlag(), providerFlag(), sinceFlag("the last 1,000 lines"),
			&cli.BoolFlag{Name: "follow", Aliases: []string{"F"}, Usage: "print new lines as they come, until Ctrl-C"},
			&cli.BoolFlag{Name: "console", Usage: "show the console of the node's machine, from its beginning"},
		},
		Action: func(c *cli.Context) error {
			node, err := oneArgument(c, "node")
			if err != nil {
				return err
			}
			p, err := load(c)
			if err != nil {
				return err
			}
			if err := p.knows(node); err != nil {
				return err
			}
			cl, err := p.reach(c, newBlock(c))
			if err != nil {
				return err
			}
			out := &printableWriter{w: c.App.Writer}
			if c.Bool("console") {
				if cl.Machines == nil {
					return fmt.Errorf("no provider can show the console of %s", node)
				}
				err = cl.Machines.Console(c.Context, out, node, c.Bool("follow"))
			} else {
				err = cl.Logs(c.Context, out, node, c.Duration("since"), c.Bool("follow"), func(why error) {
					fmt.Fprintf(c.App.ErrWriter, "imagegen: cannot read the journal from the agent of %s (%v); this is the console of its machine\n", node, why)
				})
			}
			if c.Bool("follow") && c.Context.Err() != nil {
				return nil // Ctrl-C is the normal way to stop following
			}
			return err
		},
	}
}

// knows fails if the node is neither in the spec nor left in the lab.
func (p *project) knows(node string) error {
	for _, removed := range lab.Removed(p.spec, p.out) {
		if removed == node {
			return nil
		}
	}
	_, err := p.nodes([]string{node})
	return err
}

// printableWriter removes control characters from nodes' text.
type printableWriter struct {
	w    io.Writer
	rest []byte // the incomplete last character
}

func (w *printableWriter) Write(text []byte) (int, error) {
	all := append(w.rest, text...)
	whole := len(all)
	for cut := 1; cut < utf8.UTFMax && cut <= len(all); cut++ {
		if tail := all[len(all)-cut:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				whole = len(all) - cut
			}
			break
		}
	}
	w.rest = slices.Clone(all[whole:])
	if _, err := io.WriteString(w.w, printable(string(all[:whole]))); err != nil {
		return 0, err
	}
	return len(text), nil
}

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:     "events",
		Category: operateCategory,
		Usage:    "show what happened on all nodes, in order of time",
		Description: "Asks the agents of all nodes for their latest events (about 1,000 each): changes of components, virtual addresses acquired\n" +
			"and released, a new Redis master, changes in the size of the database's component, nodes that fell silent or answer again,\n" +
			"decisions, restarts of agents. Nodes that cannot be asked are named on standard error.\n\n" +
			"--json prints [{\"node\", \"time\", \"component\", \"text\"}]; time is RFC 3339. Times are the nodes' own, or this computer's if the\n" +
			"two differ by more than 5 s.",
		Flags: []cli.Flag{specFlag(), outFlag(), viaFlag(), sinceFlag("all that is remembered"), jsonFlag("the events")},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			p, cl, err := openCluster(c, newBlock(c))
			if err != nil {
				return err
			}
			all, unheard, err := cl.Events(c.Context, c.Duration("since"))
			if err != nil {
				return err
			}
			for _, n := range p.spec.Nodes() {
				if why := unheard[n.Name]; why != nil {
					fmt.Fprintf(c.App.ErrWriter, "imagegen: no events of %s: %s\n", n.Name, printable(why.Error()))
				}
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, all)
			}
			for _, e := range all {
				what := e.Text
				if e.Component != "" {
					what = e.Component + ": " + what
				}
				if _, err := fmt.Fprintf(c.App.Writer, "%s  %s: %s\n", e.Time.Local().Format(time.DateTime), e.Node, printable(what)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
