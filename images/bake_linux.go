package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/packer-plugin-sdk/multistep"

	"imagegen/cluster"
	"imagegen/images/builder"
	"imagegen/images/disk"
	"imagegen/images/distro"
	"imagegen/images/packages"
	"imagegen/internal/sparse"
	"imagegen/internal/uuid"
)

// bakeAll bakes the base if it is missing, then the images in parallel.
func (c *Config) bakeAll(ctx context.Context, plans []*plan) error {
	by, why, err := c.chooseBuilder()
	if err != nil {
		return err
	}
	c.UI.Note("builder: " + why)
	if c.CacheDir, err = c.cache().open(ctx); err != nil {
		return err
	}
	if err := c.checkSpace(plans, by); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := c.bakeBase(ctx, plans[0].inputs.Base); err != nil {
		return fmt.Errorf("bake the base of %s: %w", c.Spec.Distro, err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		slots = make(chan struct{}, max(1, c.Jobs))
	)
	for _, p := range plans {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := c.bakeRole(ctx, p, by); err != nil {
				mu.Lock()
				if first == nil {
					first = fmt.Errorf("bake %s: %w", p.name(), err)
				}
				mu.Unlock()
				stop() // cancel the others: only the first error is reported
			}
		})
	}
	wg.Wait()
	if first == nil {
		return ctx.Err()
	}
	return first
}

// bake is the state of one bake. The steps get it from multistep's state bag, under a single key, so that they share a
// typed struct.
type bake struct {
	builder.Job
	config  *Config
	name    string // the roles, or the base; for messages
	plan    *plan  // nil for the base
	builder builder.Builder
	base    distro.Base
	at      string // the current step, for messages
	err     error
}

// begin reports a step.
func (b *bake) begin(what string) {
	b.at = what
	b.config.UI.Step(b.name, what)
}

// step adapts a function to multistep's runner. Steps have no cleanup: the bake's folder is removed as a whole.
type step struct {
	name string
	do   func(*bake, context.Context) error
}

const stateKey = "bake"

func (s step) Run(ctx context.Context, bag multistep.StateBag) multistep.StepAction {
	b := bag.Get(stateKey).(*bake)
	b.begin(s.name)
	if err := s.do(b, ctx); err != nil {
		b.err = fmt.Errorf("%s: %w", b.at, err)
		return multistep.ActionHalt
	}
	return multistep.ActionContinue
}

func (step) Cleanup(multistep.StateBag) {}

// run runs a bake's steps in a folder of its own, which it removes afterwards.
func (b *bake) run(ctx context.Context, steps ...multistep.Step) error {
	work, release, err := b.config.cache().workDir(ctx)
	if err != nil {
		return err
	}
	defer release()
	b.Work, b.Begin, b.Note = work, b.begin, b.config.UI.Note
	logPath := filepath.Join(b.config.CacheDir, "log", strings.ReplaceAll(b.name, ", ", "+")+".log")
	if b.Log, err = os.Create(logPath); err != nil {
		return err
	}
	defer b.Log.Close()
	bag := new(multistep.BasicStateBag)
	bag.Put(stateKey, b)
	(&multistep.BasicRunner{Steps: steps}).Run(ctx, bag)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Programs in the bake only see a disk that returns errors. Measure before the folder is removed.
	if free, ok := freeBytes(work); ok && b.err != nil && free < 16<<20 {
		return fmt.Errorf("%s is full, %d MiB are free: free some space there, or choose another folder with --cache: %w", b.config.CacheDir, free>>20, b.err)
	}
	return b.err
}

// bakeBase makes the base if it does not exist. A lock lets only one of several imagegens make it.
func (c *Config) bakeBase(ctx context.Context, in distro.Base) error {
	dir := c.cache().baseDir(in)
	lock, err := c.cache().lockResult(ctx, "base", dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	b := &bake{config: c, name: "base", base: in}
	err = b.run(ctx,
		step{"prepare", (*bake).makeBase},
		step{"keep", func(b *bake, ctx context.Context) error { return keep(ctx, filepath.Join(b.Work, "result"), dir) }})
	if err == nil {
		c.UI.Done(b.name, false)
	}
	return err
}

// bakeRole bakes an image, unless another process has finished it while this one waited for the lock.
func (c *Config) bakeRole(ctx context.Context, p *plan, by builder.Builder) error {
	dir := c.cache().imageDir(p.identity)
	lock, err := c.cache().lockResult(ctx, p.name(), dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if complete(dir) {
		c.UI.Done(p.name(), true)
		return nil
	}
	b := &bake{config: c, name: p.name(), plan: p, builder: by, base: p.inputs.Base}
	keep := step{"keep", func(b *bake, ctx context.Context) error { return keep(ctx, filepath.Join(b.Work, "result"), dir) }}
	steps := []multistep.Step{
		step{"download files", (*bake).download},
		step{"prepare", (*bake).install},
		step{"write the disk", (*bake).writeDisk},
		step{"check", (*bake).check},
		step{"write the manifest", (*bake).writeManifest},
		keep,
	}
	if b.base.IsDisk() { // the base is a disk: bake in a copy of it
		steps = []multistep.Step{
			step{"copy the base", (*bake).copyBase},
			step{"download files", (*bake).download},
			step{"prepare", (*bake).install},
			step{"write the manifest", (*bake).writeManifest},
			keep,
		}
	}
	err = b.run(ctx, steps...)
	if err == nil {
		c.UI.Done(b.name, false)
	}
	return err
}

func (b *bake) makeBase(ctx context.Context) error {
	result := filepath.Join(b.Work, "result")
	if err := os.Mkdir(result, 0o755); err != nil {
		return err
	}
	return b.config.maker().MakeBase(ctx, &b.Job, b.base)
}

func (b *bake) copyBase(ctx context.Context) error {
	if err := os.Mkdir(filepath.Join(b.Work, "result"), 0o755); err != nil {
		return err
	}
	return sparse.Copy(ctx, filepath.Join(b.config.cache().baseDir(b.base), diskName), b.Disk())
}

// writeDisk writes the disk from the tree.
func (b *bake) writeDisk(ctx context.Context) error {
	t := disk.Tree{Lower: filepath.Join(b.config.cache().baseDir(b.base), treeName), Upper: b.Upper()}
	if _, err := os.Stat(filepath.Join(b.Work, "whole")); err == nil {
		t.Lower = filepath.Join(b.Work, "nothing") // does not exist
	}
	result := filepath.Join(b.Work, "result")
	if err := os.Mkdir(result, 0o755); err != nil {
		return err
	}
	bootable, err := b.bootable()
	if err != nil {
		return err
	}
	return disk.Write(ctx, b.Disk(), t, bootable)
}

// bootable returns the parameters of a disk that boots with the base's tree.
func (b *bake) bootable() (disk.Image, error) {
	boot, err := os.ReadFile(filepath.Join(b.config.cache().baseDir(b.base), "boot"))
	if err != nil {
		return disk.Image{}, err
	}
	number, err := strconv.ParseUint(b.base.Identity()[:8], 16, 32)
	return disk.Image{Bytes: b.plan.inputs.DiskBytes, UUID: b.base.UUID(), Number: uint32(number), Boot: boot}, err
}

// runBuilder runs the staged script with the builder.
func (b *bake) runBuilder(ctx context.Context) error {
	b.ID, b.Bytes = b.plan.identity, b.plan.inputs.DiskBytes
	b.Enter = b.config.distro().Enter()
	if !b.base.IsDisk() {
		bootable, err := b.bootable()
		if err != nil {
			return err
		}
		b.Job.Base = &builder.Base{Root: filepath.Join(b.config.cache().baseDir(b.base), treeName), Disk: bootable, Below: uuid.Of("below " + b.base.Identity())}
	}
	return b.builder.Install(ctx, &b.Job)
}

// check runs e2fsck on the disk.
func (b *bake) check(ctx context.Context) error {
	return disk.Check(ctx, b.Disk())
}

// download copies the role's downloads into the folder files/, under their paths in the image.
func (b *bake) download(ctx context.Context) error {
	files := filepath.Join(b.Work, "files")
	if err := os.Mkdir(files, 0o755); err != nil {
		return err
	}
	// The paths come from the role. They are validated when it is parsed; OpenRoot is a second barrier.
	root, err := os.OpenRoot(files)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, d := range b.plan.inputs.Downloads {
		path := strings.TrimPrefix(d.Path, "/")
		if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if d.Unpack {
			if err := b.unpack(ctx, root, d); err != nil {
				return err
			}
			continue
		}
		if err := b.config.cache().store().TakeBelow(ctx, d.SHA256, root, path, d.URL); err != nil {
			return err
		}
	}
	return nil
}

// install stages the inputs and installs everything with the builder.
func (b *bake) install(ctx context.Context) error {
	if err := b.stage(ctx); err != nil {
		return err
	}
	if err := b.runBuilder(ctx); err != nil {
		return err
	}
	return os.Rename(b.Input("packages"), filepath.Join(b.Work, "packages"))
}

// stage fills the folder that the script in the image reads. It is the same for all builders. It contains the script,
// which finds everything through the variable BAKE, the folder's path.
func (b *bake) stage(ctx context.Context) error {
	in := b.plan.inputs
	if err := distro.StageLocal(ctx, b.Input("local"), in.Local); err != nil {
		return err
	}
	err := errors.Join(
		os.Rename(filepath.Join(b.Work, "files"), b.Input("files")),
		stageUnits(b.Input("units"), in.Units),
		os.WriteFile(b.Input("identity"), []byte(b.plan.identity+"\n"), 0o644),
		sparse.CopyAs(ctx, b.config.Agent, b.Input("agent"), in.Agent))
	if err != nil {
		return err
	}
	m := b.config.maker()
	return errors.Join(m.Stage(ctx, &b.Job, in), os.WriteFile(b.Input("script"), []byte(m.Script(in)), 0o644))
}

func stageUnits(dir string, units []distro.Unit) error {
	err := os.Mkdir(dir, 0o755)
	for _, u := range units {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, u.Name), []byte(u.Text), 0o644))
	}
	return err
}

func (b *bake) writeManifest(ctx context.Context) error {
	out, err := os.ReadFile(filepath.Join(b.Work, "packages"))
	if err != nil {
		return err
	}
	file := b.Disk()
	m := Manifest{Schema: 1, Role: b.plan.roles[0], Identity: b.plan.identity, Inputs: b.plan.inputs}
	if m.Packages, err = packages.ParseInstalled(string(out)); err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	m.Disk = Output{Format: "raw", Bytes: cluster.Bytes(info.Size())}
	if m.Disk.Data, err = sparse.Digest(ctx, file); err != nil {
		return err
	}
	data, err := m.encode()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.Work, "result", manifestName), data, 0o644)
}
