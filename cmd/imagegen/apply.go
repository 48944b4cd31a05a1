package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"imagegen/change"
	"imagegen/cloudinit"
	"imagegen/cluster/expected"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/images"
	"imagegen/internal/words"
	"imagegen/operate"
)

// canaryReady is how long the first new machine of a change must be ready before the next is made.
const canaryReady = 30 * time.Second

func applyCommand() *cli.Command {
	return &cli.Command{
		Name:     "apply",
		Category: operateCategory,
		Usage:    "take the running cluster to what the spec says, node by node",
		Description: "Renders the next generation (see imagegen seed), compares it with what runs, shows what will happen, and does it. A node takes over\n" +
			"its new seed in place if its agent says that this is safe, and otherwise gets a new machine from the image that imagegen build\n" +
			"made last; its data disk stays. The nodes of a role change one at a time, while the others are ready, and the one that has the\n" +
			"virtual address or is the master comes last. New nodes start once all others know them; removed ones are turned off in the end.\n" +
			"Nodes of roles that do not use each other may take over their seeds at the same time.\n\n" +
			"A node that is not ready in time goes back to its previous seed; then so do all that had changed, and apply ends with 1.\n" +
			"What that takes (DIR/earlier, DIR/images/earlier) is kept until all nodes have changed, and then erased, on the nodes as well.\n" +
			"Interrupted anywhere, apply goes on when it is run again. Of two that change the cluster at the same time one is told.\n" +
			"Nodes that do not answer are asked again for 10 seconds before they count as silent.\n\n" +
			"With --outage, nodes of a role may get other addresses at the same time, and all of them another network: they are turned off, those\n" +
			"that visitors use first, and made anew together; data disks stay. Nobody is served meanwhile, and nothing of it is undone.\n\n" +
			"Asks before it begins; where there is no terminal, --yes is needed. Without a provider, it says which machine to\n" +
			"recreate or to turn off, and waits.\n\n" +
			"--json prints {\"version\": 1, \"cluster\", \"generation\", \"steps\": [{\"round\", \"node\", \"role\", \"action\", \"why\", \"notes\", \"needs\", \"agree\"}]}: the steps that\n" +
			"are left with --dry-run, and otherwise those that were left at the start. action is take over, replace, add, stop, remove or wait.",
		Flags: []cli.Flag{
			specFlag(), outFlag(), viaFlag(), providerFlag(),
			&cli.BoolFlag{Name: "dry-run", Usage: "only show what would happen"},
			&cli.BoolFlag{Name: "yes", Usage: "do not ask"},
			&cli.StringSliceFlag{Name: "without", Usage: "give up the silent `NODE`,…: neither change it nor wait for it"},
			&cli.BoolFlag{Name: "outage", Usage: "other addresses for several nodes of a role, or for all: turn these off meanwhile"},
			&cli.BoolFlag{Name: "alone", Usage: "nobody else is changing the cluster: nodes whose disks are new may vote"},
			jsonFlag("the steps"),
			timeoutFlag("give up waiting for a node"),
		},
		Action: apply,
	}
}

// applyVersion is the version of apply --json. It does not change when fields are added.
const applyVersion = 1

// applySteps is the output of apply --json.
type applySteps struct {
	Version    int           `json:"version"`
	Cluster    string        `json:"cluster"`
	Generation int           `json:"generation"`
	Steps      []change.Step `json:"steps"`
}

func apply(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	b := newBlock(c)
	defer b.clear()
	p, cl, err := openCluster(c, b)
	if err != nil {
		return err
	}
	if !c.Bool("dry-run") {
		release, err := p.lockReplacing()
		if err != nil {
			return err
		}
		defer release()
	}
	keys, err := p.draftSecrets()
	if err != nil {
		return err
	}
	without := c.StringSlice("without")
	var found operate.Generations
	var want wanted
	r := &change.Run{
		Cluster: cl, Catalogue: p.catalogue, Without: without, Alone: c.Bool("alone"), Outage: c.Bool("outage"), Tied: tiedNetworks[p.provider], Wait: waiting(c, b), Calm: canaryReady,
		Earlier: kept{p.earlier(), cl.Agents},
		Write:   func(t change.Target) error { return p.writeTarget(c.Context, cl, want, found.InUse, t) },
		Number: func(m facts.Manifest, inUse facts.Generation) (facts.Generation, error) {
			m, err := secrets.Render(p.secretsDir(), m, &inUse)
			if err != nil {
				return facts.Generation{}, err
			}
			return signed(want.keys, m)
		},
	}
	found, err = r.Generation(c.Context)
	if err == nil {
		err = found.Uncertain
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	if err != nil {
		return fmt.Errorf("it is not known what runs: %w", err)
	}
	if want, err = p.want(keys, found.InUse, secrets.Number); err != nil {
		return err
	}
	if cl.Machines != nil {
		if r.Power, err = p.power(c, b); err != nil {
			return err
		}
	}
	steps, err := r.Plan(c.Context, want.target)
	if err != nil {
		return err
	}
	number := want.target.Number
	b.clear()
	if !c.Bool("json") {
		fmt.Fprint(c.App.Writer, printable(stepsText(number, steps)))
	}
	if !c.Bool("dry-run") {
		if len(steps) > 0 && !c.Bool("yes") {
			if err := agreed(c); err != nil {
				return err
			}
		}
		// Up to here nothing was written: questions take no number and issue no secrets.
		if keys, err = p.issueSecrets(c); err != nil {
			return err
		}
		if want, err = p.want(keys, found.InUse, secrets.Render); err != nil {
			return err
		}
		number = want.target.Number
		if err := r.Apply(c.Context, want.target); err != nil {
			return err
		}
		b.clear()
		if !c.Bool("json") && len(steps) > 0 {
			fmt.Fprintf(c.App.Writer, "done: the cluster runs generation %d%s\n", number, givenUp(without))
		}
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, applySteps{applyVersion, p.spec.Cluster, number, append([]change.Step{}, steps...)})
	}
	return nil
}

// wanted is what the spec says, as a generation.
type wanted struct {
	keys   *secrets.Secrets
	all    []rendering
	target change.Target
}

// want renders what the spec says as the generation that follows the one in use.
func (p *project) want(keys *secrets.Secrets, inUse *facts.Generation, give numbering) (w wanted, err error) {
	w.keys = keys
	if w.all, err = p.render(keys); err != nil {
		return w, err
	}
	m, err := p.number(keys, w.all, inUse, give)
	if err != nil {
		return w, err
	}
	w.target.Seeds = map[string]cloudinit.Seed{}
	for _, r := range w.all {
		w.target.Seeds[r.node.Name] = r.seed
	}
	w.target.Network = p.spec.Network.CIDR
	w.target.Generation, err = signed(keys, m)
	return w, err
}

func givenUp(without []string) string {
	if len(without) == 0 {
		return ""
	}
	return ", without " + words.List(without, "and")
}

// signed signs a manifest.
func signed(keys *secrets.Secrets, m facts.Manifest) (facts.Generation, error) {
	envelope, err := keys.Sign(m)
	if err != nil {
		return facts.Generation{}, err
	}
	return facts.OpenGeneration(envelope)
}

// writeTarget writes the seeds from which machines are made: the spec's or, when a change is undone, the earlier ones.
func (p *project) writeTarget(ctx context.Context, cl *operate.Cluster, spec wanted, inUse *facts.Generation, t change.Target) error {
	if t.Digest == spec.target.Digest {
		if _, err := p.writeSeeds(spec.keys, spec.all, p.spec.Nodes(), inUse); err != nil {
			return err
		}
	} else {
		p.undone = t.Seeds
		for _, m := range t.Members {
			if images.HasEarlier(p.out, m.Role, m.Image) {
				if err := images.PutBack(ctx, p.out, m.Role, m.Image); err != nil {
					return fmt.Errorf("put the earlier image of %s back: %w", m.Role, err)
				}
			}
		}
		for _, n := range p.spec.Nodes() {
			if seed, ok := t.Seeds[n.Name]; ok {
				if err := seed.WriteISO(p.seedPath(n.Name)); err != nil {
					return err
				}
			}
		}
		if err := p.writeGeneration(t.Manifest); err != nil {
			return err
		}
	}
	if err := p.writeExpected(spec.keys.ClusterID); err != nil {
		return err
	}
	if cl.Expected != nil {
		want, err := expected.Read(expected.Path(p.out))
		if err != nil {
			return err
		}
		cl.Expected = &want
	}
	return nil
}

// stepsText describes steps to a person.
func stepsText(generation int, steps []change.Step) string {
	if len(steps) == 0 {
		return fmt.Sprintf("nothing to do: all nodes run what generation %d gives them\n", generation)
	}
	var s strings.Builder
	fmt.Fprintf(&s, "generation %d, in %s:\n", generation, count(len(steps), "step"))
	for i, step := range steps {
		fmt.Fprintf(&s, "  %s: %s", step.Node, step.Action)
		if len(step.Why) > 0 {
			fmt.Fprintf(&s, ": %s", strings.Join(step.Why, "; "))
		}
		s.WriteByte('\n')
		if i > 0 && step.Round == steps[i-1].Round {
			fmt.Fprintf(&s, "    at the same time as %s\n", steps[i-1].Node)
		}
		for _, note := range step.Notes {
			fmt.Fprintf(&s, "    %s\n", note)
		}
	}
	return s.String()
}

// agreed asks whether to go on; the answer is an error unless it is yes.
func agreed(c *cli.Context) error {
	in, ok := c.App.Reader.(*os.File)
	if ok {
		info, err := in.Stat()
		nothing, _ := os.Stat(os.DevNull) // a device as well
		ok = err == nil && info.Mode()&os.ModeCharDevice != 0 && !os.SameFile(info, nothing)
	}
	if !ok {
		return wrongf("apply asks before it changes anything, and there is no terminal: --yes goes on without, --dry-run only shows the steps")
	}
	fmt.Fprint(c.App.ErrWriter, "Go on? [y/N] ")
	answer := make(chan string, 1)
	go func() { // which ends with the program when nobody answers
		line, err := bufio.NewReader(in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			line = ""
		}
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-c.Context.Done():
		return c.Context.Err()
	case said := <-answer:
		if !slices.Contains([]string{"y", "yes"}, said) {
			return errors.New("nothing was changed")
		}
		return nil
	}
}
